"""The dataset of one task, and the whole trajectories that it returns. `ups_jax.data.open` opens datasets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int

from ups_jax.core.task import Task
from ups_jax.data.latent_cache.cache import LatentWindows
from ups_jax.data.scan import ScanRecord, is_former_fingerprint
from ups_jax.data.sources import Source
from ups_jax.data.sources.base import read_trajectories
from ups_jax.data.sources.points import PointSet, ScatteredSource
from ups_jax.data.splits import Split, Splits


@dataclass(frozen=True, eq=False, kw_only=True)
class Trajectories:
    """Whole trajectories in physical units, at the frames that the model steps through; one frame for a steady task.

    Attributes:
        fields: Fields of each trajectory and frame.
        inputs: Input fields of steady tasks and of point clouds; for other tasks, an array without channels.
        cond: PDE coefficients of each trajectory.
        cond_mask: 1 where the value of the coefficient is available.
        time: Time of each frame.
        ids: Index of each trajectory in its source.
        points: Coordinates and mask of the points; None on a grid.
    """

    fields: Float32[np.ndarray, "n t *s c"]
    inputs: Float32[np.ndarray, "n *s i"]
    cond: Float32[np.ndarray, "n p"]
    cond_mask: Float32[np.ndarray, "n p"]
    time: Float64[np.ndarray, " t"]
    ids: Int[np.ndarray, " n"]
    points: PointSet | None = None

    @property
    def point_arrays(self) -> dict[str, np.ndarray]:
        """The arrays `coords`, `point_mask` and `inputs` of a point cloud, by name; empty on a grid."""
        return {} if self.points is None else point_arrays(self.points, self.inputs)


def point_arrays(points: PointSet, inputs: Float32[np.ndarray, "n p i"]) -> dict[str, np.ndarray]:
    """Return `coords`, `point_mask` and `inputs`, the arrays that describe the points of a batch, by name."""
    return {"coords": points.coords, "point_mask": points.mask, "inputs": inputs}


@dataclass(frozen=True, eq=False, kw_only=True)
class StoredRows:
    """An array with a row for each trajectory that is not in memory: indexing with row numbers reads these rows.

    Attributes:
        shape: Shape of the array.
        read: Returns the rows of trajectories by their index in the source.
        ids: Index of the trajectory of each row in the source.
    """

    shape: tuple[int, ...]
    read: Callable[[Int[np.ndarray, " b"]], np.ndarray]
    ids: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Int[np.ndarray, " b"] | list[int]) -> np.ndarray:
        return self.read(self.ids[rows])


@dataclass(frozen=True, eq=False, kw_only=True)
class StoredTrajectories:
    """The trajectories of a split with the attributes of `Trajectories`, whose large arrays are read row by row."""

    fields: StoredRows
    inputs: StoredRows
    cond: Float32[np.ndarray, "n p"]
    cond_mask: Float32[np.ndarray, "n p"]
    time: Float64[np.ndarray, " t"]
    ids: Int[np.ndarray, " n"]
    point_arrays: dict[str, StoredRows]


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """The trajectories of one task, which have been checked, with their splits and statistics.

    Attributes:
        task: The task, with statistics of the training split or of a trained model.
        splits: Ids of the training, validation and test trajectories.
        fingerprint: Hash of the data and splits, 32 characters.
        former_fingerprint: Returns the fingerprint with some splits that earlier versions recorded, after reading all
            data.
        record: Sums and hashes of each trajectory.
        notes: Messages for the user about the data.
        source: Reader of all trajectories.
        stride: Model step in stored frames: the model steps through every `stride`-th frame.
        times: Time of each stored frame of the longest trajectories.
        conditions: PDE coefficients of each trajectory.
        condition_mask: 1 where the value of the coefficient is available.
        relative_change: Mean relative change of the field from each stored frame to the one `stride` later.
        latents: Cached latents, which batches contain instead of fields; None for batches of fields.
    """

    task: Task
    splits: Splits
    fingerprint: str
    former_fingerprint: Callable[[Splits], str]
    record: ScanRecord
    notes: tuple[str, ...]
    source: Source
    stride: int
    times: Float64[np.ndarray, " t"]
    conditions: Float32[np.ndarray, "n p"]
    condition_mask: Float32[np.ndarray, "n p"]
    relative_change: Float64[np.ndarray, " r"]
    latents: LatentWindows | None = None

    @property
    def split_sizes(self) -> dict[str, int]:
        """The number of trajectories in the splits `train`, `val` and `test`."""
        return {"train": len(self.splits.train), "val": len(self.splits.val), "test": len(self.splits.test)}

    def frames(self, split: Split) -> int:
        """Return the number of stored frames in each trajectory of a split."""
        return int(self.record.frames[self.splits.ids(split)[0]])

    def fingerprint_like(self, recorded: str) -> str:
        """Return the fingerprint in the version of a recorded one, so that the two can be compared."""
        return self.former_fingerprint(self.splits) if is_former_fingerprint(recorded) else self.fingerprint

    def trajectories(self, split: Split, limit: int | None = None) -> Trajectories:
        """Return the trajectories of a split, or only the first `limit`, at every `stride`-th stored frame."""
        ids = self.splits.ids(split)[:limit]
        return Trajectories(
            fields=read_trajectories(self.source, ids, self.stride),
            inputs=self.source.read_input_fields(ids),
            cond=self.conditions[ids],
            cond_mask=self.condition_mask[ids],
            time=self.times[: self.frames(split) : self.stride],
            ids=ids,
            points=self.source.points(ids) if isinstance(self.source, ScatteredSource) else None,
        )

    def stored_trajectories(
        self, split: Split, limit: int | None = None, frames: int | None = None
    ) -> StoredTrajectories:
        """Return the trajectories of a split, as `trajectories` does, without reading them.

        Args:
            limit: Number of trajectories, from the first on; all by default.
            frames: Number of frames, from the first on; all by default.
        """
        ids, source = self.splits.ids(split)[:limit], self.source
        time = self.times[: self.frames(split) : self.stride][:frames]
        count, grid_shape = len(ids), source.grid.shape

        def rows(shape: tuple[int, ...], read: Callable[[Int[np.ndarray, " b"]], np.ndarray]) -> StoredRows:
            return StoredRows(shape=(count, *shape), read=read, ids=ids)

        stored_frames = self.stride * np.arange(len(time))
        inputs = rows((*grid_shape, len(source.input_channels)), source.read_input_fields)
        points: dict[str, StoredRows] = {}
        if isinstance(source, ScatteredSource):
            axes = 0 if self.task.moving else len(self.task.axes)
            points = {
                "coords": rows((*grid_shape, axes), lambda ids: source.points(ids).coords),
                "point_mask": rows(grid_shape, lambda ids: source.points(ids).mask),
                "inputs": inputs,
            }
        return StoredTrajectories(
            fields=rows(
                (len(time), *grid_shape, source.channels),
                lambda ids: source.read(ids, np.broadcast_to(stored_frames, (len(ids), len(stored_frames)))),
            ),
            inputs=inputs,
            cond=self.conditions[ids],
            cond_mask=self.condition_mask[ids],
            time=time,
            ids=ids,
            point_arrays=points,
        )
