"""What all losses share: a value a sample becomes one number, and masks say which samples or points count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

# `mean` and `sum` run over the samples that count; `none` gives one value a sample, 0 where one does not count.
Reduction = Literal["mean", "sum", "none"]
# One number a sample `(b,)` or a point `(b, *s)`: 0 or False leaves it out. What it leaves out must still be finite.
Mask = Float[Array | np.ndarray, "..."] | Bool[Array | np.ndarray, "..."] | None
# A plain number; an int is one too.
Number = float | int | Float[Array, ""]
Values = Float[Array | np.ndarray, "..."]


def same_shape(pred: Values, target: Values) -> None:
    """ValueError where two arrays would only meet by broadcasting, into a wrong but plausible number."""
    if pred.shape != target.shape:
        raise ValueError(f"prediction {pred.shape} and target {target.shape} differ in shape")


def at_least_float32(x: Values) -> Float[Array, "..."]:
    """The values in float32, or in float64 if they are: squares of bfloat16 keep three digits."""
    return jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))


def point_mask(mask: Mask, x: Values) -> Float[Array, "..."] | None:
    """The mask of the points of `x (b, *s, c)`, or None where all of them count."""
    if mask is None or mask.ndim == 1:
        return None
    if mask.shape != x.shape[:-1]:
        raise ValueError(f"mask {mask.shape} is neither of the {x.shape[0]} samples nor of the points {x.shape[:-1]}")
    return jnp.asarray(mask, jnp.float32)


def row_mask(mask: Mask, x: Values) -> Float[Array, " b"]:
    """1 for each sample of `x` that counts: one whose row, or any of whose points, the mask keeps."""
    if mask is None:
        return jnp.ones(x.shape[0], jnp.float32)
    if mask.shape == x.shape[:1]:
        return jnp.asarray(mask, jnp.float32)
    points = point_mask(mask, x)
    if points is None:
        raise ValueError(f"mask {mask.shape} is neither of the {x.shape[0]} samples nor of the points {x.shape[:-1]}")
    return (points.reshape(points.shape[0], -1).max(-1) > 0).astype(jnp.float32)


def space_mean(x: Float[Array, "b *s c"], points: Float[Array, "b *s"] | None) -> Float[Array, "b c"]:
    """Mean over the points that count, a channel; 0 where none does."""
    axes = tuple(range(1, x.ndim - 1))
    if points is None:
        return x.mean(axes)
    weights = jnp.broadcast_to(points[..., None], x.shape)
    return (x * weights).sum(axes) / jnp.maximum(weights.sum(axes), 1e-30)


def sample_mean(x: Float[Array, "b *s c"], points: Float[Array, "b *s"] | None) -> Float[Array, " b"]:
    """Mean over the points that count and the channels."""
    return space_mean(x, points).mean(-1)


def pooled_mean(values: Float[Array, " b"], mask: Mask, x: Values) -> Float[Array, ""]:
    """From means over each sample of `x` the mean over all samples' points together."""
    points = point_mask(mask, x)
    counts = row_mask(mask, x) if points is None else points.reshape(points.shape[0], -1).sum(-1)
    return (values * counts).sum() / jnp.maximum(counts.sum(), 1e-30)


def reduce_rows(values: Float[Array, " b"], rows: Float[Array, " b"], reduction: Reduction) -> Float[Array, "*b"]:
    """The samples' values under a reduction; ValueError where there is none of that name."""
    kept = values * rows
    if reduction == "none":
        return kept
    if reduction == "sum":
        return kept.sum()
    if reduction == "mean":
        return kept.sum() / jnp.maximum(rows.sum(), 1e-30)
    raise ValueError(f"reduction {reduction!r} is none of mean, sum, none")


def safe_abs(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """|x| whose gradient at 0 is 0; that of `jnp.abs` is 1 there, a push away from a condition that is met."""
    return x * jax.lax.stop_gradient(jnp.sign(x))


def safe_sqrt(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Square root whose gradient at 0 is 0, not infinite."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


# Before a task's name in the terms of a loss bundle.
_LOSS, _SHARE = "per_task_loss/", "per_task_share/"


def per_task_terms(
    tasks: Sequence[str],
    per_sample: Float[Array, " b"],
    mask: Float[Array, " b"],
    task_id: Int[Array, " b"] | None = None,
) -> dict[str, Float[Array, ""]]:
    """Each task's part of the mean of `per_sample` over the rows that the mask keeps, and its share of those rows.

    `task_id` numbers `tasks`; without it all rows are the first task's. Both are means over rows, so that the mean over
    micro-batches, weighted by their rows, is that of the whole batch; `per_task_metrics` makes metrics of them.
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
    """The terms, those of `per_task_terms` as `{task}/loss` and `{task}/sample_count` of a batch of `rows` kept rows.

    A task without a row has the loss NaN, which the records show as null.
    """
    metrics = {name: value for name, value in terms.items() if not name.startswith((_LOSS, _SHARE))}
    for name, value in terms.items():
        if name.startswith(_LOSS):
            task = name.removeprefix(_LOSS)
            share = terms[f"{_SHARE}{task}"]
            metrics[f"{task}/loss"] = jnp.where(share > 0, value / jnp.where(share > 0, share, 1.0), jnp.nan)
            metrics[f"{task}/sample_count"] = share * rows
    return metrics
