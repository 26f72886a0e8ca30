"""Several sources of the same grid and times as one: the trajectories of the first, then those of the next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from ups_jax.core.errors import DataError
from ups_jax.data.sources.base import Grid, Source


@dataclass(frozen=True, eq=False)
class JoinedSource:
    """Two or more sources behind one numbering. Raises `DataError` where grid, times or channels differ."""

    parts: tuple[Source, ...]

    def __post_init__(self) -> None:
        first = self.parts[0]
        for other in self.parts[1:]:
            for what, left, right in (
                ("frames", first.frames, other.frames),
                ("channels", first.channels, other.channels),
                ("space axes", len(first.grid.shape), len(other.grid.shape)),
                ("input channels", len(first.input_channels), len(other.input_channels)),
                ("grid points", first.grid.shape, other.grid.shape),
                ("dt", first.grid.dt, other.grid.dt),
                ("spacing", first.grid.spacing, other.grid.spacing),
            ):
                if not (left == right or np.allclose(left, right, rtol=1e-5, atol=0)):
                    raise DataError(
                        f"{other.name}: has {what} {right}, {first.name} has {left}; give files of one grid"
                    )

    @property
    def name(self) -> str:
        """Names of all parts."""
        return " + ".join(part.name for part in self.parts)

    @property
    def trajectories(self) -> int:
        """Number of trajectories in all parts."""
        return sum(part.trajectories for part in self.parts)

    @property
    def frames(self) -> int:
        """Frames in a trajectory."""
        return self.parts[0].frames

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.parts[0].channels

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels."""
        return self.parts[0].channel_names

    @property
    def input_channels(self) -> tuple[str, ...]:
        """Names of the given fields."""
        return self.parts[0].input_channels

    @property
    def grid(self) -> Grid:
        """The grid that all parts share."""
        return self.parts[0].grid

    def windows(self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Float32[np.ndarray, "b t *s c"]:
        """The given frames of the given trajectories."""
        result = np.empty((*frames.shape, *self.grid.shape, self.channels), np.float32)
        for part, rows, own in self._rows(ids):
            result[rows] = part.windows(own, frames[rows])
        return result

    def inputs(self, ids: Int[np.ndarray, " b"]) -> Float32[np.ndarray, "b *s i"]:
        """The given fields of the given solutions."""
        result = np.empty((len(ids), *self.grid.shape, len(self.input_channels)), np.float32)
        for part, rows, own in self._rows(ids):
            result[rows] = part.inputs(own)
        return result

    def coefficient(self, name: str) -> Float[np.ndarray, " n"] | None:
        """A value for each trajectory, NaN in a part that does not know it; None if no part does."""
        values = [part.coefficient(name) for part in self.parts]
        if all(value is None for value in values):
            return None
        return np.concatenate(
            [
                np.full(part.trajectories, np.nan) if value is None else value
                for part, value in zip(self.parts, values, strict=True)
            ]
        )

    def found_coefficients(self) -> tuple[str, ...]:
        """Names found in any part."""
        return tuple(dict.fromkeys(name for part in self.parts for name in part.found_coefficients()))

    def _rows(
        self, ids: Int[np.ndarray, " b"]
    ) -> Iterator[tuple[Source, Bool[np.ndarray, " b"], Int[np.ndarray, " r"]]]:
        """Each part that holds some of `ids`: which rows they are, and their numbers in it."""
        first = 0
        for part in self.parts:
            rows = (ids >= first) & (ids < first + part.trajectories)
            if rows.any():
                yield part, rows, ids[rows] - first
            first += part.trajectories
