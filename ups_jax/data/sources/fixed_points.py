"""Steady solutions from trajectories that reach a steady state: the first frame is the input, the last the solution."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Int

from ups_jax.core.errors import DataError
from ups_jax.data.sources.base import Grid, WrappedSource


@dataclass(frozen=True, eq=False)
class SteadyStateSource(WrappedSource):
    """The steady states that a source's trajectories reach, with the first frames as input fields.

    Reading a trajectory raises `DataError` unless its last two frames are equal up to a tolerance. Their difference is
    measured for each channel as an rms over space, and divided by the larger of two scales: the standard deviation of
    the first frame over space, and the rms difference between the first and the last frame.

    Attributes:
        fallback_names: Names of the channels if the source does not name them.
        tolerance: Largest allowed difference between the last two frames, divided by the scale.
    """

    fallback_names: tuple[str, ...]
    tolerance: float

    def __post_init__(self) -> None:
        if self.source.frames < 3:
            raise DataError(
                f"{self.name}: has {self.source.frames} frames in each trajectory; give at least 3: the input, and two "
                "equal frames of the steady state"
            )

    @property
    def frames(self) -> int:
        """1, the number of frames in a solution."""
        return 1

    @property
    def input_channels(self) -> tuple[str, ...]:
        """Names of the input fields: `initial_` followed by the name of each channel."""
        return tuple(f"initial_{name}" for name in self.channel_names or self.fallback_names)

    @property
    def grid(self) -> Grid:
        """The grid of the source, with start time 0 and time step 1."""
        return replace(self.source.grid, start=0.0, dt=1.0)

    def read(self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Float32[np.ndarray, "b t *s c"]:
        """Return the last frames of the trajectories `ids`, repeated along time as often as there are `frames`."""
        last = self.source.frames - 1
        last_two = self.source.read(ids, np.broadcast_to([last - 1, last], (len(ids), 2)))
        self._check_steady(ids, self.read_input_fields(ids), last_two)
        return np.repeat(last_two[:, 1:], frames.shape[1], axis=1)

    def read_input_fields(self, ids: Int[np.ndarray, " b"]) -> Float32[np.ndarray, "b *s i"]:
        """Return the first frames of the trajectories `ids`."""
        return self.source.read(ids, np.zeros((len(ids), 1), np.int64))[:, 0]

    def _check_steady(
        self,
        ids: Int[np.ndarray, " b"],
        first_frames: Float32[np.ndarray, "b *s c"],
        last_two_frames: Float32[np.ndarray, "b 2 *s c"],
    ) -> None:
        """Raise `DataError` if the last two frames of a trajectory differ by more than the tolerance."""
        # In float64, because squares of physical values can exceed the range of float32.
        first, before_last, last = (
            frames.astype(np.float64) for frames in (first_frames, last_two_frames[:, 0], last_two_frames[:, 1])
        )
        space = tuple(range(1, first.ndim - 1))
        change = np.sqrt(np.square(last - before_last).mean(space))
        # The standard deviation of a constant first frame is 0, hence the change from first to last frame.
        scale = np.maximum(first.std(space), np.sqrt(np.square(last - first).mean(space)))
        # A scale of 0 means that the last frame equals the first, constant one: steady only without a change.
        ratio = np.divide(change, scale, out=np.where(change > 0, np.inf, 0.0), where=scale > 0).max(-1)
        if (ratio > self.tolerance).any():
            worst = int(ratio.argmax())
            raise DataError(
                f"{self.name}: trajectory {int(ids[worst])} does not end in a steady state: its last two frames have a "
                f"relative difference of {ratio[worst]:.3g}, more than the `steady_tolerance` {self.tolerance:g} of "
                "the task; simulate for longer, or raise `steady_tolerance`"
            )
