"""Tables of metrics, one array `(n, steps)` a metric: measured in chunks of one shape, joined, summed up."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ups_jax.core.rng import generator, stream_key
from ups_jax.core.task import Task
from ups_jax.metrics import METRICS
from ups_jax.metrics.field import all_metrics, correlation_time, rollout_metrics, summary

Table = dict[str, np.ndarray]

# What a rollout is scored by besides `METRICS`.
ROLLOUT_METRICS = ("mae", *(f"spectrum_error_{band}" for band in ("low", "mid", "high")))


def fixed_size_chunks(count: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Row numbers in chunks of one size, the last one filled up with its own last row, and how many rows are real."""
    size = min(size, count)
    for start in range(0, count, size):
        rows = np.arange(start, start + size)
        yield np.minimum(rows, count - 1), min(size, count - start)


def score_rows(
    pred: np.ndarray, truth: np.ndarray, task: Task, kept: int, points: Float[np.ndarray, "b p"] | None = None
) -> Table:
    """Every metric of the first `kept` rows, those of rollouts among them, and their correlation with the truth; of a
    set of points, with their mask, those that need no grid."""
    values = all_metrics(pred, truth, task, points) | rollout_metrics(pred, truth, points)
    return {name: np.asarray(value)[:kept] for name, value in values.items()}


def concatenate_tables(parts: Sequence[Table]) -> Table:
    """The rows of all parts in one table."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def metrics_section(table: Table) -> dict[str, Any]:
    """A section of the evaluation JSON: means over all rows, the count of non-finite ones."""
    means = summary({name: table[name] for name in METRICS if name in table})
    return {**means, "nonfinite": int((~np.isfinite(table["rmse"])).sum())}


def rollout_section(table: Table, dt: float) -> dict[str, Any]:
    """The section of a rollout of frames `dt` apart: also `ROLLOUT_METRICS`, the mean correlation time, and the errors
    by time."""
    return {
        **metrics_section(table),
        **summary({name: table[name] for name in ROLLOUT_METRICS if name in table}),
        "correlation_time": float(correlation_times(table, dt).mean()),
        "nrmse_by_time": [float(value) for value in table["nrmse"].astype(np.float64).mean(0)],
    }


def steady_section(table: Table) -> dict[str, Any]:
    """The section of steady solutions: also their mean absolute error."""
    return {**metrics_section(table), **summary({"mae": table["mae"]})}


def correlation_times(table: Table, dt: float) -> Float[np.ndarray, " n"]:
    """The correlation time of each rollout of frames `dt` apart."""
    return np.asarray(correlation_time(table["correlation"], dt), np.float64)


def bootstrap_interval(values: Float[np.ndarray, " n"], resamples: int, seed: int) -> list[float]:
    """The 2.5 and 97.5 % quantiles of the mean under resampling of the trajectories; NaN if a value is not finite."""
    if not np.isfinite(values).all():
        return [math.nan, math.nan]
    drawn = generator(stream_key(seed, "evaluation/bootstrap"))
    means = [values[drawn.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    return [float(bound) for bound in np.quantile(means, (0.025, 0.975))]
