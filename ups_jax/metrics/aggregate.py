"""Tables of metrics, and the sections of the evaluation JSON that are computed from them.

A table holds one array `(n, steps)` per metric, with a row for each trajectory; `nrmse/CHANNEL` is the nRMSE of one
channel. Tables are filled in chunks of a fixed number of rows, so that one compiled program serves all chunks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ups_jax.core.rng import philox_generator, philox_key
from ups_jax.core.task import Task
from ups_jax.metrics import METRICS
from ups_jax.metrics.field import all_metrics, correlation_time, rollout_metrics, summary

Table = dict[str, np.ndarray]

# Prefix of the nRMSE of one channel in a table.
_CHANNEL_NRMSE = "nrmse/"
# Metrics of a rollout in addition to `METRICS`.
ROLLOUT_METRICS = ("mae", *(f"spectrum_error_{band}" for band in ("low", "mid", "high")))


def fixed_size_chunks(count: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield for each chunk of rows the indices of the rows, and how many of these rows are not padding.

    All chunks have the same size; the last one is padded by repeating the last row.

    Args:
        count: Number of rows in total.
        size: Largest number of rows in a chunk.
    """
    size = min(size, count)
    for start in range(0, count, size):
        rows = np.arange(start, start + size)
        yield np.minimum(rows, count - 1), min(size, count - start)


def score_rows(
    pred: np.ndarray, truth: np.ndarray, task: Task, real_rows: int, point_mask: Float[np.ndarray, "b p"] | None = None
) -> Table:
    """Return all metrics of the first `real_rows` rows, including rollout metrics and the correlation with the truth.

    Args:
        pred: Predicted fields `(b, t, *s, c)` in physical units.
        truth: True fields of the same shape and units.
        real_rows: Number of rows that are not padding.
        point_mask: 1 for a point, 0 for padding; None on a grid. Point clouds get only the metrics that need no grid.
    """
    values = all_metrics(pred, truth, task, point_mask) | rollout_metrics(pred, truth, task, point_mask)
    by_channel = values.pop("channel_nrmse")
    values |= {f"{_CHANNEL_NRMSE}{name}": by_channel[..., index] for index, name in enumerate(task.channels)}
    return {name: np.asarray(value)[:real_rows] for name, value in values.items()}


def concatenate_tables(tables: Sequence[Table]) -> Table:
    """Return one table with the rows of all tables."""
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def metrics_section(table: Table) -> dict[str, Any]:
    """Return an evaluation JSON section: means of `METRICS`, nRMSE by channel, and the number of non-finite errors."""
    means = summary({name: table[name] for name in METRICS if name in table})
    by_channel = {
        name.removeprefix(_CHANNEL_NRMSE): float(value.astype(np.float64).mean())
        for name, value in table.items()
        if name.startswith(_CHANNEL_NRMSE)
    }
    return {**means, "nrmse_by_channel": by_channel, "nonfinite": int((~np.isfinite(table["rmse"])).sum())}


def rollout_section(table: Table, dt: float) -> dict[str, Any]:
    """Return the section of a rollout: means of `METRICS` and `ROLLOUT_METRICS`, correlation time and nRMSE by time.

    Args:
        dt: Physical time between two frames.
    """
    return {
        **metrics_section(table),
        **summary({name: table[name] for name in ROLLOUT_METRICS if name in table}),
        "correlation_time": float(correlation_times(table, dt).mean()),
        "nrmse_by_time": [float(value) for value in table["nrmse"].astype(np.float64).mean(0)],
    }


def steady_section(table: Table) -> dict[str, Any]:
    """Return the section of steady solutions: the entries of `metrics_section` and the mean absolute error."""
    return {**metrics_section(table), **summary({"mae": table["mae"]})}


def correlation_times(table: Table, dt: float) -> Float[np.ndarray, " n"]:
    """Return the correlation time of each rollout, in the unit of `dt`.

    Args:
        table: Metrics of the rollouts, which include `correlation`.
        dt: Physical time between two frames.
    """
    return np.asarray(correlation_time(table["correlation"], dt), np.float64)


def bootstrap_interval(values: Float[np.ndarray, " n"], resamples: int, seed: int) -> list[float]:
    """Return the 95 % bootstrap interval of the mean: its 2.5 and 97.5 % quantiles over resampled trajectories.

    Both bounds are NaN if a value is not finite.

    Args:
        values: One value per trajectory.
        resamples: Number of bootstrap resamples.
        seed: Seed of the run.
    """
    if not np.isfinite(values).all():
        return [math.nan, math.nan]
    rng = philox_generator(philox_key(seed, "evaluation/bootstrap"))
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    return [float(bound) for bound in np.quantile(means, (0.025, 0.975))]
