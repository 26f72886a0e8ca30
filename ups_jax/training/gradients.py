"""Gradients of a batch in micro-batches: as many rows in memory at a time, the gradient of all of them in the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key, PyTree

from ups_jax.distributed.mesh import sum_over_devices
from ups_jax.losses import Draw, StageLoss, StepContext, Terms
from ups_jax.models import Batch, on_device

# ((loss, terms), gradient)
LossAndGradient = tuple[tuple[Float[Array, ""], Terms], PyTree]


def make_gradient_fn(
    losses: StageLoss, micro_batches: int = 1, draw: Draw = lambda batch, _: batch, mesh: Mesh | None = None
) -> Callable[[PyTree, Batch, Key[Array, ""], StepContext], LossAndGradient]:
    """Return (params, batch, key, context) -> ((loss, terms), gradient), over the rows in `micro_batches` groups, one
    at a time, on each device of `mesh` those of its own rows.

    Loss, terms and gradients are the means over the rows that count (`mask`), whatever the groups: each group has the
    weight of its own count, and the last may be filled up with rows that do not count. What is random is that of the
    whole batch: `draw` makes what belongs to rows before they are split, and every group has the same key. That is one
    batch's gradient to round-off for losses that are means over rows, which those of `ups_jax.losses` are.
    """
    value_and_grad = jax.value_and_grad(losses, has_aux=True)
    if micro_batches == 1 and (mesh is None or mesh.size == 1):
        return value_and_grad

    def summed(params: PyTree, batch: Batch, key: Key[Array, ""], context: StepContext) -> LossAndGradient:
        groups = split(batch, micro_batches)

        def add(total: LossAndGradient, group: Batch) -> tuple[LossAndGradient, None]:
            rows = jnp.sum(group.mask)
            value = value_and_grad(params, group, key, context)
            return jax.tree.map(lambda so_far, new: so_far + rows * new, total, value), None

        first = jax.tree.map(lambda values: values[0], groups)
        shapes = jax.eval_shape(value_and_grad, params, first, key, context)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.scan(add, zeros, groups)[0]

    def gradients(params: PyTree, batch: Batch, key: Key[Array, ""], context: StepContext) -> LossAndGradient:
        over = summed if mesh is None else sum_over_devices(mesh, summed)
        total = over(params, draw(batch, key), key, context)
        counted = jnp.maximum(jnp.sum(batch.mask), 1.0)
        return jax.tree.map(lambda leaf: leaf / counted, total)

    return gradients


def split(batch: Batch, micro_batches: int) -> Batch:
    """Return the rows of every array in groups on a new first axis; where they do not fill the last group, its first
    rows stand in for the missing ones, with `mask` 0."""
    size = group_size(batch.rows, micro_batches)
    groups = math.ceil(batch.rows / size)
    missing = groups * size - batch.rows

    def grouped(values: Array) -> Array:
        filled = jnp.concatenate([values, values[:missing]]) if missing else values
        return filled.reshape(groups, size, *values.shape[1:])

    batch = on_device(batch)
    counts = jnp.concatenate([batch.mask, jnp.zeros_like(batch.mask, shape=(missing,))])
    return replace(jax.tree.map(grouped, batch), mask=counts.reshape(groups, size))


def group_size(rows: int, micro_batches: int) -> int:
    """Return the rows of a micro-batch."""
    return math.ceil(rows / micro_batches)
