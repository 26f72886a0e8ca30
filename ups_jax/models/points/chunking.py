"""Functions of many points, computed in chunks of points to bound the memory of intermediate values per point."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

# Points per chunk: 20 MiB of intermediate values per row with 256 nodes and 32 features.
CHUNK_SIZE = 8192


def chunked_reduce(
    function: Callable[[PyTree], PyTree],
    arrays: PyTree,
    chunk_size: int = CHUNK_SIZE,
    combine: Callable[[Array, Array], Array] = jnp.add,
    initial: float = 0.0,
) -> PyTree:
    """Return the values of `function` on chunks of points, combined into one; the backward pass recomputes each chunk.

    Args:
        function: Maps arrays of a chunk to results without the axis of points. Padding points, whose arrays are zero,
            must not change its result.
        arrays: Arrays (b, p, ...) with p points.
        combine: Combines the results of two chunks.
        initial: Neutral element of `combine`.
    """
    if _num_points(arrays) <= chunk_size:
        return function(arrays)
    chunks = _to_chunks(arrays, chunk_size)
    first = jax.tree.map(lambda leaf: leaf[0], chunks)
    start = jax.tree.map(lambda leaf: jnp.full(leaf.shape, initial, leaf.dtype), jax.eval_shape(function, first))
    checkpointed = jax.checkpoint(function)
    return jax.lax.scan(lambda total, chunk: (jax.tree.map(combine, total, checkpointed(chunk)), None), start, chunks)[
        0
    ]


def chunked_map(function: Callable[[PyTree], PyTree], arrays: PyTree, chunk_size: int = CHUNK_SIZE) -> PyTree:
    """Return `function(arrays)`, computed in chunks of points; the backward pass recomputes each chunk.

    Args:
        function: Maps arrays of a chunk to results with one entry per point on axis 1.
        arrays: Arrays (b, p, ...) with p points.
    """
    points = _num_points(arrays)
    if points <= chunk_size:
        return function(arrays)
    results = jax.lax.map(jax.checkpoint(function), _to_chunks(arrays, chunk_size))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])[:, :points], results)


def _num_points(arrays: PyTree) -> int:
    """Return the number of points of arrays (b, p, ...)."""
    return int(jax.tree.leaves(arrays)[0].shape[1])


def _to_chunks(arrays: PyTree, chunk_size: int) -> PyTree:
    """Return arrays (b, p, ...) as (chunks, b, chunk_size, ...), with the last chunk padded by zeros."""

    def split_points(x: Array) -> Array:
        count = -(-x.shape[1] // chunk_size)
        padded = jnp.pad(x, [(0, 0), (0, count * chunk_size - x.shape[1]), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(padded.reshape(x.shape[0], count, chunk_size, *x.shape[2:]), 1, 0)

    return jax.tree.map(split_points, arrays)
