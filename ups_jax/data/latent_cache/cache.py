"""Cached latents of a folder, in memory or memory-mapped, and the windows of them that a training reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int

from ups_jax.core.errors import DataError, first_line
from ups_jax.data import windows
from ups_jax.data.latent_cache.manifest import HINT, STORED_DTYPES, read_manifest, verify


class LatentCache:
    """The latents of a folder. They are loaded into memory if they fit, otherwise read through memory maps.

    Opening compares the checksum of every shard.

    Args:
        path: The folder.
        memory_bytes: Largest size that is loaded into memory, in the stored type.

    Attributes:
        manifest: Manifest of the folder.
        in_memory: Whether the latents are in memory.

    Raises:
        DataError: The folder is incomplete or damaged.
    """

    def __init__(self, path: str | Path, memory_bytes: float = 0.0) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        verify(self.path, self.manifest)
        self.in_memory = self.manifest.bytes <= memory_bytes
        self._arrays = [self._open(shard.file, shard.trajectories) for shard in self.manifest.shards]

    def windows(
        self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"], width: int | None = None
    ) -> Float32[np.ndarray, "b t *n d"]:
        """Return the latents of windows.

        Args:
            ids: Trajectory of each window.
            frames: Stored frames of each window; a latent belongs to the newest frame of its context.
            width: Leading numbers of each token to read; all by default.
        """
        manifest = self.manifest
        width = manifest.width if width is None else width
        result = np.empty((*frames.shape, *manifest.tokens, width), STORED_DTYPES[manifest.key.dtype])
        shards, positions = ids // manifest.shard_trajectories, ids % manifest.shard_trajectories
        for shard in np.unique(shards).tolist():
            in_shard = shards == shard
            rows = positions[in_shard][:, None], frames[in_shard] - manifest.first
            result[in_shard] = self._arrays[shard][(*rows, ..., slice(width))]
        return as_float32(result, manifest.key.dtype)

    def _open(self, name: str, trajectories: int) -> np.ndarray:
        """Return the array of a shard; raise `DataError` if it does not have the shape and type of the manifest."""
        file = self.path / name
        try:
            array: np.ndarray = np.load(file, mmap_mode=None if self.in_memory else "r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: cannot be read ({first_line(error)}); {HINT}") from None
        shape, dtype = (trajectories, *self.manifest.trajectory_shape), STORED_DTYPES[self.manifest.key.dtype]
        if (array.shape, array.dtype.str) != (shape, dtype):
            raise DataError(
                f"{file}: contains {array.dtype} of shape {array.shape}, but latents.json states {dtype} of shape "
                f"{shape}; {HINT}"
            )
        return array


def as_float32(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Return stored latents as float32, which represents every value of the stored types exactly.

    Args:
        stored: Latents as stored (see `STORED_DTYPES`).
        dtype: Type of the latents: `float32`, `bfloat16` or `float16`.
    """
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32, copy=False)


@dataclass(frozen=True, eq=False, kw_only=True)
class LatentWindows:
    """The windows of latents that replace windows of fields in a training.

    They are drawn like windows of fields, but on the grid of tokens. On a periodic axis the codec commutes with rolls
    by whole patches, so windows are rolled. It commutes with no other symmetry, so no other augmentation is applied.

    Attributes:
        cache: The latents.
        context: Frames of the context. One latent contains the whole context, so a window starts at its last frame.
        pushforward: Number of pushforward steps.
    """

    cache: LatentCache
    context: int
    pushforward: int

    def plan(self, plan: windows.WindowPlan) -> windows.WindowPlan:
        """Return the plan of windows of fields, changed to windows of latents."""
        return replace(plan, shape=self.cache.manifest.tokens, channels=1, symmetries=())

    def read(self, draw: windows.WindowDraw) -> dict[str, np.ndarray]:
        """Return the arrays `latents` and `targets` of a batch.

        `latents` are whole tokens at the end of the context and at the pushforward steps. `targets` are the newest
        frame's patches in the tokens of the scored steps.
        """
        frames = draw.frames[:, self.context - 1 :]
        input_frames, scored_frames = frames[:, : 1 + self.pushforward], frames[:, 1 + self.pushforward :]
        return {
            "latents": windows.augment(self.cache.windows(draw.ids, input_frames), draw),
            "targets": windows.augment(self.cache.windows(draw.ids, scored_frames, self.cache.manifest.carried), draw),
        }
