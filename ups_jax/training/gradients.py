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
from ups_jax.models import Batch, as_jax_arrays

# ((loss, terms), gradient)
LossAndGradient = tuple[tuple[Float[Array, ""], Terms], PyTree]


def make_gradient_fn(
    loss: StageLoss, micro_batches: int = 1, draw: Draw = lambda batch, _: batch, mesh: Mesh | None = None
) -> Callable[[PyTree, Batch, Key[Array, ""], StepContext], LossAndGradient]:
    """Return the function (params, batch, key, context) -> ((loss, terms), gradient) of a batch.

    Each device processes its micro-batches one after the other. Loss, terms and gradient are means over the rows with
    `mask` 1. They do not depend on the number of micro-batches, except for round-off: `draw` adds the random numbers of
    all rows before the rows are split, all micro-batches use the same key, and the weight of a micro-batch is its
    number of rows.

    Args:
        loss: Loss of the stage, which must be a mean over rows.
        draw: Function (batch, key) -> batch that adds the random numbers of the rows.
        mesh: Mesh over whose devices the rows are distributed; None for a single device.
    """
    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    if micro_batches == 1 and (mesh is None or mesh.size == 1):
        return value_and_grad

    def weighted_sum(params: PyTree, batch: Batch, key: Key[Array, ""], context: StepContext) -> LossAndGradient:
        stacked = split_rows(batch, micro_batches)

        def add_micro_batch(total: LossAndGradient, micro_batch: Batch) -> tuple[LossAndGradient, None]:
            rows = jnp.sum(micro_batch.mask)
            value = value_and_grad(params, micro_batch, key, context)
            return jax.tree.map(lambda partial_sum, new: partial_sum + rows * new, total, value), None

        first = jax.tree.map(lambda values: values[0], stacked)
        shapes = jax.eval_shape(value_and_grad, params, first, key, context)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.scan(add_micro_batch, zeros, stacked)[0]

    def gradients(params: PyTree, batch: Batch, key: Key[Array, ""], context: StepContext) -> LossAndGradient:
        sum_rows = weighted_sum if mesh is None else sum_over_devices(mesh, weighted_sum)
        total = sum_rows(params, draw(batch, key), key, context)
        row_count = jnp.maximum(jnp.sum(batch.mask), 1.0)
        return jax.tree.map(lambda leaf: leaf / row_count, total)

    return gradients


def split_rows(batch: Batch, micro_batches: int) -> Batch:
    """Return the batch with its rows split into micro-batches along a new first axis.

    Copies of the first rows, with `mask` 0, fill up the last micro-batch.
    """
    size = rows_per_micro_batch(batch.num_rows, micro_batches)
    count = math.ceil(batch.num_rows / size)
    missing = count * size - batch.num_rows

    def split_array(values: Array) -> Array:
        filled = jnp.concatenate([values, values[:missing]]) if missing else values
        return filled.reshape(count, size, *values.shape[1:])

    batch = as_jax_arrays(batch)
    mask = jnp.concatenate([batch.mask, jnp.zeros_like(batch.mask, shape=(missing,))])
    return replace(jax.tree.map(split_array, batch), mask=mask.reshape(count, size))


def rows_per_micro_batch(rows: int, micro_batches: int) -> int:
    """Return the number of rows of each micro-batch when `rows` rows are split into `micro_batches`."""
    return math.ceil(rows / micro_batches)
