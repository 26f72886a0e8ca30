"""Masks and reductions shared by all losses, and the loss of each task of a stage loss.

A loss first computes one value per sample, averaged over the points that its mask keeps; the reduction then combines
the samples into one number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

# `mean` and `sum` run over the samples that the mask keeps; `none` returns one value per sample, 0 where masked out.
Reduction = Literal["mean", "sum", "none"]
# One number per sample `(b,)` or per point `(b, *s)`: 0 or False excludes it. Excluded values must still be finite.
Mask = Float[Array | np.ndarray, "..."] | Bool[Array | np.ndarray, "..."] | None
Number = float | int | Float[Array, ""]
Values = Float[Array | np.ndarray, "..."]


def check_same_shape(pred: Values, target: Values) -> None:
    """Raise ValueError if the shapes differ, because broadcasting would give a wrong but plausible number."""
    if pred.shape != target.shape:
        raise ValueError(f"prediction {pred.shape} and target {target.shape} differ in shape")


def at_least_float32(x: Values) -> Float[Array, "..."]:
    """Return `x` in float64 if it is float64, else in float32: the square of a bfloat16 keeps only three digits."""
    return jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))


def point_mask(mask: Mask, x: Values) -> Float[Array, "..."] | None:
    """Return the mask of the points of `x` in float32, or None if every point counts.

    Args:
        mask: A mask of samples `(b,)`, of points `(b, *s)`, or None.
        x: The values `(b, *s, c)` that the mask belongs to.

    Raises:
        ValueError: If the mask has the shape of neither the samples nor the points.
    """
    if mask is None or mask.ndim == 1:
        return None
    if mask.shape != x.shape[:-1]:
        raise ValueError(_wrong_mask_message(mask, x))
    return jnp.asarray(mask, jnp.float32)


def sample_mask(mask: Mask, x: Values) -> Float[Array, " b"]:
    """Return 1 for each sample that counts and 0 for the others; a sample counts if the mask keeps any of its points.

    Args:
        mask: A mask of samples `(b,)`, of points `(b, *s)`, or None.
        x: The values `(b, *s, c)` that the mask belongs to.

    Raises:
        ValueError: If the mask has the shape of neither the samples nor the points.
    """
    if mask is None:
        return jnp.ones(x.shape[0], jnp.float32)
    if mask.shape == x.shape[:1]:
        return jnp.asarray(mask, jnp.float32)
    points = point_mask(mask, x)
    if points is None:
        raise ValueError(_wrong_mask_message(mask, x))
    return (points.reshape(points.shape[0], -1).max(-1) > 0).astype(jnp.float32)


def mean_per_channel(x: Float[Array, "b *s c"], mask: Float[Array, "b *s"] | None) -> Float[Array, "b c"]:
    """Return the mean of each sample and channel over the points that `mask` keeps; 0 if it keeps none."""
    axes = tuple(range(1, x.ndim - 1))
    if mask is None:
        return x.mean(axes)
    weights = jnp.broadcast_to(mask[..., None], x.shape)
    return (x * weights).sum(axes) / jnp.maximum(weights.sum(axes), 1e-30)


def mean_per_sample(x: Float[Array, "b *s c"], mask: Float[Array, "b *s"] | None) -> Float[Array, " b"]:
    """Return the mean of each sample over its channels and over the points that `mask` keeps."""
    return mean_per_channel(x, mask).mean(-1)


def pooled_mean(sample_means: Float[Array, " b"], mask: Mask, x: Values) -> Float[Array, ""]:
    """Return the mean over the kept points of all samples, from the mean of each sample over its kept points.

    Args:
        sample_means: Mean of each sample over the points that `mask` keeps.
        mask: A mask of samples `(b,)`, of points `(b, *s)`, or None.
        x: The values `(b, *s, c)` that the mask belongs to.
    """
    points = point_mask(mask, x)
    counts = sample_mask(mask, x) if points is None else points.reshape(points.shape[0], -1).sum(-1)
    return (sample_means * counts).sum() / jnp.maximum(counts.sum(), 1e-30)


def reduce_samples(values: Float[Array, " b"], mask: Float[Array, " b"], reduction: Reduction) -> Float[Array, "*b"]:
    """Return `values` (one per sample) times `mask`, combined over the samples by `reduction`.

    Raises:
        ValueError: If `reduction` is not `mean`, `sum` or `none`.
    """
    masked = values * mask
    if reduction == "none":
        return masked
    if reduction == "sum":
        return masked.sum()
    if reduction == "mean":
        return masked.sum() / jnp.maximum(mask.sum(), 1e-30)
    raise ValueError(f"unknown reduction {reduction!r}; use mean, sum or none")


def safe_abs(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Return |x| with the gradient 0 at 0.

    The gradient of `jnp.abs` at 0 is 1, which would push the optimizer away from a condition that is already met.
    """
    return x * jax.lax.stop_gradient(jnp.sign(x))


def safe_sqrt(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Return the square root of `x` with the gradient 0 at 0, where the gradient of `jnp.sqrt` is infinite."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


# Prefixes of a task's name in the terms of a stage loss.
_LOSS, _SHARE = "per_task_loss/", "per_task_share/"


def per_task_terms(
    tasks: Sequence[str],
    per_sample: Float[Array, " b"],
    mask: Float[Array, " b"],
    task_id: Int[Array, " b"] | None = None,
) -> dict[str, Float[Array, ""]]:
    """Return two terms for each task: its part of the batch's mean loss, and its share of the batch's rows.

    Both are means over the rows that `mask` keeps. The mean of a term over micro-batches, weighted by their numbers of
    rows, is therefore the term of the whole batch. `per_task_metrics` turns the terms into metrics.

    Args:
        per_sample: Loss of each row.
        mask: 1 for each row that counts, 0 for padding.
        task_id: Index into `tasks` for each row; None if all rows belong to the first task.
    """
    ids = jnp.zeros(mask.shape, jnp.int32) if task_id is None else task_id
    rows = mask / jnp.maximum(mask.sum(), 1.0)
    terms = {}
    for number, task in enumerate(tasks):
        share = jnp.where(ids == number, rows, 0.0)
        terms[f"{_LOSS}{task}"] = jnp.sum(share * per_sample)
        terms[f"{_SHARE}{task}"] = share.sum()
    return terms


def per_task_metrics(
    terms: Mapping[str, Float[Array, ""]], rows: Float[Array, ""] | Int[Array, ""]
) -> dict[str, Float[Array, ""]]:
    """Return the terms, with `{task}/loss` and `{task}/sample_count` in place of the terms of `per_task_terms`.

    The loss of a task without rows is NaN, which the records show as null.

    Args:
        rows: Number of rows of the batch that count.
    """
    metrics = {name: value for name, value in terms.items() if not name.startswith((_LOSS, _SHARE))}
    for name, value in terms.items():
        if name.startswith(_LOSS):
            task = name.removeprefix(_LOSS)
            share = terms[f"{_SHARE}{task}"]
            metrics[f"{task}/loss"] = jnp.where(share > 0, value / jnp.where(share > 0, share, 1.0), jnp.nan)
            metrics[f"{task}/sample_count"] = share * rows
    return metrics


def _wrong_mask_message(mask: Values | Bool[Array | np.ndarray, "..."], x: Values) -> str:
    """Return the message for a mask that fits neither the samples nor the points of `x`."""
    return f"mask {mask.shape} matches neither the {x.shape[0]} samples nor the points {x.shape[:-1]}"
