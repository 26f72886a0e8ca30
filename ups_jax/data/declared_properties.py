"""Checks of the properties that a task declares (conserved channels, periodic axes), and hints at undeclared ones.

For symmetries, only the names are checked here; `symmetry_check` tests them on the data.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Float64, Int

from ups_jax.config import TaskConfig
from ups_jax.core.errors import ConfigError, DataError
from ups_jax.core.task import Symmetry
from ups_jax.data.scan import ScanRecord
from ups_jax.data.sources.base import Grid

# Limit of the drift of a conserved mean, in standard deviations of the channel.
DRIFT_LIMIT = 1e-3
# A wrap-around jump up to this multiple of the largest jump between neighbours inside counts as periodic; a shock
# raises both alike.
EDGE_LIMIT = 3.0
# Tighter limits for hints: an undeclared property is reported only when the data leave little doubt.
_DRIFT_HINT = 2e-4
_EDGE_HINT = 1.25
# A channel whose standard deviation is below this fraction of its mean gives no hint.
_FLAT = 1e-3


def name_indices(names: Sequence[str], allowed: Sequence[str], key: str) -> tuple[int, ...]:
    """Return the position of each name in `allowed`.

    Raise `ConfigError` about the configuration key `key` if a name is not in `allowed`.
    """
    for name in names:
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else "correct the name"
            raise ConfigError(f"key `{key}`: {name!r} is not one of {', '.join(allowed)}; {hint}")
    return tuple(allowed.index(name) for name in names)


def resolve_symmetries(task_cfg: TaskConfig, grid: Grid, periodic: Sequence[int]) -> tuple[Symmetry, ...]:
    """Return the declared symmetries of a task, with axis and channel names replaced by indices.

    Args:
        periodic: Indices of the periodic axes.

    Raises:
        ConfigError: A name does not exist, a symmetry is empty, a swap does not name two different axes or channels, or
            two swapped axes differ in number of points, spacing or periodicity.
    """
    result = []
    for number, item in enumerate(task_cfg.symmetries):
        key = f"data.tasks.{task_cfg.name}.symmetries.{number}"
        if not (item.reflect or item.negate or item.swap or item.swap_channels):
            raise ConfigError(f"key `{key}`: is empty; list axes to reflect or swap, or channels to negate or swap")
        symmetry = Symmetry(
            reflect=name_indices(item.reflect, grid.axes, f"{key}.reflect"),
            negate=name_indices(item.negate, task_cfg.channels, f"{key}.negate"),
            swap=name_indices(item.swap, grid.axes, f"{key}.swap"),
            swap_channels=name_indices(item.swap_channels, task_cfg.channels, f"{key}.swap_channels"),
        )
        for name, pair in (("swap", symmetry.swap), ("swap_channels", symmetry.swap_channels)):
            if pair and (len(pair) != 2 or pair[0] == pair[1]):
                raise ConfigError(f"key `{key}.{name}`: is {list(getattr(item, name))}; give two different names")
        if symmetry.swap and not _can_swap(grid, periodic, *symmetry.swap):
            raise ConfigError(
                f"key `{key}.swap`: the axes differ in number of points, spacing or periodicity; remove the swap"
            )
        result.append(symmetry)
    return tuple(result)


def _can_swap(grid: Grid, periodic: Sequence[int], first: int, second: int) -> bool:
    """Return whether two axes have the same number of points, the same periodicity and the same spacing."""
    same = grid.shape[first] == grid.shape[second] and (first in periodic) == (second in periodic)
    return same and math.isclose(grid.spacing[first], grid.spacing[second], rel_tol=1e-5)


def check_drift(
    task_cfg: TaskConfig,
    source_name: str,
    conserved: Sequence[int],
    std: Float64[np.ndarray, " c"],
    record: ScanRecord,
    ids: Int[np.ndarray, " m"],
    hint_ids: Int[np.ndarray, " h"],
) -> Iterator[str]:
    """Check the channels that are declared conserved, and yield a hint for each other channel that seems conserved.

    The drift of a channel is the largest change of its spatial mean since the first frame.

    Args:
        task_cfg: The task, for messages.
        source_name: Name of the data in messages.
        conserved: Indices of the channels that are declared conserved.
        std: Standard deviation of each channel, the scale of a drift; unlike the rms it does not contain the mean, so
            that 300 K is no different from 27 degrees Celsius.
        record: Record of all trajectories.
        ids: Trajectories on which the declaration is checked.
        hint_ids: Trajectories from which hints are derived; without any there are no hints.

    Raises:
        DataError: A channel declared conserved drifts by more than `DRIFT_LIMIT` of its standard deviation and by
            more than the rounding of its values to float32 explains.
    """
    if len(ids):
        drift, largest_mean = _drifts_and_largest_mean(record.select(ids).means)
        # The standard deviation of this difference is 0.4 eps |mean| / sqrt(points) if all values of a large mean are
        # rounded to float32 independently; five of them are allowed.
        rounding = 2 * np.finfo(np.float32).eps * largest_mean / math.sqrt(record.points[ids].min())
        for channel in conserved:
            worst = int(drift[:, channel].argmax())
            if drift[worst, channel] > DRIFT_LIMIT * std[channel] + rounding[channel]:
                relative = drift[worst, channel] / std[channel]
                raise DataError(
                    f"{source_name}: channel {task_cfg.channels[channel]} is declared conserved, but its spatial mean "
                    f"drifts by {relative:.2g} of its standard deviation in trajectory {ids[worst]} "
                    f"(limit {DRIFT_LIMIT:g}); remove the channel from `data.tasks.{task_cfg.name}.conserved`"
                )
    if len(hint_ids):
        drift, largest_mean = _drifts_and_largest_mean(record.select(hint_ids).means)
        # A channel without variation says nothing about its equation.
        seems_conserved = (std > _FLAT * largest_mean) & (drift.max(axis=0) <= _DRIFT_HINT * std)
        for channel in np.flatnonzero(seems_conserved).tolist():
            if channel not in conserved:
                names = [task_cfg.channels[index] for index in sorted((*conserved, channel))]
                yield (
                    f"the spatial mean of {task_cfg.channels[channel]} is constant to {_DRIFT_HINT:g} of its standard "
                    f"deviation: if the equation conserves it, set data.tasks.{task_cfg.name}.conserved="
                    f"[{', '.join(names)}]"
                )


def _drifts_and_largest_mean(
    means: Float64[np.ndarray, "m t c"],
) -> tuple[Float64[np.ndarray, "m c"], Float64[np.ndarray, " c"]]:
    """Return the drift of each channel in each trajectory, and the largest absolute spatial mean of each channel."""
    return np.abs(means - means[:, :1]).max(axis=1), np.abs(means).max(axis=(0, 1))


class NeighbourDifferences:
    """An accumulator of squared differences between neighbouring points, summed for each position along each axis.

    The last position is the pair of end points, which are neighbours if the axis is periodic.
    """

    def __init__(self, shape: Sequence[int], channels: int) -> None:
        self._squares = [np.zeros((points, channels)) for points in shape]

    def update(self, fields: Float[np.ndarray, "n t *s c"]) -> None:
        """Add the squared differences between neighbouring points of further trajectories to the sums."""
        for axis, squares in enumerate(self._squares):
            other_axes = tuple(index for index in range(fields.ndim - 1) if index != 2 + axis)
            squares[:-1] += np.square(np.diff(fields, axis=2 + axis), dtype=np.float64).sum(axis=other_axes)
            jump = fields.take(0, axis=2 + axis) - fields.take(-1, axis=2 + axis)
            squares[-1] += np.square(jump, dtype=np.float64).sum(axis=tuple(range(jump.ndim - 1)))

    def check(
        self, task_cfg: TaskConfig, source_name: str, axes: Sequence[str], periodic: Sequence[int]
    ) -> Iterator[str]:
        """Check the axes that are declared periodic, and yield a hint for each other axis that seems periodic.

        Args:
            task_cfg: The task, for messages.
            source_name: Name of the data in messages.
            axes: Names of the axes.
            periodic: Indices of the axes that are declared periodic.

        Raises:
            DataError: The field jumps across the ends of an axis declared periodic, or its last point repeats the
                first one.
        """
        for axis, squares in enumerate(self._squares):
            rms = np.sqrt(squares)
            inside, wrap = rms[:-1], rms[-1]
            varies = inside.max(axis=0, initial=0.0) > 0
            if not varies.any():
                continue
            key = f"data.tasks.{task_cfg.name}.periodic"
            to_largest = (wrap[varies] / inside.max(axis=0)[varies]).max()
            to_typical = wrap[varies] / np.median(inside, axis=0)[varies].clip(min=np.finfo(float).tiny)
            if axis in periodic:
                if to_largest > EDGE_LIMIT:
                    raise DataError(
                        f"{source_name}: axis {axes[axis]} is declared periodic, but the jump across its ends is "
                        f"{to_largest:.2g} times the largest jump between neighbouring points (limit {EDGE_LIMIT:g}); "
                        f"remove the axis from `{key}`"
                    )
                if (to_typical < 1e-4).all():
                    raise DataError(
                        f"{source_name}: axis {axes[axis]} is declared periodic, but its last point repeats the first "
                        f"one; store the grid without its last point, or remove the axis from `{key}`"
                    )
            elif len(rms) > 2 and (to_typical > 1 / _EDGE_HINT).all() and (to_typical < _EDGE_HINT).all():
                names = [axes[index] for index in sorted((*periodic, axis))]
                yield f"axis {axes[axis]} looks periodic: if it is, set {key}=[{', '.join(names)}]"
