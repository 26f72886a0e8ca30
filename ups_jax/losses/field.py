"""Losses between a predicted and a true field: mean square errors, relative errors, and errors of the gradient.

Relative errors are computed per sample. The exception is `nrmse` with `reduction="mean"`, which is one ratio over the
whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ups_jax.losses.reduction import (
    Mask,
    Number,
    Reduction,
    at_least_float32,
    check_same_shape,
    mean_per_sample,
    point_mask,
    pooled_mean,
    reduce_samples,
    safe_sqrt,
    sample_mask,
)

# Added to the denominators of relative errors: fields are normalised, so 1e-8 is far below any field that is not zero.
EPSILON = 1e-8

Fields = Float[Array | np.ndarray, "b *_s c"]


def nrmse(
    pred: Fields,
    target: Fields,
    eps: Number = EPSILON,
    *,
    floor: Number = 0.0,
    reduction: Reduction = "mean",
    mask: Mask = None,
) -> Float[Array, "*b"]:
    """Return sqrt(mean e^2 / (max(mean target^2, floor) + eps)) with e = pred - target.

    With `reduction="mean"` the means run over all samples, points and channels at once. With `none` the ratio is
    computed for each sample, and `sum` adds these ratios, so `mean` differs from the mean of `none`. The evaluation
    metric is `ups_jax.metrics.field.nrmse`.

    Args:
        pred: Predicted fields `(b, *s, c)`, usually normalised.
        target: True fields of the same shape and units.
        floor: Smallest mean square by which the error is divided, so that a target at rest does not dominate.
        mask: Samples `(b,)` or points `(b, *s)` that count.

    References:
        The loss of the Universal Physics Stack (UPS).
    """
    check_same_shape(pred, target)
    error, size = _error_and_target_mean_squares(pred, target, mask)
    if reduction == "mean":
        error, size = pooled_mean(error, mask, target), pooled_mean(size, mask, target)
        return safe_sqrt(error / (jnp.maximum(size, floor) + eps))
    return reduce_samples(safe_sqrt(error / (jnp.maximum(size, floor) + eps)), sample_mask(mask, target), reduction)


def relative_mse(
    pred: Fields,
    target: Fields,
    eps: Number = EPSILON,
    *,
    floor: Number = 0.0,
    reduction: Reduction = "mean",
    mask: Mask = None,
) -> Float[Array, "*b"]:
    """Return mean e^2 / (max(mean target^2, floor) + eps) with e = pred - target and means over each sample.

    Args:
        pred: Predicted fields `(b, *s, c)`, usually normalised.
        target: True fields of the same shape and units.
        floor: Smallest mean square by which the error is divided.
        mask: Samples `(b,)` or points `(b, *s)` that count.
    """
    check_same_shape(pred, target)
    error, size = _error_and_target_mean_squares(pred, target, mask)
    return reduce_samples(error / (jnp.maximum(size, floor) + eps), sample_mask(mask, target), reduction)


def h1(
    pred: Fields,
    target: Fields,
    spacing: Sequence[Number],
    periodic: Sequence[bool],
    *,
    floor: Number = 0.0,
    reduction: Reduction = "mean",
    mask: Mask = None,
) -> Float[Array, "*b"]:
    """Return the relative error of the gradient, in the H1 seminorm, of each sample.

    The error is sqrt(sum_i mean (D_i e)^2 / (max(sum_i mean (D_i target)^2, floor) + eps)) with e = pred - target. D_i
    is the first difference along axis i divided by `relative_spacing`, so that the error does not depend on the unit of
    length, and eps is `EPSILON`. A difference counts if the mask keeps both of its points.

    Args:
        pred: Predicted fields `(b, *s, c)`, usually normalised.
        target: True fields of the same shape and units.
        spacing: Grid spacing along each axis, in any unit of length.
        floor: Smallest sum of mean square differences by which the error is divided.
        mask: Samples `(b,)` or points `(b, *s)` that count.

    References:
        Czarnecki et al. 2017 (Sobolev training); Li et al. 2022 for neural operators.
    """
    check_same_shape(pred, target)
    points = point_mask(mask, target)
    return reduce_samples(
        _gradient_ratio(
            at_least_float32(pred),
            at_least_float32(target),
            relative_spacing(spacing, target.shape[1:-1]),
            periodic,
            points,
            floor,
        ),
        sample_mask(mask, target),
        reduction,
    )


def mse(pred: Fields, target: Fields, *, reduction: Reduction = "mean", mask: Mask = None) -> Float[Array, "*b"]:
    """Return the mean square error over points and channels.

    Args:
        pred: Predicted fields `(b, *s, c)`, usually normalised.
        target: True fields of the same shape and units.
        mask: Samples `(b,)` or points `(b, *s)` that count.
    """
    check_same_shape(pred, target)
    error = at_least_float32(pred) - at_least_float32(target)
    return reduce_samples(mean_per_sample(error**2, point_mask(mask, target)), sample_mask(mask, target), reduction)


def rollout_mse(
    pred: Float[Array | np.ndarray, "b _t *_s c"],
    target: Float[Array | np.ndarray, "b _t *_s c"],
    *,
    reduction: Reduction = "mean",
    mask: Mask = None,
) -> Float[Array, "*b"]:
    """Return the mean square error of a predicted rollout over all times, points and channels.

    Args:
        pred: Predicted fields `(b, t, *s, c)`, usually normalised.
        target: True fields of the same shape and units.
        mask: Samples `(b,)` or points `(b, t, *s)` that count.

    Raises:
        ValueError: If the prediction has no frames.
    """
    if pred.shape[1] == 0:
        raise ValueError(f"the prediction of shape {pred.shape} has no frames on axis 1; pass at least one frame")
    return mse(pred, target, reduction=reduction, mask=mask)


def _error_and_target_mean_squares(
    pred: Fields, target: Fields, mask: Mask
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Return for each sample the mean squares of pred - target and of the target."""
    points, truth = point_mask(mask, target), at_least_float32(target)
    return mean_per_sample((at_least_float32(pred) - truth) ** 2, points), mean_per_sample(truth**2, points)


def _gradient_ratio(
    pred: Float[Array, "b *s c"],
    target: Float[Array, "b *s c"],
    spacing: Sequence[Number],
    periodic: Sequence[bool],
    mask: Float[Array, "b *s"] | None,
    floor: Number,
) -> Float[Array, " b"]:
    """Return rms(gradient of pred - target) / rms(gradient of target) for each sample.

    Args:
        floor: Smallest mean square of the target's gradient by which is divided.
    """
    axes = tuple(range(1, pred.ndim))
    error, size = jnp.zeros(pred.shape[0]), jnp.zeros(pred.shape[0])
    for axis, (step, wraps) in enumerate(zip(spacing, periodic, strict=True), start=1):
        error_squares = forward_difference(pred - target, axis, step, wraps) ** 2
        target_squares = forward_difference(target, axis, step, wraps) ** 2
        if mask is None:
            error, size = error + jnp.mean(error_squares, axes), size + jnp.mean(target_squares, axes)
        else:
            pairs = difference_mask(mask, axis, wraps)
            error, size = error + mean_per_sample(error_squares, pairs), size + mean_per_sample(target_squares, pairs)
    return safe_sqrt(error / (jnp.maximum(size, floor) + EPSILON))


def relative_spacing(spacing: Sequence[Number], shape: Sequence[int]) -> tuple[Number, ...]:
    """Return the grid spacing of each axis in units of the geometric mean of the domain's sides.

    Args:
        spacing: Grid spacing along each axis, in any unit of length.
        shape: Number of grid points along each axis.
    """
    length = math.prod((size * step) ** (1 / len(shape)) for size, step in zip(shape, spacing, strict=True))
    return tuple(step / length for step in spacing)


def forward_difference(x: Float[Array, "b *s c"], axis: int, step: Number, wraps: bool) -> Float[Array, "b *r c"]:
    """Return (x_{i+1} - x_i) / step along an array axis.

    Args:
        x: Fields, channels last.
        axis: Array axis of `x`; the first space axis is 1.
        wraps: Whether the axis is periodic. The result then has as many points as `x`, otherwise one fewer.
    """
    if wraps:
        return (jnp.roll(x, -1, axis) - x) / step
    return jnp.diff(x, axis=axis) / step


def difference_mask(mask: Float[Array, "b *s"], axis: int, wraps: bool) -> Float[Array, "b *r"]:
    """Return the mask of the differences of `forward_difference`, which keeps a difference if `mask` keeps both points.

    Args:
        wraps: Whether the axis is periodic.
    """
    if wraps:
        return mask * jnp.roll(mask, -1, axis)
    size = mask.shape[axis]
    return jnp.take(mask, np.arange(1, size), axis) * jnp.take(mask, np.arange(size - 1), axis)
