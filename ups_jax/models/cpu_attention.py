"""Softmax attention of many narrow heads, for a CPU: the (sample, head) pairs lie in the lanes of its vectors.

A head of width 2 is too little for products of matrices and for sums along a row. Here one key after the other goes
past all queries of many pairs, elementwise: a score is a few multiplications, and a sum grows in place. The weights are
made again for the gradient, once for each side.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ups_jax.models.layers import layer_dtype

# Forward and backward at 32 tokens, ms on a core, as products / so: width 2 69 / 44, width 4 74 / 83, width 8 96 / 293.
_MOST_WIDTH = 2
# Pairs at a time: whole vectors, and few enough for the sums of all their queries to stay in a core's second cache.
_LEAST_PAIRS, _MOST_PAIRS = 16, 128
_MOST_NUMBERS = 2**14

# The numbers of each channel of a head, an array (groups, tokens, pairs) a channel, or (tokens, pairs) within a group.
# As one array of all channels they are five times slower: XLA does not make vectors of it.
Lanes = tuple[Array, ...]


def samples_per_group(query: Float[Array, "b n a d"], key: Float[Array, "b m a d"]) -> int | None:
    """How many samples share a group; None where products of matrices are the faster way."""
    batch, tokens, heads, width = query.shape
    most = min(_MOST_PAIRS, _MOST_NUMBERS // max(tokens, key.shape[1])) // heads
    fitting = [rows for rows in range(1, min(most, batch) + 1) if batch % rows == 0]
    if width > _MOST_WIDTH or not fitting or fitting[-1] * heads < _LEAST_PAIRS:
        return None
    return fitting[-1]


def attend(
    query: Float[Array, "b n a d"], key: Float[Array, "b m a d"], value: Float[Array, "b m a d"], rows: int
) -> tuple[Float[Array, "b n a d"], Float[Array, "c n g"]]:
    """Attention, and the logarithm of the sum of exponentials of each query."""
    out, logarithm = jax.lax.map(_attend, tuple(_lanes(part, rows) for part in (query, key, value)))
    return _tokens(out, query), logarithm


def attend_gradient(
    query: Float[Array, "b n a d"],
    key: Float[Array, "b m a d"],
    value: Float[Array, "b m a d"],
    out: Float[Array, "b n a d"],
    logarithm: Float[Array, "c n g"],
    gradient: Float[Array, "b n a d"],
    rows: int,
) -> tuple[Float[Array, "b n a d"], Float[Array, "b m a d"], Float[Array, "b m a d"]]:
    """Gradients by query, key and value, of the gradient by `out`."""
    parts = tuple(_lanes(part, rows) for part in (query, key, value, out, gradient))
    gradients = jax.lax.map(_attend_gradient, (*parts, logarithm))
    return tuple(_tokens(part, like) for part, like in zip(gradients, (query, key, value), strict=True))  # type: ignore[return-value]


def _attend(parts: tuple[Lanes, Lanes, Lanes]) -> tuple[Lanes, Array]:
    query, key, value = parts
    query = _times(query, len(query) ** -0.5)

    def larger(highest: Array, key: Lanes) -> tuple[Array, None]:
        return jnp.maximum(highest, _dot(query, key)), None

    def add(sums: tuple[Array, Lanes], token: tuple[Lanes, Lanes]) -> tuple[tuple[Array, Lanes], None]:
        key, value = token
        weight = jnp.exp(_dot(query, key) - highest)
        return (sums[0] + weight, _add(sums[1], weight, value)), None

    highest = jax.lax.scan(larger, jnp.full_like(query[0], -jnp.inf), _one_by_one(key))[0]
    nothing = jnp.zeros_like(query[0]), _nothing(query)
    (total, weighted), _ = jax.lax.scan(add, nothing, (_one_by_one(key), _one_by_one(value)))
    return tuple(part / total for part in weighted), highest + jnp.log(total)


def _attend_gradient(parts: tuple[Any, ...]) -> tuple[Lanes, Lanes, Lanes]:
    query, key, value, out, gradient, logarithm = parts
    scale = len(query) ** -0.5
    query, along = _times(query, scale), _dot(out, gradient)

    def of_query(sums: Lanes, token: tuple[Lanes, Lanes]) -> tuple[Lanes, None]:
        key, value = token
        change = jnp.exp(_dot(query, key) - logarithm) * (_dot(gradient, value) - along)
        return _add(sums, change, key), None

    def of_key(sums: tuple[Lanes, Lanes], token: tuple[Lanes, Lanes, Array, Array]) -> tuple[tuple[Lanes, Lanes], None]:
        query, gradient, logarithm, along = token
        weight = jnp.exp(_dot(query, key) - logarithm)
        change = weight * (_dot(gradient, value) - along)
        return (_add(sums[0], change, query), _add(sums[1], weight, gradient)), None

    by_query = jax.lax.scan(of_query, _nothing(query), (_one_by_one(key), _one_by_one(value)))[0]
    tokens = (_one_by_one(query), _one_by_one(gradient), logarithm[:, None], along[:, None])
    by_key, by_value = jax.lax.scan(of_key, (_nothing(key), _nothing(value)), tokens)[0]
    return _times(by_query, scale), by_key, by_value


def _dot(one: Lanes, other: Lanes) -> Array:
    return sum((a * b for a, b in zip(one[1:], other[1:], strict=True)), one[0] * other[0])


def _add(sums: Lanes, weight: Array, rows: Lanes) -> Lanes:
    return tuple(total + weight * row for total, row in zip(sums, rows, strict=True))


def _times(lanes: Lanes, factor: float) -> Lanes:
    return tuple(factor * part for part in lanes)


def _nothing(lanes: Lanes) -> Lanes:
    return tuple(jnp.zeros_like(part) for part in lanes)


def _one_by_one(lanes: Lanes) -> Lanes:
    """To scan over: each token's numbers as a row."""
    return tuple(part[:, None] for part in lanes)


def _lanes(x: Float[Array, "b n a d"], rows: int) -> Lanes:
    """In float32 at least: a CPU's vectors are no faster in fewer bits."""
    batch, tokens, heads, width = x.shape
    grouped = x.astype(layer_dtype(jnp.float32, x)).reshape(batch // rows, rows, tokens, heads, width)
    turned = (jnp.swapaxes(grouped[..., channel], 1, 2) for channel in range(width))
    return tuple(part.reshape(batch // rows, tokens, rows * heads) for part in turned)


def _tokens(lanes: Lanes, like: Float[Array, "b n a d"]) -> Float[Array, "b n a d"]:
    batch, tokens, heads, _ = like.shape
    groups, _, pairs = lanes[0].shape
    channels = (jnp.swapaxes(part.reshape(groups, tokens, pairs // heads, heads), 1, 2) for part in lanes)
    return jnp.stack([part.reshape(batch, tokens, heads) for part in channels], axis=-1).astype(like.dtype)
