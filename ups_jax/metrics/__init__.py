"""Metrics of decoded physical fields and their aggregation over trajectories, as pure functions.

The functions of `field` and `ensemble` are also attributes of this package: `metrics.nrmse(pred, target)`. They are
loaded when they are first used, because the names of metrics are needed where jax is not.
"""

from __future__ import annotations

import importlib
from typing import Any

# Those of every section of an evaluation.
METRICS = (
    "nrmse",
    "rmse",
    "max_error",
    "vrmse",
    "conservation_rmse",
    "boundary_rmse",
    "fourier_rmse_low",
    "fourier_rmse_mid",
    "fourier_rmse_high",
)
ENSEMBLE_METRICS = ("crps", "spread_skill", "coverage_50", "coverage_90", "decorrelation_time")


def __getattr__(name: str) -> Any:
    modules = () if name.startswith("_") else ("field", "ensemble")
    for module in (importlib.import_module(f"ups_jax.metrics.{module}") for module in modules):
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"module 'ups_jax.metrics' has no attribute {name!r}")
