"""Trajectories in memory: NumPy arrays of a library user, or a data file that is small enough to be loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Float32, Int

from ups_jax.data.sources.base import Grid, Source, match_name, read_trajectories
from ups_jax.data.sources.concatenated import ConcatenatedSource
from ups_jax.data.sources.points import PointSet, ScatteredSource


@dataclass(frozen=True, eq=False, kw_only=True)
class MemorySource:
    """A source whose fields are NumPy arrays.

    Attributes:
        fields: All frames of all trajectories.
        coefficients: Coefficients by name, one number for each trajectory.
        channel_names: Names of the channels; empty if they have none.
        input_channels: Names of the `input_fields`.
        input_fields: The input fields of a steady task; None if there are none.
        notes: Messages for the user about how the fields were read.
    """

    name: str
    grid: Grid
    fields: Float32[np.ndarray, "n t *s c"]
    coefficients: Mapping[str, Float[np.ndarray, " n"]] = field(default_factory=dict)
    channel_names: tuple[str, ...] = ()
    input_channels: tuple[str, ...] = ()
    input_fields: Float32[np.ndarray, "n *s i"] | None = None
    notes: tuple[str, ...] = ()

    @property
    def trajectories(self) -> int:
        """Number of trajectories."""
        return len(self.fields)

    @property
    def frames(self) -> int:
        """Number of frames in each trajectory."""
        return self.fields.shape[1]

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.fields.shape[-1]

    def read(self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Float32[np.ndarray, "b t *s c"]:
        """Return the frames `frames[i]` of trajectory `ids[i]` for each window i."""
        return self.fields[ids[:, None], frames]

    def read_input_fields(self, ids: Int[np.ndarray, " b"]) -> Float32[np.ndarray, "b *s i"]:
        """Return the input fields of the trajectories `ids`."""
        if self.input_fields is None:
            return np.empty((len(ids), *self.grid.shape, 0), np.float32)
        return self.input_fields[ids]

    def coefficient(self, name: str) -> Float[np.ndarray, " n"] | None:
        """Return a coefficient's values for all trajectories, or None if it is missing; see `match_name`."""
        match = match_name(self.name, name, self.coefficients)
        return None if match is None else self.coefficients[match]

    def coefficient_names(self) -> tuple[str, ...]:
        """Return the names of all coefficients."""
        return tuple(self.coefficients)


@dataclass(frozen=True, eq=False, kw_only=True)
class ScatteredMemorySource(MemorySource):
    """A `MemorySource` of fields at scattered points; `all_points` are the points of all trajectories."""

    all_points: PointSet

    def points(self, ids: Int[np.ndarray, " b"]) -> PointSet:
        """Return the points of the trajectories `ids`."""
        return self.all_points.select_rows(ids)


def load_into_memory(source: Source, extra_coefficients: Sequence[str] = ()) -> MemorySource | ConcatenatedSource:
    """Read a source into memory; the result is a `ScatteredMemorySource` if the source has scattered points.

    Files with different numbers of frames are read into an array each. Coefficients are those in
    `source.coefficient_names()` and in `extra_coefficients`.
    """
    if isinstance(source, ConcatenatedSource) and len(np.unique(source.frame_counts)) > 1:
        return ConcatenatedSource(tuple(load_into_memory(part, extra_coefficients) for part in source.sources))
    fields = np.empty((source.trajectories, source.frames, *source.grid.shape, source.channels), np.float32)
    input_fields = np.empty((source.trajectories, *source.grid.shape, len(source.input_channels)), np.float32)
    # In 16 pieces, so that memory never has a second copy of all fields.
    for ids in np.array_split(np.arange(source.trajectories), min(source.trajectories, 16)):
        fields[ids] = read_trajectories(source, ids)
        input_fields[ids] = source.read_input_fields(ids)
    names = source.coefficient_names()
    extra = [name for name in extra_coefficients if match_name(source.name, name, names) is None]
    coefficients = {name: source.coefficient(name) for name in (*names, *extra)}
    loaded = MemorySource(
        name=source.name,
        grid=source.grid,
        fields=fields,
        coefficients={name: values for name, values in coefficients.items() if values is not None},
        channel_names=source.channel_names,
        input_channels=source.input_channels,
        input_fields=input_fields,
        notes=source.notes,
    )
    if isinstance(source, ScatteredSource):
        return ScatteredMemorySource(**vars(loaded), all_points=source.points(np.arange(source.trajectories)))
    return loaded
