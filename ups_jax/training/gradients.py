"""Gradients of a batch, accumulated over micro-batches and summed over devices."""

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
    loss: StageLoss, micro_batches: int = 1, draw: Draw = lambda batch, _: batch, mesh: Mesh | None = None
) -> Callable[[PyTree, Batch, Key[Array, ""], StepContext], LossAndGradient]:
    """Return the function (params, batch, key, context) -> ((loss, terms), gradient) of a batch.

    The rows are split into micro-batches, which each device processes one after the other. Loss, terms and gradient are
    means over the rows with `mask` 1. They do not depend on the split, except for round-off: `draw` makes the random
    numbers of all rows before the split, all micro-batches use the same key, and each is weighted by its rows. This
    requires a loss that is a mean over rows, as those of `ups_jax.losses` are.

    Args:
        loss: Loss of the stage.
        micro_batches: Number of micro-batches.
        draw: Function (batch, key) -> batch that adds the random numbers of the rows.
        mesh: Mesh whose devices share the rows; None for a single device.
    """
    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    if micro_batches == 1 and (mesh is None or mesh.size == 1):
        return value_and_grad

    def summed(params: PyTree, batch: Batch, key: Key[Array, ""], context: StepContext) -> LossAndGradient:
        groups = split(batch, micro_batches)

        def add(total: LossAndGradient, group: Batch) -> tuple[LossAndGradient, None]:
            rows = jnp.sum(group.mask)
            value = value_and_grad(params, group, key, context)
            return jax.tree.map(lambda partial_sum, new: partial_sum + rows * new, total, value), None

        first = jax.tree.map(lambda values: values[0], groups)
        shapes = jax.eval_shape(value_and_grad, params, first, key, context)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.scan(add, zeros, groups)[0]

    def gradients(params: PyTree, batch: Batch, key: Key[Array, ""], context: StepContext) -> LossAndGradient:
        sum_rows = summed if mesh is None else sum_over_devices(mesh, summed)
        total = sum_rows(params, draw(batch, key), key, context)
        row_count = jnp.maximum(jnp.sum(batch.mask), 1.0)
        return jax.tree.map(lambda leaf: leaf / row_count, total)

    return gradients


def split(batch: Batch, micro_batches: int) -> Batch:
    """Return the batch with its rows split into micro-batches along a new first axis.

    If the rows do not fill the last micro-batch, the first rows of the batch pad it, with `mask` 0.
    """
    size = rows_per_micro_batch(batch.rows, micro_batches)
    groups = math.ceil(batch.rows / size)
    missing = groups * size - batch.rows

    def grouped(values: Array) -> Array:
        filled = jnp.concatenate([values, values[:missing]]) if missing else values
        return filled.reshape(groups, size, *values.shape[1:])

    batch = on_device(batch)
    counts = jnp.concatenate([batch.mask, jnp.zeros_like(batch.mask, shape=(missing,))])
    return replace(jax.tree.map(grouped, batch), mask=counts.reshape(groups, size))


def rows_per_micro_batch(rows: int, micro_batches: int) -> int:
    """Return the number of rows of a micro-batch."""
    return math.ceil(rows / micro_batches)
