"""Reading of cached latents from a folder, into memory or memory-mapped, and training windows of latents."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int

from ups_jax.core.errors import DataError, first_line
from ups_jax.data import windows
from ups_jax.data.latent_cache.manifest import HINT, STORED_DTYPES, read_manifest, verify_shards


class LatentCache:
    """The latents in a folder, loaded into memory if they have at most `memory_bytes`, otherwise memory-mapped.

    Opening the folder raises `DataError` if it is incomplete, or if the checksum of a shard differs from the manifest.
    """

    def __init__(self, path: str | Path, memory_bytes: float = 0.0) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        verify_shards(self.path, self.manifest)
        self.in_memory = self.manifest.bytes <= memory_bytes
        self._arrays = [self._open_shard(shard.file, shard.trajectories) for shard in self.manifest.shards]

    def read(
        self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"], width: int | None = None
    ) -> Float32[np.ndarray, "b t *n d"]:
        """Return the latents of the frames `frames[i]` of trajectory `ids[i]` for each window i.

        Args:
            ids: Index of the trajectory of each window.
            frames: Frame indices of each window. The latent of a frame encodes the context that ends with this frame.
            width: How many of the first features of each token to return; all by default.
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

    def _open_shard(self, name: str, trajectories: int) -> np.ndarray:
        """Return the latents in the shard `name`. Raises `DataError` if the manifest states another shape or type."""
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
    """Return stored latents as float32, without rounding.

    Their type `dtype` is `float32`, `float16`, or `bfloat16`, which is stored as integers with the same bits.
    """
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32, copy=False)


@dataclass(frozen=True, eq=False, kw_only=True)
class LatentWindows:
    """Windows of latents, on which a stage trains instead of windows of fields.

    They are drawn like windows of fields, but on the grid of tokens. The only augmentation is a random roll by whole
    tokens along periodic axes that the patches divide: the codec commutes with such a roll, but not with the other
    symmetries of a task.

    Attributes:
        context: Number of frames in the context. One latent contains the whole context.
    """

    cache: LatentCache
    context: int
    pushforward: int

    def adapt_plan(self, plan: windows.WindowPlan) -> windows.WindowPlan:
        """Return the settings for drawing windows of latents, given the settings for windows of fields."""
        tokens = self.cache.manifest.tokens
        divided = (points % count == 0 for points, count in zip(plan.shape, tokens, strict=True))
        roll_axes = tuple(rolls and whole for rolls, whole in zip(plan.roll_axes, divided, strict=True))
        return replace(plan, shape=tokens, roll_axes=roll_axes, channels=1, symmetries=())

    def read_batch(self, draw: windows.WindowDraw) -> dict[str, np.ndarray]:
        """Return a batch: the model inputs `latents`, and the `targets` with which its predictions are compared.

        `latents` belong to the last context frame and to the frames of the pushforward steps. `targets` are the patches
        of all later frames, which the codec copies into the first features of each token.
        """
        frames = draw.frames[:, self.context - 1 :]
        input_frames, scored_frames = frames[:, : 1 + self.pushforward], frames[:, 1 + self.pushforward :]
        return {
            "latents": windows.augment(self.cache.read(draw.ids, input_frames), draw),
            "targets": windows.augment(self.cache.read(draw.ids, scored_frames, self.cache.manifest.carried), draw),
        }
