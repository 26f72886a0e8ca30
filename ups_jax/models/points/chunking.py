"""Long axes of points cut into blocks, so that what is large for each point is held for a block of them alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

# Points that are worked on at a time: 20 MiB for each row with 256 nodes and 32 features.
BLOCK = 8192


def chunked_reduce(
    part: Callable[[Any], Any],
    arrays: Any,
    block: int = BLOCK,
    join: Callable[[Array, Array], Array] = jnp.add,
    start: float = 0.0,
) -> Any:
    """`part` of arrays (b, p, ..), which has no points any more, of all blocks together by `join` from `start`.

    The last block is filled up with zeros, which must leave `part` as it is.
    """
    if _points(arrays) <= block:
        return part(arrays)
    parts = _blocks(arrays, block)
    first = jax.tree.map(lambda leaf: leaf[0], parts)
    begin = jax.tree.map(lambda leaf: jnp.full(leaf.shape, start, leaf.dtype), jax.eval_shape(part, first))
    # Made again for the gradient: what is held at a time is the point of it.
    again = jax.checkpoint(part)
    return jax.lax.scan(lambda total, own: (jax.tree.map(join, total, again(own)), None), begin, parts)[0]


def chunked_map(part: Callable[[Any], Any], arrays: Any, block: int = BLOCK) -> Any:
    """`part` of arrays (b, p, ..), which has a row for each point."""
    points = _points(arrays)
    if points <= block:
        return part(arrays)
    parts = jax.lax.map(jax.checkpoint(part), _blocks(arrays, block))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])[:, :points], parts)


def _points(arrays: Any) -> int:
    return int(jax.tree.leaves(arrays)[0].shape[1])


def _blocks(arrays: Any, block: int) -> Any:
    """Arrays (b, p, ..) as (blocks, b, block, ..), the last filled up with zeros."""

    def cut(x: Array) -> Array:
        count = -(-x.shape[1] // block)
        filled = jnp.pad(x, [(0, 0), (0, count * block - x.shape[1]), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(filled.reshape(x.shape[0], count, block, *x.shape[2:]), 1, 0)

    return jax.tree.map(cut, arrays)
