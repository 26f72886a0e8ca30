"""Operations on a grid of any dimension: convolution, interpolation and cell averages.

Arguments named `periodic` state for each axis whether it is periodic.
"""

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
    """Convolution that keeps the size of the grid; it wraps around periodic axes and repeats the edge value on others.

    It is computed as one matrix product, because the backward pass of XLA's convolution is several times slower on a
    CPU at these widths. The product is applied to the shifted inputs, concatenated on the channel axis. If the outputs
    of all taps together have no more channels than the input, the product instead computes these outputs from the
    unshifted input, and they are then shifted and added.

    Attributes:
        taps: Number of points of the kernel along each axis; odd.
        periodic: For each axis, whether it is periodic.
        kernel_init: Initialiser of the kernel, a matrix (taps ** axes * inputs, features).
        dtype: Type in which the product is computed.
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
        shifted = _shifted_views(y, self.taps, x.shape[1:-1])
        outputs = (view[..., tap * self.features : (tap + 1) * self.features] for tap, view in enumerate(shifted))
        return add_bias(functools.reduce(jnp.add, outputs), bias)


def soft_clip(x: Float[Array, "*n"], limit: float) -> Float[Array, "*n"]:
    """Return x / sqrt(1 + (x / limit)^2), which is close to x for small x and stays within +-limit."""
    return x * jax.lax.rsqrt(1 + jnp.square(x / limit))


def remove_mean(x: Float[Array, "b *s c"], channels: Sequence[int]) -> Float[Array, "b *s c"]:
    """Return `x`, an increment of a field, minus the spatial mean of `x` in the given channels.

    The field's integrals in these channels, which are conserved, then do not change except by round-off.
    """
    is_conserved = jnp.asarray([channel in channels for channel in range(x.shape[-1])])
    mean = x.mean(tuple(range(1, x.ndim - 1)), keepdims=True)
    return x - jnp.where(is_conserved.reshape((1,) * (x.ndim - 1) + (-1,)), mean, 0.0)


def stack_neighbours(x: Float[Array, "b *s c"], taps: int, periodic: Sequence[bool]) -> Float[Array, "b *s k"]:
    """Return the values at each point and its neighbours, concatenated on the channel axis in C order.

    Args:
        taps: Number of points along each axis, the point itself included; odd.
        periodic: For each axis, whether it is periodic; the edge value is repeated on the others.
    """
    return jnp.concatenate(_shifted_views(_pad(x, taps // 2, periodic), taps, x.shape[1:-1]), axis=-1)


def _pad(x: Float[Array, "b *s c"], width: int, periodic: Sequence[bool]) -> Float[Array, "b *p c"]:
    """Return the field with `width` more points at both ends of each axis: wrapped if periodic, else the edge value."""
    for axis, wraps in enumerate(periodic, start=1):
        pad_width = [(0, 0)] * x.ndim
        pad_width[axis] = (width, width)
        x = jnp.pad(x, pad_width, mode="wrap" if wraps else "edge")
    return x


def _shifted_views(x: Float[Array, "b *p c"], taps: int, shape: Sequence[int]) -> list[Float[Array, "b *s c"]]:
    """Return, for each tap of a kernel in C order, the part of the padded field `x` that the tap multiplies."""
    shifts = itertools.product(range(taps), repeat=len(shape))
    windows = (tuple(slice(start, start + size) for start, size in zip(shift, shape, strict=True)) for shift in shifts)
    return [x[(slice(None), *window)] for window in windows]


def interpolate(
    fields: Float[Array, "b *s c"],
    query: Float[Array, "b q axes"],
    origin: Sequence[float],
    spacing: Sequence[float],
    periodic: Sequence[bool],
) -> Float[Array, "b q c"]:
    """Return the fields at arbitrary points, interpolated trigonometrically on periodic axes and cubically on others.

    Trigonometric interpolation is exact for a field that the grid resolves. At a grid point the result is the field's
    value.

    Args:
        query: Physical coordinates of the points.
        origin: Physical coordinates of the first grid point.
    """
    result = fields
    for axis in range(len(spacing) - 1, -1, -1):
        position = (query[..., axis] - origin[axis]) / spacing[axis]
        weights = (_trigonometric_weights if periodic[axis] else _cubic_weights)(position, fields.shape[1 + axis])
        if axis == len(spacing) - 1:
            result = jnp.einsum("bqn,b...nc->bq...c", weights, result)
        else:
            result = jnp.einsum("bqn,bq...nc->bq...c", weights, result)
    return result


def interpolate_to_grid(
    fields: Float[Array, "b *s c"],
    coords: Sequence[Float[np.ndarray, " _"]],
    origin: Sequence[float],
    spacing: Sequence[float],
    periodic: Sequence[bool],
) -> Float[Array, "b *m c"]:
    """Return the fields interpolated to another grid, as by `interpolate` but with one small matrix per axis.

    The weights are computed in float64, so that values at points common to both grids are copied exactly.

    Args:
        coords: Physical coordinates of the new grid along each axis.
        origin: Physical coordinates of the first grid point.
    """
    result = fields
    for axis, axis_coords in enumerate(coords):
        position = (np.asarray(axis_coords, np.float64) - origin[axis]) / spacing[axis]
        weights = (_trigonometric_weights if periodic[axis] else _cubic_weights)(
            position[None], fields.shape[1 + axis]
        )[0]
        matrix = jnp.asarray(weights, layer_dtype(jnp.float32, result))
        product = jnp.tensordot(matrix, result, ((1,), (axis + 1,)), precision="highest")
        result = jnp.moveaxis(product, 0, axis + 1)
    return result


def cell_average(x: Float[Array, "b *s c"], factors: Sequence[int]) -> Float[Array, "b *r c"]:
    """Return the mean of the fields over blocks of grid cells.

    Args:
        x: Fields on a grid of cells.
        factors: Number of cells of a block along each axis; it divides the grid.
    """
    batch, *sizes, channels = x.shape
    split = [value for size, factor in zip(sizes, factors, strict=True) for value in (size // factor, factor)]
    return x.reshape(batch, *split, channels).mean(axis=tuple(range(2, 2 * len(sizes) + 1, 2)))


def cell_centers(
    shape: Sequence[int], origin: Sequence[float], spacing: Sequence[float], factors: Sequence[int]
) -> list[Float[np.ndarray, " _"]]:
    """Return, along each axis, the centres of the cells that result from dividing every cell of a grid, in float64.

    Args:
        shape: Number of cells along each axis before the division.
        origin: Physical coordinates of the centre of the first cell before the division.
        spacing: Size of a cell along each axis before the division.
        factors: Number of parts into which a cell is divided along each axis.
    """
    return [
        start + step * ((np.arange(points * factor) + 0.5) / factor - 0.5)
        for points, start, step, factor in zip(shape, origin, spacing, factors, strict=True)
    ]


def _trigonometric_weights(
    position: Float[Array | np.ndarray, "b q"], num_points: int
) -> Float[Array | np.ndarray, "b q n"]:
    """Return the weight of each grid point of an axis in trigonometric interpolation to `position`.

    The weights are values of the Dirichlet kernel, with the Nyquist mode split evenly.

    Args:
        position: Coordinates of the query points, in units of the grid spacing.
    """
    xp = position.__array_namespace__()
    nodes = xp.arange(num_points, dtype=position.dtype).reshape(1, 1, -1)
    offset = position[..., None] - nodes
    offset = (offset + num_points / 2) % num_points - num_points / 2
    angle = xp.pi * offset / num_points
    numerator = xp.sin(xp.pi * offset)
    at_node = xp.abs(offset) < 1e-6
    denominator = xp.where(at_node, 1.0, xp.tan(angle) if num_points % 2 == 0 else xp.sin(angle))
    return xp.where(at_node, 1.0, numerator / (num_points * denominator))


def _cubic_weights(position: Float[Array | np.ndarray, "b q"], num_points: int) -> Float[Array | np.ndarray, "b q n"]:
    """Return the weight of each grid point of an axis in cubic Lagrange interpolation to `position`.

    Only the nearest four points have weights; with fewer grid points the polynomial has a lower degree.

    Args:
        position: Coordinates of the query points, in units of the grid spacing.
    """
    xp = position.__array_namespace__()
    count = min(4, num_points)
    first = xp.clip(xp.floor(position).astype(xp.int32) - (count // 2 - 1), 0, num_points - count)
    local = position - first
    nodes = np.arange(count)
    rows = xp.zeros((*position.shape, num_points), position.dtype)
    for node in nodes:
        other_nodes = [float(other) for other in nodes if other != node]
        factors = [(local - other) / (node - other) for other in other_nodes]
        weight = math.prod(factors, start=xp.ones_like(local))
        is_node = (first + node)[..., None] == xp.arange(num_points).reshape(1, 1, -1)
        rows = rows + weight[..., None] * is_node.astype(position.dtype)
    return rows
