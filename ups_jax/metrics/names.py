"""Names of metrics, for those who write them down and compute none."""

from __future__ import annotations

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
