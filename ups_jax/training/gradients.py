"""Gradients of a batch in micro-batches: as many rows in memory at a time, the gradient of all of them in the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Key

from ups_jax.distributed.mesh import over_rows
from ups_jax.losses import Batch, StageLoss

# (batch, key) -> the batch with what is random in each of its rows.
Draw = Callable[[Batch, Key[Array, ""]], Batch]


def gradients_of(
    losses: StageLoss,
    micro_batches: int = 1,
    draw: Draw = lambda batch, _: batch,
    mesh: Mesh | None = None,
) -> Callable[..., Any]:
    """(params, batch, key, ...) -> ((loss, terms), gradients), over the rows in `micro_batches` groups, one at a time,
    on each device of `mesh` those of its own rows.

    Loss, terms and gradients are the means over the rows that count (`mask`), whatever the groups: each group has the
    weight of its own count, and the last may be filled up with rows that do not count. What is random is that of the
    whole batch: `draw` makes what belongs to rows before they are split, and every group has the same key. That is one
    batch's gradient to round-off for losses that are means over rows, which those of `ups_jax.losses` are.
    """
    value_and_grad = jax.value_and_grad(losses, has_aux=True)
    several = mesh is not None and mesh.size > 1
    if micro_batches == 1 and not several:
        return value_and_grad

    def summed(params: Any, batch: Batch, key: Key[Array, ""], more: Any, named: Any) -> Any:
        groups = split(batch, micro_batches)

        def add(total: Any, group: dict[str, Array]) -> tuple[Any, None]:
            rows = jnp.sum(group["mask"])
            value = value_and_grad(params, group, key, *more, **named)
            return jax.tree.map(lambda so_far, new: so_far + rows * new, total, value), None

        first = {name: values[0] for name, values in groups.items()}
        shapes = jax.eval_shape(value_and_grad, params, first, key, *more, **named)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.scan(add, zeros, groups)[0]

    def gradients(params: Any, batch: Batch, key: Key[Array, ""], *more: Any, **named: Any) -> Any:
        over = summed if mesh is None else over_rows(mesh, summed)
        total = over(params, draw(batch, key), key, more, named)
        counted = jnp.maximum(jnp.sum(batch["mask"]), 1.0)
        return jax.tree.map(lambda leaf: leaf / counted, total)

    return gradients


def split(batch: Batch, micro_batches: int) -> dict[str, Array]:
    """The rows of every array in groups on a new first axis; where they do not fill the last group, its first rows
    stand in for the missing ones, with `mask` 0."""
    rows = len(batch["mask"])
    size = group_size(rows, micro_batches)
    groups = math.ceil(rows / size)
    missing = groups * size - rows

    def grouped(values: Array) -> Array:
        filled = jnp.concatenate([values, values[:missing]]) if missing else values
        return filled.reshape(groups, size, *values.shape[1:])

    arrays = {name: jnp.asarray(values) for name, values in batch.items()}
    counts = jnp.concatenate([arrays["mask"], jnp.zeros_like(arrays["mask"], shape=(missing,))])
    return {name: grouped(values) for name, values in arrays.items()} | {"mask": counts.reshape(groups, size)}


def group_size(rows: int, micro_batches: int) -> int:
    """Rows of a micro-batch."""
    return math.ceil(rows / micro_batches)
