"""Losses between a predicted and a true field at their points: squares, ratios of squares, and first differences.

A ratio is taken of each sample, except in `nrmse`, which is one ratio of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ups_jax.losses.reduction import (
    Mask,
    Number,
    Reduction,
    at_least_float32,
    point_mask,
    pooled_mean,
    reduce_rows,
    row_mask,
    safe_sqrt,
    same_shape,
    sample_mean,
)

# A floor for the relative errors: fields are normalised, so 1e-8 is far below any field that is not zero.
EPSILON = 1e-8

Fields = Float[Array | np.ndarray, "b *_s c"]


def nrmse(
    pred: Fields, target: Fields, eps: Number = EPSILON, *, reduction: Reduction = "mean", mask: Mask = None
) -> Float[Array, "*b"]:
    """sqrt(mean e^2 / (mean target^2 + eps)), e = pred - target; means over ALL samples, points and channels together.

    `none` gives the same ratio of each sample, `sum` the sum of those; so `mean` is not the mean of `none`. The metric
    of a trajectory is `ups_jax.metrics.field.nrmse`. Source: UPS.
    """
    same_shape(pred, target)
    error, size = _mean_squares(pred, target, mask)
    if reduction == "mean":
        return safe_sqrt(pooled_mean(error, mask, target) / (pooled_mean(size, mask, target) + eps))
    return reduce_rows(safe_sqrt(error / (size + eps)), row_mask(mask, target), reduction)


def relative_mse(
    pred: Fields, target: Fields, eps: Number = EPSILON, *, reduction: Reduction = "mean", mask: Mask = None
) -> Float[Array, "*b"]:
    """mean e^2 / (mean target^2 + eps) of each sample, e = pred - target."""
    same_shape(pred, target)
    error, size = _mean_squares(pred, target, mask)
    return reduce_rows(error / (size + eps), row_mask(mask, target), reduction)


def h1(
    pred: Fields,
    target: Fields,
    spacing: Sequence[Number],
    periodic: Sequence[bool],
    *,
    reduction: Reduction = "mean",
    mask: Mask = None,
) -> Float[Array, "*b"]:
    """The ratio of `nrmse` for the first differences along all axes, of each sample: the seminorm of H1.

    A difference counts where both of its points do. Source: Sobolev training (Czarnecki et al. 2017; Li et al. 2022 for
    operators).
    """
    same_shape(pred, target)
    points = point_mask(mask, target)
    return reduce_rows(
        _gradient_ratio(at_least_float32(pred), at_least_float32(target), spacing, periodic, points),
        row_mask(mask, target),
        reduction,
    )


def forward(pred: Fields, target: Fields, *, reduction: Reduction = "mean", mask: Mask = None) -> Float[Array, "*b"]:
    """mean e^2 of one time step, e = pred - target."""
    same_shape(pred, target)
    error = at_least_float32(pred) - at_least_float32(target)
    return reduce_rows(sample_mean(error**2, point_mask(mask, target)), row_mask(mask, target), reduction)


def rollout(
    pred: Float[Array | np.ndarray, "b _t *_s c"],
    target: Float[Array | np.ndarray, "b _t *_s c"],
    *,
    reduction: Reduction = "mean",
    mask: Mask = None,
) -> Float[Array, "*b"]:
    """mean e^2 over the times of an unrolled prediction; a mask of points is `(b, t, *s)`. ValueError without times."""
    if pred.shape[1] == 0:
        raise ValueError(f"the rollout {pred.shape} has no frame to score")
    return forward(pred, target, reduction=reduction, mask=mask)


def _mean_squares(pred: Fields, target: Fields, mask: Mask) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    points, truth = point_mask(mask, target), at_least_float32(target)
    return sample_mean((at_least_float32(pred) - truth) ** 2, points), sample_mean(truth**2, points)


def _gradient_ratio(
    pred: Float[Array, "b *s c"],
    target: Float[Array, "b *s c"],
    spacing: Sequence[Number],
    periodic: Sequence[bool],
    points: Float[Array, "b *s"] | None,
) -> Float[Array, " b"]:
    axes = tuple(range(1, pred.ndim))
    error, size = jnp.zeros(pred.shape[0]), jnp.zeros(pred.shape[0])
    for axis, (step, wraps) in enumerate(zip(spacing, periodic, strict=True), start=1):
        wrong, true = (
            forward_difference(pred - target, axis, step, wraps) ** 2,
            forward_difference(target, axis, step, wraps) ** 2,
        )
        if points is None:
            error, size = error + jnp.mean(wrong, axes), size + jnp.mean(true, axes)
        else:
            both = difference_mask(points, axis, wraps)
            error, size = error + sample_mean(wrong, both), size + sample_mean(true, both)
    return safe_sqrt(error / (size + EPSILON))


def forward_difference(x: Float[Array, "b *s c"], axis: int, step: Number, wraps: bool) -> Float[Array, "b *r c"]:
    """(x_{i+1} - x_i) / step along an axis; on a periodic one as many as there are points, else one fewer."""
    if wraps:
        return (jnp.roll(x, -1, axis) - x) / step
    return jnp.diff(x, axis=axis) / step


def difference_mask(points: Float[Array, "b *s"], axis: int, wraps: bool) -> Float[Array, "b *r"]:
    """The mask of `difference`: where both of its points count."""
    if wraps:
        return points * jnp.roll(points, -1, axis)
    size = points.shape[axis]
    return jnp.take(points, np.arange(1, size), axis) * jnp.take(points, np.arange(size - 1), axis)
