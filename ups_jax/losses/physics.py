"""Physics priors on decoded fields in any units: divergence, conservation, positivity and smoothness.

Boundary conditions are in `ups_jax.losses.boundary`.
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
    check_same_shape,
    mean_per_channel,
    mean_per_sample,
    point_mask,
    reduce_samples,
    safe_abs,
    safe_sqrt,
    sample_mask,
)


def divergence(
    velocity: Fields,
    spacing: Sequence[Number],
    periodic: Sequence[bool],
    *,
    reduction: Reduction = "mean",
    mask: Mask = None,
) -> Float[Array, "*b"]:
    """Return the mean of |sum_i d u_i / d x_i| over points.

    On a periodic axis the derivative is spectral: it differentiates the trigonometric polynomial through the points,
    with which the decoder interpolates. On other axes it is the central difference, and points on a wall do not count.

    Args:
        velocity: Velocity `(b, *s, c)`; channel i is the component along axis i.
        mask: Samples `(b,)` or points `(b, *s)` that count. Derivatives also use the values of masked points.

    Returns:
        A non-negative number, in units of velocity per length.

    Raises:
        ValueError: If the numbers of channels and axes differ, or if all points lie on walls.
    """
    axes = velocity.ndim - 2
    if velocity.shape[-1] != axes:
        raise ValueError(
            f"a velocity on {axes} axes needs {axes} channels; pass one for each axis, not {velocity.shape[-1]}"
        )
    field, points = at_least_float32(velocity), point_mask(mask, velocity)
    inside = tuple(slice(None) if wraps else slice(1, -1) for wraps in periodic)
    slopes = []
    for axis, (step, wraps) in enumerate(zip(spacing, periodic, strict=True)):
        # `_derivative` has already removed the walls of its axis.
        cuts = (slice(None) if cut_axis == axis else cut for cut_axis, cut in enumerate(inside))
        slopes.append(_derivative(field[..., axis], axis + 1, step, wraps)[(slice(None), *cuts)])
    total = functools.reduce(jnp.add, slopes)
    if total.size == 0:
        raise ValueError(f"the grid {velocity.shape[1:-1]} has no points inside its walls; use three points per axis")
    inside_mask = None if points is None else points[(slice(None), *inside)]
    return reduce_samples(
        mean_per_sample(safe_abs(total)[..., None], inside_mask), sample_mask(mask, velocity), reduction
    )


def conservation(
    pred: Fields,
    reference: Fields,
    *,
    eps: Number | Float[Array, "1 c"] = 1e-8,
    floor: Number = 0.0,
    reduction: Reduction = "mean",
    mask: Mask = None,
) -> Float[Array, "*b"]:
    """Return the mean over channels of |int pred - int reference| / (V (sqrt(max(mean reference^2, floor)) + eps)).

    The integrals run over a uniform grid of volume V, so each is V times the mean over the points that the mask keeps,
    and V cancels. The denominator is the root mean square, because the integral of a fluctuation about 0 is 0.

    Args:
        pred: Predicted fields `(b, *s, c)`.
        reference: Fields of the same shape and units whose integrals should be kept.
        eps: Constant added to the denominator, in the units of the fields; one number, or one for each channel.
        floor: Smallest mean square of `reference` by which is divided.
        mask: Samples `(b,)` or points `(b, *s)` that count.
    """
    check_same_shape(pred, reference)
    points, start = point_mask(mask, reference), at_least_float32(reference)
    size = safe_sqrt(jnp.maximum(mean_per_channel(start**2, points), floor))
    change = safe_abs(mean_per_channel(at_least_float32(pred) - start, points)) / (size + eps)
    return reduce_samples(change.mean(-1), sample_mask(mask, reference), reduction)


def positivity(fields: Fields, *, reduction: Reduction = "mean", mask: Mask = None) -> Float[Array, "*b"]:
    """Return the mean of |min(u, 0)|, a penalty on negative densities, pressures or concentrations.

    Args:
        fields: Fields u `(b, *s, c)`.
        mask: Samples `(b,)` or points `(b, *s)` that count.
    """
    return reduce_samples(
        mean_per_sample(safe_abs(jnp.minimum(at_least_float32(fields), 0.0)), point_mask(mask, fields)),
        sample_mask(mask, fields),
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
    """Return the total variation per volume: the sum over axes of mean |u_{i+1} - u_i| / spacing.

    Differences wrap around on periodic axes. A difference counts if the mask keeps both of its points.

    Args:
        fields: Fields u `(b, *s, c)`.
        mask: Samples `(b,)` or points `(b, *s)` that count.
    """
    field, points = at_least_float32(fields), point_mask(mask, fields)
    total = jnp.zeros(field.shape[0], field.dtype)
    for axis, (step, wraps) in enumerate(zip(spacing, periodic, strict=True), start=1):
        pairs = None if points is None else difference_mask(points, axis, wraps)
        total = total + mean_per_sample(safe_abs(forward_difference(field, axis, step, wraps)), pairs)
    return reduce_samples(total, sample_mask(mask, fields), reduction)


def _derivative(x: Float[Array, "b *s"], axis: int, step: Number, wraps: bool) -> Float[Array, "b *r"]:
    """Return the derivative of `x` along an array axis, without the two end points if the axis is not periodic."""
    size = x.shape[axis]
    if not wraps:
        ends = [jnp.take(x, np.arange(start, start + max(size - 2, 0)), axis) for start in (0, 2)]
        return (ends[1] - ends[0]) / (2 * step)
    wavenumber = 2 * math.pi * np.fft.rfftfreq(size, step)
    if size % 2 == 0:
        # The highest mode of a grid with an even number of points is a cosine whose derivative is 0 at the points.
        wavenumber[-1] = 0.0
    shape = [1] * x.ndim
    shape[axis] = len(wavenumber)
    transform = jnp.fft.rfft(x, axis=axis)
    factor = jnp.asarray(1j * wavenumber.reshape(shape), transform.dtype)
    return jnp.fft.irfft(transform * factor, n=size, axis=axis).astype(x.dtype)
