"""Several sources with the same grid and time step, concatenated along the trajectory axis."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from ups_jax.core.errors import DataError
from ups_jax.data.sources.base import Grid, Source, frame_counts


@dataclass(frozen=True, eq=False)
class ConcatenatedSource:
    """Two or more sources as one: the trajectories of the first, then those of the second, and so on.

    The sources may have different numbers of frames. Raises `DataError` if they differ in grid, time step or number of
    channels.
    """

    sources: tuple[Source, ...]

    def __post_init__(self) -> None:
        first = self.sources[0]
        for source in self.sources[1:]:
            for quantity, expected, actual in (
                ("channels", first.channels, source.channels),
                ("space axes", len(first.grid.shape), len(source.grid.shape)),
                ("input channels", len(first.input_channels), len(source.input_channels)),
                ("grid points", first.grid.shape, source.grid.shape),
                ("dt", first.grid.dt, source.grid.dt),
                ("spacing", first.grid.spacing, source.grid.spacing),
            ):
                if not (expected == actual or np.allclose(expected, actual, rtol=1e-5, atol=0)):
                    raise DataError(
                        f"{source.name}: has {quantity} {actual}, but {first.name} has {expected}; "
                        "give files with the same grid and times"
                    )
            # An origin may be 0, so that its rounding is measured in steps.
            for axis, expected, actual, step in zip(
                first.grid.axes, first.grid.origin, source.grid.origin, first.grid.spacing, strict=True
            ):
                if not math.isclose(expected, actual, rel_tol=1e-6, abs_tol=1e-3 * step):
                    raise DataError(
                        f"{source.name}: the axis {axis} begins at {actual:g}, but that of {first.name} at "
                        f"{expected:g}; give files with the same grid and times"
                    )

    @property
    def name(self) -> str:
        """Names of all sources, joined by ` + `."""
        return " + ".join(source.name for source in self.sources)

    @property
    def trajectories(self) -> int:
        """Number of trajectories in all sources."""
        return sum(source.trajectories for source in self.sources)

    @property
    def frames(self) -> int:
        """Number of frames in each trajectory of the first source."""
        return self.sources[0].frames

    @property
    def frame_counts(self) -> Int[np.ndarray, " n"]:
        """Number of frames in each trajectory."""
        return np.concatenate([frame_counts(source) for source in self.sources])

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.sources[0].channels

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels in the first source."""
        return self.sources[0].channel_names

    @property
    def input_channels(self) -> tuple[str, ...]:
        """Names of the input fields in the first source."""
        return self.sources[0].input_channels

    @property
    def grid(self) -> Grid:
        """Grid and frame times of the first source."""
        return self.sources[0].grid

    def read(self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Float32[np.ndarray, "b t *s c"]:
        """Return the frames `frames[i]` of trajectory `ids[i]` for each window i."""
        result = np.empty((*frames.shape, *self.grid.shape, self.channels), np.float32)
        for source, rows, source_ids in self._split_by_source(ids):
            result[rows] = source.read(source_ids, frames[rows])
        return result

    def read_input_fields(self, ids: Int[np.ndarray, " b"]) -> Float32[np.ndarray, "b *s i"]:
        """Return the input fields of the trajectories `ids`."""
        result = np.empty((len(ids), *self.grid.shape, len(self.input_channels)), np.float32)
        for source, rows, source_ids in self._split_by_source(ids):
            result[rows] = source.read_input_fields(source_ids)
        return result

    def coefficient(self, name: str) -> Float[np.ndarray, " n"] | None:
        """Return the values of a coefficient, NaN where a source lacks it, or None if all sources lack it."""
        values = [source.coefficient(name) for source in self.sources]
        if all(value is None for value in values):
            return None
        return np.concatenate(
            [
                np.full(source.trajectories, np.nan) if value is None else value
                for source, value in zip(self.sources, values, strict=True)
            ]
        )

    def coefficient_names(self) -> tuple[str, ...]:
        """Return the names of the coefficients of all sources, each in the spelling of the first source that has it."""
        names: list[str] = []
        for source in self.sources:
            source_names = source.coefficient_names()
            # A file may spell a name in another case, or have two coefficients whose names differ only in case.
            previous = {name.lower() for name in names}
            lower = [name.lower() for name in source_names]
            names += [
                name
                for name in source_names
                if name not in names and (name.lower() not in previous or lower.count(name.lower()) > 1)
            ]
        return tuple(names)

    @property
    def notes(self) -> tuple[str, ...]:
        """Messages of all sources; one that several sources have names the first source and counts the others."""
        names_by_text: dict[str, list[str]] = {}
        for source in self.sources:
            for note in source.notes:
                names_by_text.setdefault(note.removeprefix(f"{source.name}: "), []).append(source.name)
        return tuple(
            f"{names[0]}{f' and {len(names) - 1} more files' if len(names) > 1 else ''}: {text}"
            for text, names in names_by_text.items()
        )

    def _split_by_source(
        self, ids: Int[np.ndarray, " b"]
    ) -> Iterator[tuple[Source, Bool[np.ndarray, " b"], Int[np.ndarray, " r"]]]:
        """Yield each source that has trajectories in `ids`, a mask of these `ids`, and their indices in the source."""
        first = 0
        for source in self.sources:
            rows = (ids >= first) & (ids < first + source.trajectories)
            if rows.any():
                yield source, rows, ids[rows] - first
            first += source.trajectories
