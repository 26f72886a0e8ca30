"""Trajectories held in memory: NumPy arrays of a library user, or a file that is small enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Float32, Int

from ups_jax.data.sources.base import Grid, Source, read_all
from ups_jax.data.sources.points import Places, Scattered


@dataclass(frozen=True, eq=False, kw_only=True)
class MemorySource:
    """Fields (N, T, *S, C) with the coefficients (N,), and for steady ones the given fields (N, *S, I), of each."""

    name: str
    grid: Grid
    fields: Float32[np.ndarray, "n t *s c"]
    coefficients: Mapping[str, Float[np.ndarray, " n"]] = field(default_factory=dict)
    channel_names: tuple[str, ...] = ()
    input_channels: tuple[str, ...] = ()
    given: Float32[np.ndarray, "n *s i"] | None = None

    @property
    def trajectories(self) -> int:
        """Number of trajectories."""
        return len(self.fields)

    @property
    def frames(self) -> int:
        """Frames in a trajectory."""
        return self.fields.shape[1]

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.fields.shape[-1]

    def windows(self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Float32[np.ndarray, "b t *s c"]:
        """The given frames of the given trajectories."""
        return self.fields[ids[:, None], frames]

    def inputs(self, ids: Int[np.ndarray, " b"]) -> Float32[np.ndarray, "b *s i"]:
        """The given fields of the given solutions."""
        return np.empty((len(ids), *self.grid.shape, 0), np.float32) if self.given is None else self.given[ids]

    def coefficient(self, name: str) -> Float[np.ndarray, " n"] | None:
        """A value for each trajectory, or None; upper and lower case are the same."""
        return {key.lower(): value for key, value in self.coefficients.items()}.get(name.lower())

    def found_coefficients(self) -> tuple[str, ...]:
        """Names of all coefficients."""
        return tuple(self.coefficients)


@dataclass(frozen=True, eq=False, kw_only=True)
class ScatteredMemory(MemorySource):
    """The same of points, with the places of all trajectories."""

    everywhere: Places

    def places(self, ids: Int[np.ndarray, " b"]) -> Places:
        """Where the points of some trajectories lie."""
        return self.everywhere.rows(ids)


def load(source: Source, declared: Sequence[str] = ()) -> MemorySource:
    """The same source with all its fields in memory, and the coefficients that it has or that are `declared`."""
    fields = np.empty((source.trajectories, source.frames, *source.grid.shape, source.channels), np.float32)
    given = np.empty((source.trajectories, *source.grid.shape, len(source.input_channels)), np.float32)
    # Piece by piece, so that at no time a second copy of the whole exists.
    for ids in np.array_split(np.arange(source.trajectories), min(source.trajectories, 16)):
        fields[ids] = read_all(source, ids)
        given[ids] = source.inputs(ids)
    coefficients = {name: source.coefficient(name) for name in (*source.found_coefficients(), *declared)}
    known = {name: values for name, values in coefficients.items() if values is not None}
    loaded = MemorySource(
        name=source.name,
        grid=source.grid,
        fields=fields,
        coefficients=known,
        channel_names=source.channel_names,
        input_channels=source.input_channels,
        given=given,
    )
    if isinstance(source, Scattered):
        return ScatteredMemory(**vars(loaded), everywhere=source.places(np.arange(source.trajectories)))
    return loaded
