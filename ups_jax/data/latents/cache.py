"""A folder of latents, opened: in memory where it fits, else read window by window through memory maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int

from ups_jax.data.latents.manifest import MEND, STORED, read_manifest, verify
from ups_jax.errors import DataError, first_line


class LatentCache:
    """The latents of a folder, held in memory in their own type where they take `room` bytes at most.

    Opening reads every byte once and compares the checksums. Raises `DataError` for any defect.
    """

    def __init__(self, path: str | Path, room: float = 0.0) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        verify(self.path, self.manifest)
        self.held = self.manifest.bytes <= room
        self._arrays = [self._open(shard.file, shard.trajectories) for shard in self.manifest.shards]

    def windows(
        self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"], width: int | None = None
    ) -> Float32[np.ndarray, "b t *n d"]:
        """The latents of the given stored frames, or the first `width` numbers of each token."""
        manifest = self.manifest
        width = manifest.width if width is None else width
        result = np.empty((*frames.shape, *manifest.tokens, width), STORED[manifest.key.dtype])
        whose, places = ids // manifest.shard_trajectories, ids % manifest.shard_trajectories
        for shard in np.unique(whose).tolist():
            own = whose == shard
            rows = places[own][:, None], frames[own] - manifest.first
            result[own] = self._arrays[shard][(*rows, ..., slice(width))]
        return as_float32(result, manifest.key.dtype)

    def _open(self, name: str, trajectories: int) -> np.ndarray:
        file = self.path / name
        try:
            array: np.ndarray = np.load(file, mmap_mode=None if self.held else "r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: cannot be read ({first_line(error)}); {MEND}") from None
        if (array.shape, array.dtype.str) != ((trajectories, *self.manifest.each), STORED[self.manifest.key.dtype]):
            raise DataError(f"{file}: holds {array.dtype} of shape {array.shape}, not what latents.json says; {MEND}")
        return array


def as_float32(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Stored numbers of a type as float32, which has all of them exactly."""
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32, copy=False)
