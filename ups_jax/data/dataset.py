"""A task's data, open: what is known about it, its splits, and whole trajectories of each. `open` opens it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int

from ups_jax.core.task import Task
from ups_jax.data.latent_cache.cache import LatentWindows
from ups_jax.data.sources import Source
from ups_jax.data.sources.base import read_all
from ups_jax.data.sources.points import Places, Scattered
from ups_jax.data.splits import Split, Splits


@dataclass(frozen=True, eq=False, kw_only=True)
class Trajectories:
    """Whole trajectories at the frames that the model sees, in physical units; a steady solution is one frame.

    `inputs` are the given fields of steady solutions or of sets of points, with I = 0 for others. `places` are of sets
    of points.
    """

    fields: Float32[np.ndarray, "n t *s c"]
    inputs: Float32[np.ndarray, "n *s i"]
    cond: Float32[np.ndarray, "n p"]
    cond_mask: Float32[np.ndarray, "n p"]
    time: Float64[np.ndarray, " t"]
    ids: Int[np.ndarray, " n"]
    places: Places | None = None

    @property
    def place_arrays(self) -> dict[str, np.ndarray]:
        """What a batch has of places, by its names; nothing of a grid."""
        return {} if self.places is None else place_arrays(self.places, self.inputs)


def place_arrays(places: Places, inputs: Float32[np.ndarray, "n p i"]) -> dict[str, np.ndarray]:
    """The entries of a batch that only sets of points have."""
    return {"coords": places.coords, "point_mask": places.mask, "inputs": inputs}


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """One task's trajectories with what is known about them.

    `conditions` and `condition_mask` are of every trajectory, `times` of every stored frame, `change` is the mean
    relative change from each frame to the one `stride` later. `notes` are for the user to read. Where there are
    `latents`, batches have those in place of fields; whole trajectories are always fields.
    """

    task: Task
    splits: Splits
    fingerprint: str
    notes: tuple[str, ...]
    source: Source
    stride: int
    times: Float64[np.ndarray, " t"]
    conditions: Float32[np.ndarray, "n p"]
    condition_mask: Float32[np.ndarray, "n p"]
    change: Float64[np.ndarray, " r"]
    latents: LatentWindows | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """Trajectories in each split."""
        return {"train": len(self.splits.train), "val": len(self.splits.val), "test": len(self.splits.test)}

    def trajectories(self, split: Split, limit: int | None = None) -> Trajectories:
        """All trajectories of a split, or the first `limit`, every `stride`-th frame."""
        ids = self.splits.ids(split)[:limit]
        return Trajectories(
            fields=read_all(self.source, ids, self.stride),
            inputs=self.source.inputs(ids),
            cond=self.conditions[ids],
            cond_mask=self.condition_mask[ids],
            time=self.times[:: self.stride],
            ids=ids,
            places=self.source.places(ids) if isinstance(self.source, Scattered) else None,
        )
