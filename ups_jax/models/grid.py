"""Pieces that work on a grid of any dimension: convolution with the right wrap-around, patches, interpolation."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ups_jax.models.layers import add_bias, layer_dtype, matmul_rows


class GridConv(nn.Module):
    """Convolution with `taps` (odd) points an axis that keeps the grid: wraps round periodic axes, repeats the edge
    value elsewhere.

    One matrix product: of the shifted inputs side by side or, where all taps' outputs together are no wider than the
    inputs, of the inputs with all of them, which are then shifted and added. On a CPU its backward pass is several
    times faster than XLA's convolution at these widths, and the kernel is a plain (taps * inputs, features) matrix.
    """

    features: int
    taps: int
    periodic: tuple[bool, ...]
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *s c"]) -> Float[Array, "b *s features"]:
        points, inputs = self.taps ** len(self.periodic), x.shape[-1]
        dtype = layer_dtype(self.dtype, x)
        kernel = self.param("kernel", self.kernel_init, (points * inputs, self.features)).astype(dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = x.astype(dtype)
        if points * self.features > inputs:
            return add_bias(matmul_rows(stack_neighbours(x, self.taps, self.periodic), kernel), bias)
        by_tap = kernel.reshape(points, inputs, self.features).swapaxes(0, 1).reshape(inputs, points * self.features)
        y = _pad(matmul_rows(x, by_tap), self.taps // 2, self.periodic)
        shifted = _shifted(y, self.taps, x.shape[1:-1])
        own = (part[..., tap * self.features : (tap + 1) * self.features] for tap, part in enumerate(shifted))
        return add_bias(functools.reduce(jnp.add, own), bias)


def soft_clip(x: Float[Array, "*n"], limit: float) -> Float[Array, "*n"]:
    """x / sqrt(1 + (x / limit)^2): the identity for small x, never beyond +-limit."""
    return x * jax.lax.rsqrt(1 + jnp.square(x / limit))


def remove_mean(x: Float[Array, "b *s c"], channels: Sequence[int]) -> Float[Array, "b *s c"]:
    """x less its mean over space in some channels: an increment that keeps their integrals to round-off."""
    chosen = jnp.asarray([channel in channels for channel in range(x.shape[-1])])
    mean = x.mean(tuple(range(1, x.ndim - 1)), keepdims=True)
    return x - jnp.where(chosen.reshape((1,) * (x.ndim - 1) + (-1,)), mean, 0.0)


def stack_neighbours(x: Float[Array, "b *s c"], taps: int, periodic: Sequence[bool]) -> Float[Array, "b *s k"]:
    """Each point's `taps ** dimensions` neighbours, concatenated on the channel axis in C order."""
    return jnp.concatenate(_shifted(_pad(x, taps // 2, periodic), taps, x.shape[1:-1]), axis=-1)


def _pad(x: Float[Array, "b *s c"], half: int, periodic: Sequence[bool]) -> Float[Array, "b *p c"]:
    """`half` more points at both ends of each axis."""
    for axis, wraps in enumerate(periodic, start=1):
        width = [(0, 0)] * x.ndim
        width[axis] = (half, half)
        x = jnp.pad(x, width, mode="wrap" if wraps else "edge")
    return x


def _shifted(x: Float[Array, "b *p c"], taps: int, sizes: Sequence[int]) -> list[Float[Array, "b *s c"]]:
    """The padded field as each tap sees it, in C order."""
    shifts = itertools.product(range(taps), repeat=len(sizes))
    windows = (tuple(slice(start, start + size) for start, size in zip(shift, sizes, strict=True)) for shift in shifts)
    return [x[(slice(None), *window)] for window in windows]


def patch_shape(shape: Sequence[int], patch_size: int) -> tuple[int, ...]:
    """Per axis the largest divisor of the grid that is at most `patch_size`, so that any grid can be cut."""
    return tuple(max(size for size in range(1, patch_size + 1) if points % size == 0) for points in shape)


def patchify(x: Float[Array, "b *s c"], patch: Sequence[int]) -> Float[Array, "b *n k"]:
    """Space to depth: the `prod(patch)` points of each patch become channels, in C order, field channels last."""
    batch, *sizes, channels = x.shape
    split = [value for size, width in zip(sizes, patch, strict=True) for value in (size // width, width)]
    dimensions = len(sizes)
    order = [0, *range(1, 2 * dimensions, 2), *range(2, 2 * dimensions + 1, 2), 2 * dimensions + 1]
    tokens = [size // width for size, width in zip(sizes, patch, strict=True)]
    return x.reshape(batch, *split, channels).transpose(order).reshape(batch, *tokens, math.prod(patch) * channels)


def unpatchify(x: Float[Array, "b *n k"], patch: Sequence[int]) -> Float[Array, "b *s c"]:
    """Inverse of `patchify`."""
    batch, *tokens, width = x.shape
    dimensions = len(tokens)
    order = [0, *(axis + offset for axis in range(1, dimensions + 1) for offset in (0, dimensions)), 2 * dimensions + 1]
    sizes = [count * size for count, size in zip(tokens, patch, strict=True)]
    channels = width // math.prod(patch)
    return x.reshape(batch, *tokens, *patch, channels).transpose(order).reshape(batch, *sizes, channels)


def interpolate(
    fields: Float[Array, "b *s c"],
    query: Float[Array, "b q axes"],
    origin: Sequence[float],
    spacing: Sequence[float],
    periodic: Sequence[bool],
) -> Float[Array, "b q c"]:
    """Field values at any points (physical coordinates): trigonometric on periodic axes, cubic elsewhere.

    Trigonometric interpolation is exact for a field that the grid resolves; both give the grid's own values back.
    """
    result = fields
    for axis in range(len(spacing) - 1, -1, -1):
        position = (query[..., axis] - origin[axis]) / spacing[axis]
        weights = (_trigonometric if periodic[axis] else _cubic)(position, fields.shape[1 + axis])
        if axis == len(spacing) - 1:
            result = jnp.einsum("bqn,b...nc->bq...c", weights, result)
        else:
            result = jnp.einsum("bqn,bq...nc->bq...c", weights, result)
    return result


def interpolate_to_grid(
    fields: Float[Array, "b *s c"],
    lines: Sequence[Float[np.ndarray, " _"]],
    origin: Sequence[float],
    spacing: Sequence[float],
    periodic: Sequence[bool],
) -> Float[Array, "b *m c"]:
    """`interpolate` at every point of the grid that `lines` (one an axis, physical coordinates) span, axis by axis.

    A product with one small matrix an axis, where the weights of all points at once would be points x points. They are
    made in float64, so that a value at one of the grid's own points is handed over as it is.
    """
    result = fields
    for axis, line in enumerate(lines):
        position = (np.asarray(line, np.float64) - origin[axis]) / spacing[axis]
        weights = (_trigonometric if periodic[axis] else _cubic)(position[None], fields.shape[1 + axis])[0]
        matrix = jnp.asarray(weights, layer_dtype(jnp.float32, result))
        moved = jnp.tensordot(matrix, result, ((1,), (axis + 1,)), precision="highest")
        result = jnp.moveaxis(moved, 0, axis + 1)
    return result


def cell_average(x: Float[Array, "b *s c"], factors: Sequence[int]) -> Float[Array, "b *r c"]:
    """The mean over blocks of `factors` cells an axis."""
    batch, *sizes, channels = x.shape
    split = [value for size, factor in zip(sizes, factors, strict=True) for value in (size // factor, factor)]
    return x.reshape(batch, *split, channels).mean(axis=tuple(range(2, 2 * len(sizes) + 1, 2)))


def cell_centers(
    shape: Sequence[int], origin: Sequence[float], spacing: Sequence[float], factors: Sequence[int]
) -> list[Float[np.ndarray, " _"]]:
    """Physical centres along each axis, in float64, of the cells of a grid each cut into `factors` an axis.

    `origin` is the centre of the first cell of the grid.
    """
    return [
        start + step * ((np.arange(points * factor) + 0.5) / factor - 0.5)
        for points, start, step, factor in zip(shape, origin, spacing, factors, strict=True)
    ]


def _trigonometric(position: Float[Array | np.ndarray, "b q"], points: int) -> Float[Array | np.ndarray, "b q n"]:
    """Dirichlet kernel: weights of the interpolating trigonometric polynomial, Nyquist mode split evenly."""
    xp = position.__array_namespace__()
    nodes = xp.arange(points, dtype=position.dtype).reshape(1, 1, -1)
    offset = position[..., None] - nodes
    offset = (offset + points / 2) % points - points / 2
    angle = xp.pi * offset / points
    numerator = xp.sin(xp.pi * offset)
    at_node = xp.abs(offset) < 1e-6
    denominator = xp.where(at_node, 1.0, xp.tan(angle) if points % 2 == 0 else xp.sin(angle))
    return xp.where(at_node, 1.0, numerator / (points * denominator))


def _cubic(position: Float[Array | np.ndarray, "b q"], points: int) -> Float[Array | np.ndarray, "b q n"]:
    """Cubic Lagrange weights of the four nearest nodes, as rows over all nodes; fewer nodes, lower degree."""
    xp = position.__array_namespace__()
    count = min(4, points)
    first = xp.clip(xp.floor(position).astype(xp.int32) - (count // 2 - 1), 0, points - count)
    local = position - first
    nodes = np.arange(count)
    rows = xp.zeros((*position.shape, points), position.dtype)
    for node in nodes:
        others = [float(other) for other in nodes if other != node]
        factors = [(local - other) / (node - other) for other in others]
        weight = math.prod(factors, start=xp.ones_like(local))
        here = (first + node)[..., None] == xp.arange(points).reshape(1, 1, -1)
        rows = rows + weight[..., None] * here.astype(position.dtype)
    return rows
