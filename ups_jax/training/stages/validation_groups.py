"""Groups of validation trajectories that are small enough to be predicted at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from ups_jax.config import Config
from ups_jax.data import Dataset
from ups_jax.data.dataset import StoredTrajectories

Group = TypeVar("Group")
# Largest size of the fields of a group: predictions and the arrays of the metrics take several times as much.
_GROUP_BYTES = 16 * 2**20


def validation_groups(
    dataset: Dataset, cfg: Config, read_group: Callable[[StoredTrajectories, Int[np.ndarray, " b"]], Group]
) -> Callable[[], Iterable[Group]]:
    """Return a function that returns all groups of the first `evaluation.val_trajectories` validation trajectories.

    All groups have the same number of trajectories. A single group is read once and stays in memory; several groups
    are read each time, one after the other.

    Args:
        read_group: Reads some rows of the trajectories, as a group.
    """
    trajectories = dataset.stored_trajectories("val", cfg.evaluation.val_trajectories)
    count, trajectory_bytes = len(trajectories.ids), 4 * math.prod(trajectories.fields.shape[1:])
    most = max(1, _GROUP_BYTES // trajectory_bytes)
    size = max(divisor for divisor in range(1, count + 1) if count % divisor == 0 and (divisor <= most or divisor == 1))
    rows = np.arange(count).reshape(-1, size)
    if len(rows) > 1:
        return lambda: (read_group(trajectories, group) for group in rows)
    groups = [read_group(trajectories, rows[0])]
    return lambda: groups


def mean_over_groups(
    measure: Callable[[Group], Mapping[str, Float[Array, ""]]], groups: Iterable[Group]
) -> dict[str, float]:
    """Return the mean of each metric over groups of equal size."""
    # Fetched before the next group is read, so that the arrays of only one group are in memory.
    metrics = [jax.device_get(measure(group)) for group in groups]
    return {name: float(np.mean([float(item[name]) for item in metrics])) for name in metrics[0]}
