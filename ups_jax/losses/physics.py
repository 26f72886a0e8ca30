"""Physics priors on a decoded field, in the units it is given in: divergence, conservation, positivity, smoothness.

What holds on the walls is `boundary`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ups_jax.losses.field import Fields, difference_mask, forward_difference
from ups_jax.losses.reduction import (
    Mask,
    Number,
    Reduction,
    at_least_float32,
    point_mask,
    reduce_rows,
    row_mask,
    safe_abs,
    safe_sqrt,
    same_shape,
    sample_mean,
    space_mean,
)


def divergence(
    velocity: Fields,
    spacing: Sequence[Number],
    periodic: Sequence[bool],
    *,
    reduction: Reduction = "mean",
    mask: Mask = None,
) -> Float[Array, "*b"]:
    """mean |sum_i d u_i / d x_i|; channel i is the velocity along axis i. In 1 / time for a velocity.

    On a periodic axis the derivative of the trigonometric polynomial through the points, which is what the decoder
    interpolates with; between walls central differences. Points on a wall have none and do not count. A mask says
    which points count, not which the derivatives may use. ValueError where channels and axes differ in number.
    """
    axes = velocity.ndim - 2
    if velocity.shape[-1] != axes:
        raise ValueError(f"a velocity on {axes} axes has as many channels, not {velocity.shape[-1]}")
    field, points = at_least_float32(velocity), point_mask(mask, velocity)
    inside = tuple(slice(None) if wraps else slice(1, -1) for wraps in periodic)
    slopes = []
    for axis, (step, wraps) in enumerate(zip(spacing, periodic, strict=True)):
        # The slope is cut to the inside along its own axis already.
        others = (slice(None) if other == axis else cut for other, cut in enumerate(inside))
        slopes.append(_slope(field[..., axis], axis + 1, step, wraps)[(slice(None), *others)])
    total = functools.reduce(jnp.add, slopes)
    if total.size == 0:
        raise ValueError(f"the grid {velocity.shape[1:-1]} has no points inside its walls")
    kept = None if points is None else points[(slice(None), *inside)]
    return reduce_rows(sample_mean(safe_abs(total)[..., None], kept), row_mask(mask, velocity), reduction)


def conservation(
    pred: Fields, reference: Fields, *, eps: Number = 1e-8, reduction: Reduction = "mean", mask: Mask = None
) -> Float[Array, "*b"]:
    """mean over channels of |int pred - int reference| / (V (rms(reference) + eps)), each sample against its own.

    Integrals are over the points of a uniform grid of volume V (those that the mask keeps), so V cancels. The size of
    the reference is its root mean square, not its integral: that is 0 for a fluctuation about nothing.
    """
    same_shape(pred, reference)
    points, start = point_mask(mask, reference), at_least_float32(reference)
    size = safe_sqrt(space_mean(start**2, points))
    change = safe_abs(space_mean(at_least_float32(pred) - start, points)) / (size + eps)
    return reduce_rows(change.mean(-1), row_mask(mask, reference), reduction)


def positivity(fields: Fields, *, reduction: Reduction = "mean", mask: Mask = None) -> Float[Array, "*b"]:
    """mean |min(u, 0)|: of a density, a pressure, a concentration."""
    return reduce_rows(
        sample_mean(safe_abs(jnp.minimum(at_least_float32(fields), 0.0)), point_mask(mask, fields)),
        row_mask(mask, fields),
        reduction,
    )


def smoothness(
    fields: Fields,
    spacing: Sequence[Number],
    periodic: Sequence[bool],
    *,
    reduction: Reduction = "mean",
    mask: Mask = None,
) -> Float[Array, "*b"]:
    """sum over axes of mean |u_{i+1} - u_i| / spacing: the total variation a volume. Differences wrap on periodic axes.

    A difference counts where both of its points do.
    """
    field, points = at_least_float32(fields), point_mask(mask, fields)
    total = jnp.zeros(field.shape[0], field.dtype)
    for axis, (step, wraps) in enumerate(zip(spacing, periodic, strict=True), start=1):
        both = None if points is None else difference_mask(points, axis, wraps)
        total = total + sample_mean(safe_abs(forward_difference(field, axis, step, wraps)), both)
    return reduce_rows(total, row_mask(mask, fields), reduction)


def _slope(x: Float[Array, "b *s"], axis: int, step: Number, wraps: bool) -> Float[Array, "b *r"]:
    """d x / d axis: at every point of a periodic axis, at all but the first and the last between walls."""
    size = x.shape[axis]
    if not wraps:
        ends = [jnp.take(x, np.arange(start, start + max(size - 2, 0)), axis) for start in (0, 2)]
        return (ends[1] - ends[0]) / (2 * step)
    wavenumber = 2 * math.pi * np.fft.rfftfreq(size, step)
    if size % 2 == 0:
        # The highest mode of an even grid is a cosine whose derivative is 0 at the points.
        wavenumber[-1] = 0.0
    shape = [1] * x.ndim
    shape[axis] = len(wavenumber)
    transform = jnp.fft.rfft(x, axis=axis)
    factor = jnp.asarray(1j * wavenumber.reshape(shape), transform.dtype)
    return jnp.fft.irfft(transform * factor, n=size, axis=axis).astype(x.dtype)
