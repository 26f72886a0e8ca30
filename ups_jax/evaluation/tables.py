"""Tables of metrics, one array `(n, steps)` a metric: measured in chunks of one shape, joined, summed up."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ups_jax.metrics import all_metrics, summary
from ups_jax.task import Task

Table = dict[str, np.ndarray]


def chunks(count: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Row numbers in chunks of one size, the last one filled up with its own last row, and how many rows are real."""
    size = min(size, count)
    for start in range(0, count, size):
        rows = np.arange(start, start + size)
        yield np.minimum(rows, count - 1), min(size, count - start)


def measure(pred: np.ndarray, truth: np.ndarray, task: Task, kept: int) -> Table:
    """Every metric of the first `kept` rows."""
    return {name: np.asarray(value)[:kept] for name, value in all_metrics(pred, truth, task).items()}


def join(parts: Sequence[Table]) -> Table:
    """The rows of all parts in one table."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def section(table: Table, *, by_time: bool = False) -> dict[str, Any]:
    """A section of the evaluation JSON: means over all rows, the count of non-finite ones, errors by time if asked."""
    values: dict[str, Any] = {**summary(table), "nonfinite": int((~np.isfinite(table["rmse"])).sum())}
    if by_time:
        values["nrmse_by_time"] = [float(value) for value in table["nrmse"].astype(np.float64).mean(0)]
    return values


def bootstrap_interval(values: Float[np.ndarray, " n"], resamples: int, seed: int) -> list[float]:
    """The 2.5 and 97.5 % quantiles of the mean under resampling of the trajectories; NaN if a value is not finite."""
    if not np.isfinite(values).all():
        return [math.nan, math.nan]
    generator = np.random.default_rng(seed)
    means = [values[generator.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    return [float(bound) for bound in np.quantile(means, (0.025, 0.975))]
