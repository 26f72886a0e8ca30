"""The loss of each task apart, from per-sample losses; the sum that is trained on stays as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

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
