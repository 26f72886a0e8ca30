"""Trajectories that come to rest, as steady solutions: what is given is the first frame, what is sought the last."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Float32, Int

from ups_jax.core.errors import DataError
from ups_jax.data.sources.base import Grid, Source


@dataclass(frozen=True, eq=False)
class SettledSource:
    """The fixed points of a source's trajectories. `limit` is the most that a last frame may differ from the one before
    it, as rms over space by channel in the rms of the trajectory's first frame about its mean, or in that of the whole
    way from first to last frame where it is more; where one differs by more whoever reads it gets a `DataError`.
    `names` are of channels that the source has no names for.
    """

    trajectories_source: Source
    names: tuple[str, ...]
    limit: float

    def __post_init__(self) -> None:
        if self.trajectories_source.frames < 3:
            raise DataError(
                f"{self.name}: has {self.trajectories_source.frames} frames a trajectory; a fixed point takes a first "
                "one and two that are alike at the end"
            )

    @property
    def name(self) -> str:
        """Name of the source."""
        return self.trajectories_source.name

    @property
    def trajectories(self) -> int:
        """Number of trajectories, which is that of solutions."""
        return self.trajectories_source.trajectories

    @property
    def frames(self) -> int:
        """A solution is one frame."""
        return 1

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.trajectories_source.channels

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels."""
        return self.trajectories_source.channel_names

    @property
    def input_channels(self) -> tuple[str, ...]:
        """Names of the first frame's channels."""
        return tuple(f"initial_{name}" for name in self.channel_names or self.names)

    @property
    def grid(self) -> Grid:
        """The source's grid, without its times."""
        return replace(self.trajectories_source.grid, start=0.0, dt=1.0)

    def windows(self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Float32[np.ndarray, "b t *s c"]:
        """The last frames of the given trajectories, the only frame that a solution has."""
        last = self.trajectories_source.frames - 1
        ends = self.trajectories_source.windows(ids, np.broadcast_to([last - 1, last], (len(ids), 2)))
        self._check(ids, self.inputs(ids), ends)
        return np.repeat(ends[:, 1:], frames.shape[1], axis=1)

    def inputs(self, ids: Int[np.ndarray, " b"]) -> Float32[np.ndarray, "b *s i"]:
        """Their first frames."""
        return self.trajectories_source.windows(ids, np.zeros((len(ids), 1), np.int64))[:, 0]

    def coefficient(self, name: str) -> Float[np.ndarray, " n"] | None:
        """A value for each trajectory, or None."""
        return self.trajectories_source.coefficient(name)

    def found_coefficients(self) -> tuple[str, ...]:
        """Names of the coefficients."""
        return self.trajectories_source.found_coefficients()

    def _check(
        self, ids: Int[np.ndarray, " b"], first: Float32[np.ndarray, "b *s c"], ends: Float32[np.ndarray, "b 2 *s c"]
    ) -> None:
        space = tuple(range(1, first.ndim - 1))
        moved = np.sqrt(np.square(ends[:, 1] - ends[:, 0]).mean(space))
        own = np.sqrt(np.square(first - first.mean(space, keepdims=True)).mean(space))
        # A start without structure has no size of its own.
        size = np.maximum(own, np.sqrt(np.square(ends[:, 1] - first).mean(space)))
        # What has no size at all came back to where it was: at rest it is only if it did not move.
        share = np.divide(moved, size, out=np.where(moved > 0, np.inf, 0.0), where=size > 0).max(-1)
        if (share > self.limit).any():
            worst = int(share.argmax())
            raise DataError(
                f"{self.name}: trajectory {int(ids[worst])} has not come to rest: its last frame differs by "
                f"{share[worst]:.3g} of its first one's size or way from the one before, `steady_tolerance` of its task allows "
                f"{self.limit:g}; simulate for longer, or raise that"
            )
