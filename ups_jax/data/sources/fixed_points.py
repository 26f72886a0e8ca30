"""Steady solutions from trajectories that reach a steady state: the first frame is the input, the last the solution."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Float32, Int

from ups_jax.core.errors import DataError
from ups_jax.data.sources.base import Grid, Source


@dataclass(frozen=True, eq=False)
class SteadyStateSource:
    """The steady states that a source's trajectories reach, with their first frames as input fields.

    Reading a trajectory raises `DataError` if its last two frames differ by more than `tolerance`. The difference is
    an rms over space, for each channel, relative to the trajectory's scale: the larger of the rms of the first frame
    about its mean and the rms change from the first to the last frame.

    Attributes:
        source: The trajectories.
        fallback_names: Channel names, used if the source has none.
        tolerance: Largest relative difference of the last two frames.
    """

    source: Source
    fallback_names: tuple[str, ...]
    tolerance: float

    def __post_init__(self) -> None:
        if self.source.frames < 3:
            raise DataError(
                f"{self.name}: has {self.source.frames} frames in each trajectory; steady states need at least 3: a "
                "first frame and two equal last ones"
            )

    @property
    def name(self) -> str:
        """Name of the source in messages."""
        return self.source.name

    @property
    def trajectories(self) -> int:
        """Number of trajectories, and so of solutions."""
        return self.source.trajectories

    @property
    def frames(self) -> int:
        """Number of frames of a solution: 1."""
        return 1

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.source.channels

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels."""
        return self.source.channel_names

    @property
    def input_channels(self) -> tuple[str, ...]:
        """Names of the input fields: `initial_` and the name of the channel."""
        return tuple(f"initial_{name}" for name in self.channel_names or self.fallback_names)

    @property
    def grid(self) -> Grid:
        """The source's grid, with a start of 0 and a step of 1 in place of its times."""
        return replace(self.source.grid, start=0.0, dt=1.0)

    def windows(self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Float32[np.ndarray, "b t *s c"]:
        """Return the last frames of the trajectories `ids`, which must be steady; `frames` is ignored."""
        last = self.source.frames - 1
        last_two = self.source.windows(ids, np.broadcast_to([last - 1, last], (len(ids), 2)))
        self._check_steady(ids, self.inputs(ids), last_two)
        return np.repeat(last_two[:, 1:], frames.shape[1], axis=1)

    def inputs(self, ids: Int[np.ndarray, " b"]) -> Float32[np.ndarray, "b *s i"]:
        """Return the first frames of the trajectories `ids`."""
        return self.source.windows(ids, np.zeros((len(ids), 1), np.int64))[:, 0]

    def coefficient(self, name: str) -> Float[np.ndarray, " n"] | None:
        """Return a coefficient's value for every trajectory, or None if the source lacks it."""
        return self.source.coefficient(name)

    def coefficient_names(self) -> tuple[str, ...]:
        """Return the names of the coefficients."""
        return self.source.coefficient_names()

    def _check_steady(
        self,
        ids: Int[np.ndarray, " b"],
        first: Float32[np.ndarray, "b *s c"],
        last_two: Float32[np.ndarray, "b 2 *s c"],
    ) -> None:
        """Raise `DataError` if the last two frames of a trajectory differ by more than the tolerance."""
        space = tuple(range(1, first.ndim - 1))
        change = np.sqrt(np.square(last_two[:, 1] - last_two[:, 0]).mean(space))
        first_rms = np.sqrt(np.square(first - first.mean(space, keepdims=True)).mean(space))
        # The rms of a constant first frame is 0, hence the change from first to last frame.
        scale = np.maximum(first_rms, np.sqrt(np.square(last_two[:, 1] - first).mean(space)))
        # A scale of 0 means that the last frame equals the first, constant one: steady only without a change.
        ratio = np.divide(change, scale, out=np.where(change > 0, np.inf, 0.0), where=scale > 0).max(-1)
        if (ratio > self.tolerance).any():
            worst = int(ratio.argmax())
            raise DataError(
                f"{self.name}: trajectory {int(ids[worst])} has not come to rest: its last two frames differ by "
                f"{ratio[worst]:.3g} of its scale, but `steady_tolerance` of the task is {self.tolerance:g}; simulate "
                "for longer, or raise `steady_tolerance`"
            )
