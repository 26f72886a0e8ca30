"""Division of a grid into patches, one for each token, and the conversion between fields and patches.

An axis that the patch size divides is cut into patches. Any other axis is divided into one patch more than fit, so that
the patches together have a few points more than the axis. Between walls, the axis is extended by copies of its last
value. A periodic axis is resampled for the networks: the trigonometric interpolant of the field is evaluated at evenly
spaced points, so that all patches and their distances are alike, and increments are projected back onto the modes that
the axis resolves. Tokens always hold the values at the grid points themselves, so that encoding loses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ups_jax.config import LatentConfig
from ups_jax.core.task import Task


@dataclass(frozen=True)
class Patches:
    """The patches of a grid.

    Attributes:
        shape: Number of grid points along each axis.
        periodic: Whether each axis is periodic.
        size: Number of points of a patch along each axis.
        counts: Number of patches along each axis.
    """

    shape: tuple[int, ...]
    periodic: tuple[bool, ...]
    size: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def points(self) -> int:
        """Number of points of a patch."""
        return math.prod(self.size)

    @property
    def extended_shape(self) -> tuple[int, ...]:
        """Number of points along each axis that the patches have together."""
        return tuple(count * size for count, size in zip(self.counts, self.size, strict=True))

    @property
    def resampled_axes(self) -> tuple[int, ...]:
        """The axes that are resampled for the networks."""
        sizes = zip(self.periodic, self.shape, self.extended_shape, strict=True)
        return tuple(axis for axis, (wraps, points, extended) in enumerate(sizes) if wraps and points != extended)

    def patchify(self, x: Float[Array, "b *s c"]) -> Float[Array, "b *n k"]:
        """Return the values of a field at the grid points as tokens; the last patches of an axis repeat some points."""
        for axis, (points, extended) in enumerate(zip(self.shape, self.extended_shape, strict=True), start=1):
            if extended != points:
                pad_width = [(0, 0)] * x.ndim
                pad_width[axis] = (0, extended - points)
                x = jnp.pad(x, pad_width, mode="wrap" if self.periodic[axis - 1] else "edge")
        return patchify(x, self.size)

    def unpatchify(self, tokens: Float[Array, "b *n k"]) -> Float[Array, "b *s c"]:
        """Return the field of the tokens, the inverse of `patchify`."""
        return self._without_extension(unpatchify(tokens, self.size))

    def resample(self, tokens: Float[Array, "b *n k"]) -> Float[Array, "b *n k"]:
        """Return the tokens of `patchify` with the values at the evenly spaced points of the resampled axes."""
        if not self.resampled_axes:
            return tokens
        x = unpatchify(tokens, self.size)
        for axis in self.resampled_axes:
            values = jax.lax.slice_in_dim(x, 0, self.shape[axis], axis=axis + 1)
            x = resample_periodic(values, axis, self.extended_shape[axis])
        return patchify(x, self.size)

    def project(self, tokens: Float[Array, "b *n k"]) -> Float[Array, "b *s c"]:
        """Return, at the grid points, the field whose values at the points of the patches are the tokens.

        Along a resampled axis, this keeps the modes that the axis resolves.
        """
        x = unpatchify(tokens, self.size)
        for axis in self.resampled_axes:
            x = resample_periodic(x, axis, self.shape[axis])
        return self._without_extension(x)

    def _without_extension(self, x: Float[Array, "b *e c"]) -> Float[Array, "b *s c"]:
        """Return the field at the first points of each axis, as many as the grid has."""
        return x[(slice(None), *(slice(points) for points in self.shape))]


def task_patches(task: Task, config: LatentConfig) -> Patches:
    """Return the patches of a task's grid."""
    return grid_patches(task.shape, task.periodic, config.patch_size, task.partition)


def grid_patches(shape: Sequence[int], periodic: Sequence[bool], patch_size: int, partition: str = "full") -> Patches:
    """Return the patches of a grid.

    Args:
        shape: Number of points along each axis.
        periodic: Whether each axis is periodic.
        patch_size: Largest number of points of a patch along an axis.
        partition: `full` for as few patches as possible along each axis, of nearly equal size; `divisor` for patches of
            the largest size that divides the axis.
    """
    if partition == "full":
        counts = [-(-points // patch_size) for points in shape]
    else:
        counts = [points // max(size for size in range(1, patch_size + 1) if points % size == 0) for points in shape]
    sizes = [-(-points // count) for points, count in zip(shape, counts, strict=True)]
    return Patches(tuple(shape), tuple(periodic), tuple(sizes), tuple(counts))


def partitions_agree(shape: Sequence[int], patch_size: int) -> bool:
    """Return whether the patches of a grid are the same for both partitions of `grid_patches`."""
    periodic = (False,) * len(shape)
    return grid_patches(shape, periodic, patch_size) == grid_patches(shape, periodic, patch_size, "divisor")


def nearest_divided_shape(shape: Sequence[int], patch_size: int) -> tuple[int, ...]:
    """Return, for each axis, the number of points nearest to `shape` that the patch size divides.

    An axis with at most `patch_size` points is one patch and keeps its points.
    """
    return tuple(
        points if points <= patch_size else max(1, round(points / patch_size)) * patch_size for points in shape
    )


def patchify(x: Float[Array, "b *s c"], size: Sequence[int]) -> Float[Array, "b *n k"]:
    """Return patches as tokens: the values in a patch become channels, in C order with the field's channels last.

    Args:
        size: Size of a patch along each axis; it divides the grid.
    """
    batch, *sizes, channels = x.shape
    split = [value for points, width in zip(sizes, size, strict=True) for value in (points // width, width)]
    dimensions = len(sizes)
    order = [0, *range(1, 2 * dimensions, 2), *range(2, 2 * dimensions + 1, 2), 2 * dimensions + 1]
    tokens = [points // width for points, width in zip(sizes, size, strict=True)]
    return x.reshape(batch, *split, channels).transpose(order).reshape(batch, *tokens, math.prod(size) * channels)


def unpatchify(x: Float[Array, "b *n k"], size: Sequence[int]) -> Float[Array, "b *s c"]:
    """Return the fields whose patches are `x`, the inverse of `patchify`."""
    batch, *tokens, width = x.shape
    dimensions = len(tokens)
    order = [0, *(axis + offset for axis in range(1, dimensions + 1) for offset in (0, dimensions)), 2 * dimensions + 1]
    sizes = [count * points for count, points in zip(tokens, size, strict=True)]
    channels = width // math.prod(size)
    return x.reshape(batch, *tokens, *size, channels).transpose(order).reshape(batch, *sizes, channels)


def resample_periodic(x: Float[Array, "b *s c"], axis: int, points: int) -> Float[Array, "b *r c"]:
    """Return a field at `points` evenly spaced points of the periodic space axis `axis`, from the same first point.

    With more points this is trigonometric interpolation. With fewer points it keeps the modes that these resolve, and
    is the left inverse of the interpolation.
    """
    line = axis + 1
    old_points = x.shape[line]
    resolved = min(old_points, points)
    weights = np.full(resolved // 2 + 1, points / old_points)
    if resolved % 2 == 0:
        # The highest mode of an even number of points is the sum of two that are distinct on more points.
        weights[-1] *= 0.5 if points > old_points else 2.0
    modes = jax.lax.slice_in_dim(jnp.fft.rfft(x, axis=line), 0, len(weights), axis=line)
    weights = np.expand_dims(weights, [other for other in range(x.ndim) if other != line])
    return jnp.fft.irfft(modes * jnp.asarray(weights, x.dtype), points, axis=line)
