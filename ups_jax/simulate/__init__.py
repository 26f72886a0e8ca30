"""Embedded solvers that write data files. Nothing here is needed to read them; jax is imported by a solve only."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ups_jax.simulate.generator import generate, prepare
    from ups_jax.simulate.presets import PRESETS, Preset

# The table of presets is read where no file is: the generator loads h5py.
_MODULE_OF = {"generate": "generator", "prepare": "generator", "PRESETS": "presets", "Preset": "presets"}
__all__ = ["PRESETS", "Preset", "generate", "prepare"]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'ups_jax.simulate' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ups_jax.simulate.{_MODULE_OF[name]}"), name)
