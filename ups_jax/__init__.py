"""Neural PDE simulators in JAX. Importing this is cheap: each name loads its module when it is first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ups_jax.config import load as load_config
    from ups_jax.data import batch_at, from_arrays, open_dataset, open_mixture, training_batches
    from ups_jax.inference.trained_model import TrainedModel, load_run
    from ups_jax.runs.api import restore, save
    from ups_jax.training.build import build, init_state
    from ups_jax.training.multi_step import together
    from ups_jax.training.step import make_train_step

_HOME = {
    "TrainedModel": ("ups_jax.inference.trained_model", "TrainedModel"),
    "batch_at": ("ups_jax.data", "batch_at"),
    "build": ("ups_jax.training.build", "build"),
    "from_arrays": ("ups_jax.data", "from_arrays"),
    "init_state": ("ups_jax.training.build", "init_state"),
    "load_config": ("ups_jax.config", "load"),
    "load_run": ("ups_jax.inference.trained_model", "load_run"),
    "make_train_step": ("ups_jax.training.step", "make_train_step"),
    "open_dataset": ("ups_jax.data", "open_dataset"),
    "open_mixture": ("ups_jax.data", "open_mixture"),
    "restore": ("ups_jax.runs.api", "restore"),
    "save": ("ups_jax.runs.api", "save"),
    "together": ("ups_jax.training.multi_step", "together"),
    "training_batches": ("ups_jax.data", "training_batches"),
}

__all__ = [
    "TrainedModel",
    "batch_at",
    "build",
    "from_arrays",
    "init_state",
    "load_config",
    "load_run",
    "make_train_step",
    "open_dataset",
    "open_mixture",
    "restore",
    "save",
    "together",
    "training_batches",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ups_jax' has no attribute {name!r}")
    module, attribute = _HOME[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return __all__
