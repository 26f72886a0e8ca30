"""Names of metrics, for those who write them down and compute none."""

from __future__ import annotations

ENSEMBLE_METRICS = ("crps", "spread_skill", "coverage_50", "coverage_90", "decorrelation_time")
