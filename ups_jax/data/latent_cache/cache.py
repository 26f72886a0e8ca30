"""A folder of latents, in memory where it fits and otherwise read through memory maps, and its windows for training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int

from ups_jax.core.errors import DataError, first_line
from ups_jax.data import windows
from ups_jax.data.latent_cache.manifest import MEND, STORED, read_manifest, verify


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


@dataclass(frozen=True, eq=False, kw_only=True)
class LatentWindows:
    """Windows of `context` frames, `pushed` that a pushforward may be given, and those that are scored.

    The drawing is that of fields, on the grid of tokens: on an axis that wraps the codec commutes with rolls by whole
    patches, and with no other symmetry.
    """

    cache: LatentCache
    context: int
    pushed: int

    def plan(self, plan: windows.Plan) -> windows.Plan:
        """The drawing of fields as one of latents."""
        return replace(plan, shape=self.cache.manifest.tokens, channels=1, symmetries=())

    def read(self, drawn: windows.Draw) -> dict[str, np.ndarray]:
        """`latents`, whole tokens from the end of the context on, and `targets`, the newest frame's patches after."""
        frames = drawn.frames[:, self.context - 1 :]
        given, scored = frames[:, : 1 + self.pushed], frames[:, 1 + self.pushed :]
        return {
            "latents": windows.augment(self.cache.windows(drawn.ids, given), drawn),
            "targets": windows.augment(self.cache.windows(drawn.ids, scored, self.cache.manifest.carried), drawn),
        }
