"""Metrics of decoded physical fields and their aggregation over trajectories, as pure functions.

The names are here, for those who write them down without computing any: this module does not import jax.
"""

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
