"""Built-in solvers that write data files. Reading the files does not need this package; only solving imports jax."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ups_jax.simulate.generator import generate, generate_missing
    from ups_jax.simulate.presets import PRESETS, Preset

# Imported at the first access: the presets are used where h5py, which the generator loads, is not needed.
_MODULE_OF = {"generate": "generator", "generate_missing": "generator", "PRESETS": "presets", "Preset": "presets"}
__all__ = ["PRESETS", "Preset", "generate", "generate_missing"]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'ups_jax.simulate' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ups_jax.simulate.{_MODULE_OF[name]}"), name)
