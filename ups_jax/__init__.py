"""Neural PDE simulators in JAX. Importing ups_jax is fast, because a name loads its module only at its first use."""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ups_jax import data, losses, metrics, models, optim, rollout
    from ups_jax.config import Config
    from ups_jax.config import load as load_config
    from ups_jax.data import batch_at, from_arrays, open_dataset, open_mixture, training_batches
    from ups_jax.evaluation.evaluate_run import evaluate
    from ups_jax.inference.trained_model import TrainedModel, load_run
    from ups_jax.models.batch import Batch
    from ups_jax.runs.api import restore, save
    from ups_jax.training.build import build, init_state
    from ups_jax.training.multi_step import stack_batches
    from ups_jax.training.state import TrainState
    from ups_jax.training.step import make_train_step

    __version__: str

_MODULES = {
    "ups_jax.config": ("Config", "load_config"),
    "ups_jax.data": ("batch_at", "from_arrays", "open_dataset", "open_mixture", "training_batches"),
    "ups_jax.evaluation.evaluate_run": ("evaluate",),
    "ups_jax.inference.trained_model": ("TrainedModel", "load_run"),
    "ups_jax.models.batch": ("Batch",),
    "ups_jax.runs.api": ("restore", "save"),
    "ups_jax.training.build": ("build", "init_state"),
    "ups_jax.training.multi_step": ("stack_batches",),
    "ups_jax.training.state": ("TrainState",),
    "ups_jax.training.step": ("make_train_step",),
}
_PACKAGES = ("data", "losses", "metrics", "models", "optim", "rollout")
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
_RENAMED = {"load_config": "load"}
# Former names, which work with a warning.
_FORMER = {"together": "stack_batches"}
__all__ = sorted([*_MODULE_OF, *_PACKAGES, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"ups_jax.{name}")
    if name == "__version__":
        return importlib.import_module("ups_jax.core.files").version("ups_jax")
    if name in _FORMER:
        current = _FORMER[name]
        warnings.warn(f"ups_jax.{name} is now called ups_jax.{current}", DeprecationWarning, stacklevel=2)
        return __getattr__(current)
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'ups_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), _RENAMED.get(name, name))


def __dir__() -> list[str]:
    return __all__
