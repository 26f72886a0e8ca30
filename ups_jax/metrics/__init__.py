"""Metrics of decoded fields in physical units, and their aggregation over trajectories, as pure functions.

The functions of `field` and `ensemble` are also attributes of this package: `metrics.nrmse(pred, target)`. They are
imported on first use, because some modules need only the names of metrics and must not import jax.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ups_jax.metrics.ensemble import (
        coverage,
        decorrelation_time,
        empirical_crps,
        ensemble_summary,
        ensemble_table,
        fair_crps,
        spread_and_skill,
        spread_skill,
    )
    from ups_jax.metrics.field import (
        all_metrics,
        boundary_rmse,
        channel_nrmse,
        conservation_rmse,
        correlation,
        correlation_time,
        energy_spectrum,
        fourier_rmse,
        mae,
        max_error,
        nrmse,
        rmse,
        rollout_metrics,
        spectrum_error,
        summary,
        vrmse,
    )

# Increased whenever the formula of a metric changes, so that values of two versions are never compared.
METRIC_VERSION = "2"
# Metrics that every section of an evaluation has.
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
# Units of all entries of an evaluation's sections: `1` for numbers without a unit, `field` for the unit of the fields,
# `time` for the unit of the times in the data, `s` for seconds of wall time.
UNITS = {
    **dict.fromkeys(METRICS, "field"),
    **dict.fromkeys(("nrmse", "nrmse_by_channel", "nrmse_by_time", "vrmse", "nonfinite"), "1"),
    **{f"spectrum_error_{band}": "1" for band in ("low", "mid", "high")},
    **{"mae": "field", "correlation_time": "time"},
    **dict.fromkeys(ENSEMBLE_METRICS, "1"),
    **{"crps": "field", "decorrelation_time": "time"},
    **{"members": "1", "seconds_per_rollout_step": "s"},
}
_FUNCTIONS = {
    "field": (
        "all_metrics",
        "boundary_rmse",
        "channel_nrmse",
        "conservation_rmse",
        "correlation",
        "correlation_time",
        "energy_spectrum",
        "fourier_rmse",
        "mae",
        "max_error",
        "nrmse",
        "rmse",
        "rollout_metrics",
        "spectrum_error",
        "summary",
        "vrmse",
    ),
    "ensemble": (
        "coverage",
        "decorrelation_time",
        "empirical_crps",
        "ensemble_summary",
        "ensemble_table",
        "fair_crps",
        "spread_and_skill",
        "spread_skill",
    ),
}
_MODULE_OF = {name: module for module, names in _FUNCTIONS.items() for name in names}
__all__ = ["ENSEMBLE_METRICS", "METRICS", "METRIC_VERSION", "UNITS", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    """Return a function of this package, importing its module on first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'ups_jax.metrics' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ups_jax.metrics.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    """Return the public names of this package."""
    return __all__
