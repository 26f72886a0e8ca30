"""Where the points of a set lie, row by row, and which of them are there: what a grid has no need of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int

from ups_jax.data.sources.base import AXES, Grid


@dataclass(frozen=True, eq=False, kw_only=True)
class Places:
    """Physical coordinates, and 1 for each point that is there; the others fill a row up.

    Points that move have no coordinates here (D = 0): theirs are channels of the fields.
    """

    coords: Float32[np.ndarray, "b p d"]
    mask: Float32[np.ndarray, "b p"]

    def rows(self, rows: Int[np.ndarray, " r"] | slice) -> Places:
        """Those of some rows."""
        return Places(coords=self.coords[rows], mask=self.mask[rows])


@dataclass(frozen=True, kw_only=True)
class Cloud(Grid):
    """The times of a set of at most `shape[0]` points in a box with its lower corner at `origin` and sides `box`.

    `spacing` is what a regular grid of as many points would have. Where the points move, `moving` are the names of the
    channels that are their coordinates. `measured` is a box that the data do not state: that of their points.
    """

    box: tuple[float, ...]
    measured: bool = False
    moving: tuple[str, ...] = ()

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes of the box."""
        return AXES[: len(self.box)]


@runtime_checkable
class Scattered(Protocol):
    """A source whose grid is a `Cloud`."""

    def places(self, ids: Int[np.ndarray, " b"]) -> Places:
        """Where the points of some trajectories lie."""
        ...


def spacing_of(box: tuple[float, ...], points: int) -> tuple[float, ...]:
    """The distance of neighbours on a regular grid of so many points, the same on every axis."""
    return (float(np.prod(box) / points) ** (1 / len(box)),) * len(box)
