"""Losses between a predicted and a true field, per sample, relative to the size of the truth."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

# A floor for the relative errors: fields are normalised, so 1e-8 is far below any field that is not zero.
EPSILON = 1e-8


def relative_l2(pred: Float[Array, "b *s c"], target: Float[Array, "b *s c"]) -> Float[Array, " b"]:
    """sqrt(mean (pred - target)^2 / (mean target^2 + eps)) of each sample: the training form of nRMSE."""
    axes = tuple(range(1, pred.ndim))
    ratio = jnp.mean((pred - target) ** 2, axes) / (jnp.mean(target**2, axes) + EPSILON)
    return _safe_sqrt(ratio)


def relative_gradient_error(
    pred: Float[Array, "b *s c"],
    target: Float[Array, "b *s c"],
    spacing: Sequence[float],
    periodic: Sequence[bool],
) -> Float[Array, " b"]:
    """The same ratio for the first differences along all axes: the seminorm of H1.

    Source: Sobolev training (Czarnecki et al. 2017; Li et al. 2022 for operators).
    """
    axes = tuple(range(1, pred.ndim))
    error, size = jnp.zeros(pred.shape[0]), jnp.zeros(pred.shape[0])
    for axis, (step, wraps) in enumerate(zip(spacing, periodic, strict=True), start=1):
        error = error + jnp.mean(_difference(pred - target, axis, step, wraps) ** 2, axes)
        size = size + jnp.mean(_difference(target, axis, step, wraps) ** 2, axes)
    return _safe_sqrt(error / (size + EPSILON))


def _difference(x: Float[Array, "b *s c"], axis: int, step: float, wraps: bool) -> Float[Array, "b *r c"]:
    if wraps:
        return (jnp.roll(x, -1, axis) - x) / step
    return jnp.diff(x, axis=axis) / step


def _safe_sqrt(x: Float[Array, " b"]) -> Float[Array, " b"]:
    """Square root whose gradient at 0 is 0, not infinite."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)
