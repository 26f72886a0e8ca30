"""Declared facts against the data: conserved channels and periodic axes, and hints at those that nobody declared."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Float64, Int

from ups_jax.config import TaskConfig
from ups_jax.core.errors import ConfigError, DataError
from ups_jax.core.task import Symmetry
from ups_jax.data.sources.base import Grid

DRIFT_LIMIT = 1e-3
# The wrap-around of a periodic axis is one neighbour difference among many; shocks raise all of them alike.
EDGE_LIMIT = 3.0
# What nobody declared is pointed out only where it holds beyond doubt.
_DRIFT_HINT = 2e-4
_EDGE_HINT = 1.25


def indices(names: Sequence[str], known: Sequence[str], key: str) -> tuple[int, ...]:
    """Positions of `names` in `known`. Raises `ConfigError` that names the config key."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f", did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"key `{key}`: {name!r} is none of {', '.join(known)}{hint}")
    return tuple(known.index(name) for name in names)


def symmetries(task: TaskConfig, grid: Grid, periodic: Sequence[int]) -> tuple[Symmetry, ...]:
    """The declared symmetries by index, on a grid whose `periodic` axes are given. Raises `ConfigError` for an unknown
    name, an empty symmetry, or a swap of what is not two alike.
    """
    result = []
    for number, item in enumerate(task.symmetries):
        key = f"data.tasks.{task.name}.symmetries.{number}"
        if not (item.reflect or item.negate or item.swap or item.swap_channels):
            raise ConfigError(f"key `{key}`: is empty; name the axes to reflect or swap or the channels to negate")
        symmetry = Symmetry(
            reflect=indices(item.reflect, grid.axes, f"{key}.reflect"),
            negate=indices(item.negate, task.channels, f"{key}.negate"),
            swap=indices(item.swap, grid.axes, f"{key}.swap"),
            swap_channels=indices(item.swap_channels, task.channels, f"{key}.swap_channels"),
        )
        for name, pair in (("swap", symmetry.swap), ("swap_channels", symmetry.swap_channels)):
            if pair and (len(pair) != 2 or pair[0] == pair[1]):
                raise ConfigError(f"key `{key}.{name}`: names two to swap, not {list(getattr(item, name))}")
        if symmetry.swap and not _alike(grid, periodic, *symmetry.swap):
            raise ConfigError(f"key `{key}.swap`: the axes differ in their points, spacing or periodicity")
        result.append(symmetry)
    return tuple(result)


def _alike(grid: Grid, periodic: Sequence[int], first: int, second: int) -> bool:
    same = grid.shape[first] == grid.shape[second] and (first in periodic) == (second in periodic)
    return same and math.isclose(grid.spacing[first], grid.spacing[second], rel_tol=1e-5)


class Drift:
    """Largest drift of each channel's spatial mean from its value in the first frame, over training trajectories."""

    def __init__(self, channels: int) -> None:
        self._drift = np.zeros(channels)
        self._trajectory = np.zeros(channels, np.int64)

    def update(self, ids: Int[np.ndarray, " n"], fields: Float[np.ndarray, "n t *s c"]) -> None:
        """Take in training trajectories."""
        means = fields.mean(axis=tuple(range(2, fields.ndim - 1)), dtype=np.float64)
        drift = np.abs(means - means[:, :1]).max(axis=1)
        worst = drift.argmax(axis=0)
        largest = drift.max(axis=0)
        self._trajectory = np.where(largest > self._drift, ids[worst], self._trajectory)
        self._drift = np.maximum(largest, self._drift)

    def check(
        self, task: TaskConfig, name: str, conserved: Sequence[int], rms: Float64[np.ndarray, " c"]
    ) -> Iterator[str]:
        """Raise `DataError` if a conserved channel drifts; otherwise hints at channels that could be declared."""
        relative = self._drift / rms
        for channel in conserved:
            if relative[channel] > DRIFT_LIMIT:
                raise DataError(
                    f"{name}: channel {task.channels[channel]} is declared conserved, but its spatial mean drifts by "
                    f"{relative[channel]:.2g} of its rms in trajectory {self._trajectory[channel]} "
                    f"(limit {DRIFT_LIMIT:g}); take it out of data.tasks.{task.name}.conserved"
                )
        for channel, value in enumerate(relative):
            if value <= _DRIFT_HINT and channel not in conserved:
                names = [task.channels[index] for index in sorted((*conserved, channel))]
                yield (
                    f"the spatial mean of {task.channels[channel]} is constant (drift {value:.1g} of its rms): if it "
                    f"must be, say so with data.tasks.{task.name}.conserved=[{', '.join(names)}]"
                )


class Edges:
    """Mean square of the difference of each pair of neighbours along each axis, the wrap-around pair last."""

    def __init__(self, shape: Sequence[int], channels: int) -> None:
        self._squares = [np.zeros((points, channels)) for points in shape]

    def update(self, fields: Float[np.ndarray, "n t *s c"]) -> None:
        """Take in training trajectories."""
        for axis, squares in enumerate(self._squares):
            others = tuple(index for index in range(fields.ndim - 1) if index != 2 + axis)
            squares[:-1] += np.square(np.diff(fields, axis=2 + axis), dtype=np.float64).sum(axis=others)
            jump = fields.take(0, axis=2 + axis) - fields.take(-1, axis=2 + axis)
            squares[-1] += np.square(jump, dtype=np.float64).sum(axis=tuple(range(jump.ndim - 1)))

    def check(self, task: TaskConfig, name: str, axes: Sequence[str], periodic: Sequence[int]) -> Iterator[str]:
        """Raise `DataError` if a periodic axis does not close; otherwise hints at axes that could be declared."""
        for axis, squares in enumerate(self._squares):
            rms = np.sqrt(squares)
            inside, wrap = rms[:-1], rms[-1]
            varies = inside.max(axis=0) > 0
            if not varies.any():
                continue
            key = f"data.tasks.{task.name}.periodic"
            to_largest = (wrap[varies] / inside.max(axis=0)[varies]).max()
            to_typical = wrap[varies] / np.median(inside, axis=0)[varies].clip(min=np.finfo(float).tiny)
            if axis in periodic:
                if to_largest > EDGE_LIMIT:
                    raise DataError(
                        f"{name}: axis {axes[axis]} is declared periodic, but the jump over its ends "
                        f"is {to_largest:.2g} times the largest between neighbours inside (limit {EDGE_LIMIT:g}); "
                        f"take it out of {key}"
                    )
                if (to_typical < 1e-4).all():
                    raise DataError(
                        f"{name}: axis {axes[axis]} is declared periodic and holds its first point at both ends; "
                        f"store the grid without its last point, or take it out of {key}"
                    )
            elif (to_typical > 1 / _EDGE_HINT).all() and (to_typical < _EDGE_HINT).all():
                names = [axes[index] for index in sorted((*periodic, axis))]
                yield f"axis {axes[axis]} looks periodic: if it is, say so with {key}=[{', '.join(names)}]"
