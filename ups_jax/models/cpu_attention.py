"""Softmax attention of heads with at most two channels on a CPU, vectorised over (sample, head) pairs.

For such heads, matrix products and sums along a row are slow. Here a scan over the keys updates all queries of many
pairs elementwise. Samples are processed in groups, and arrays are stored as `Lanes`: one array (tokens, pairs) per
channel. The backward pass recomputes the attention weights, once for the queries and once for the keys.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ups_jax.models.layers import layer_dtype

# Widest head for which this module is faster. Forward and backward at 32 tokens on one core, in ms, matrix products /
# this module: width 2 69 / 44, width 4 74 / 83, width 8 96 / 293.
_MAX_WIDTH = 2
# (sample, head) pairs per group: at least one whole vector, and few enough for the sums of all their queries to fit
# into a core's L2 cache.
_MIN_PAIRS, _MAX_PAIRS = 16, 128
_MAX_ELEMENTS = 2**14

# One array per channel of a head, (groups, tokens, pairs), or (tokens, pairs) within a group. A single array of all
# channels would be five times slower, because XLA does not vectorise it.
Lanes = tuple[Array, ...]


def samples_per_group(query: Float[Array, "b n a d"], key: Float[Array, "b m a d"]) -> int | None:
    """Return how many samples this module processes at once, or None if matrix products are faster for these shapes."""
    batch, tokens, heads, width = query.shape
    max_samples = min(_MAX_PAIRS, _MAX_ELEMENTS // max(tokens, key.shape[1])) // heads
    divisors = [samples for samples in range(1, min(max_samples, batch) + 1) if batch % samples == 0]
    if width > _MAX_WIDTH or not divisors or divisors[-1] * heads < _MIN_PAIRS:
        return None
    return divisors[-1]


def attention_and_log_sum(
    query: Float[Array, "b n a d"], key: Float[Array, "b m a d"], value: Float[Array, "b m a d"], samples: int
) -> tuple[Float[Array, "b n a d"], Float[Array, "c n g"]]:
    """Return the attention, and the logarithm of each query's sum of exponentiated scores.

    Args:
        samples: Number of samples per group, from `samples_per_group`.
    """
    out, log_sum = jax.lax.map(_attend_group, tuple(_to_lanes(x, samples) for x in (query, key, value)))
    return _from_lanes(out, query), log_sum


def attention_gradients(
    query: Float[Array, "b n a d"],
    key: Float[Array, "b m a d"],
    value: Float[Array, "b m a d"],
    out: Float[Array, "b n a d"],
    log_sum: Float[Array, "c n g"],
    gradient: Float[Array, "b n a d"],
    samples: int,
) -> tuple[Float[Array, "b n a d"], Float[Array, "b m a d"], Float[Array, "b m a d"]]:
    """Return the gradients with respect to query, key and value.

    Args:
        out: Attention, from `attention_and_log_sum`.
        log_sum: Second result of `attention_and_log_sum`.
        gradient: Gradient with respect to `out`.
        samples: Number of samples per group, from `samples_per_group`.
    """
    groups = tuple(_to_lanes(x, samples) for x in (query, key, value, out, gradient))
    gradients = jax.lax.map(_group_gradients, (*groups, log_sum))
    return tuple(_from_lanes(x, like) for x, like in zip(gradients, (query, key, value), strict=True))  # type: ignore[return-value]


def _attend_group(group: tuple[Lanes, Lanes, Lanes]) -> tuple[Lanes, Array]:
    """Return the results of `attention_and_log_sum` for one group (query, key, value), by two scans over the keys."""
    query, key, value = group
    query = _scale(query, len(query) ** -0.5)

    def update_max(highest: Array, key: Lanes) -> tuple[Array, None]:
        return jnp.maximum(highest, _dot(query, key)), None

    def add_weighted_value(
        weight_and_value_sums: tuple[Array, Lanes], key_and_value: tuple[Lanes, Lanes]
    ) -> tuple[tuple[Array, Lanes], None]:
        (weight_sum, value_sum), (key, value) = weight_and_value_sums, key_and_value
        weight = jnp.exp(_dot(query, key) - highest)
        return (weight_sum + weight, _add_weighted(value_sum, weight, value)), None

    highest = jax.lax.scan(update_max, jnp.full_like(query[0], -jnp.inf), _token_rows(key))[0]
    zeros = jnp.zeros_like(query[0]), _zeros_like(query)
    (total, weighted), _ = jax.lax.scan(add_weighted_value, zeros, (_token_rows(key), _token_rows(value)))
    return tuple(channel / total for channel in weighted), highest + jnp.log(total)


def _group_gradients(group: tuple[Any, ...]) -> tuple[Lanes, Lanes, Lanes]:
    """Return the results of `attention_gradients` for one group (query, key, value, out, gradient, log_sum)."""
    query, key, value, out, gradient, log_sum = group
    scale = len(query) ** -0.5
    query, out_dot_gradient = _scale(query, scale), _dot(out, gradient)

    def add_to_query_gradient(sums: Lanes, token: tuple[Lanes, Lanes]) -> tuple[Lanes, None]:
        key, value = token
        score_gradient = jnp.exp(_dot(query, key) - log_sum) * (_dot(gradient, value) - out_dot_gradient)
        return _add_weighted(sums, score_gradient, key), None

    def add_to_key_value_gradients(
        sums: tuple[Lanes, Lanes], token: tuple[Lanes, Lanes, Array, Array]
    ) -> tuple[tuple[Lanes, Lanes], None]:
        query, gradient, log_sum, out_dot_gradient = token
        weight = jnp.exp(_dot(query, key) - log_sum)
        score_gradient = weight * (_dot(gradient, value) - out_dot_gradient)
        return (_add_weighted(sums[0], score_gradient, query), _add_weighted(sums[1], weight, gradient)), None

    query_gradient = jax.lax.scan(add_to_query_gradient, _zeros_like(query), (_token_rows(key), _token_rows(value)))[0]
    tokens = (_token_rows(query), _token_rows(gradient), log_sum[:, None], out_dot_gradient[:, None])
    key_gradient, value_gradient = jax.lax.scan(
        add_to_key_value_gradients, (_zeros_like(key), _zeros_like(value)), tokens
    )[0]
    return _scale(query_gradient, scale), key_gradient, value_gradient


def _dot(x: Lanes, y: Lanes) -> Array:
    """Return the dot product of x and y over their channels, for each token and pair."""
    return sum((a * b for a, b in zip(x[1:], y[1:], strict=True)), x[0] * y[0])


def _add_weighted(sums: Lanes, weight: Array, rows: Lanes) -> Lanes:
    """Return sums + weight * rows, for each channel."""
    return tuple(total + weight * row for total, row in zip(sums, rows, strict=True))


def _scale(lanes: Lanes, factor: float) -> Lanes:
    """Return every channel multiplied by `factor`."""
    return tuple(factor * channel for channel in lanes)


def _zeros_like(lanes: Lanes) -> Lanes:
    """Return zeros of the shape of `lanes`."""
    return tuple(jnp.zeros_like(channel) for channel in lanes)


def _token_rows(lanes: Lanes) -> Lanes:
    """Return each channel with shape (tokens, 1, pairs), so that a scan over the tokens yields rows (1, pairs)."""
    return tuple(channel[:, None] for channel in lanes)


def _to_lanes(x: Float[Array, "b n a d"], samples: int) -> Lanes:
    """Return one array (groups, tokens, pairs) per channel of `x`, in float32 or float64."""
    batch, tokens, heads, width = x.shape
    grouped = x.astype(layer_dtype(jnp.float32, x)).reshape(batch // samples, samples, tokens, heads, width)
    channels = (jnp.swapaxes(grouped[..., channel], 1, 2) for channel in range(width))
    return tuple(channel.reshape(batch // samples, tokens, samples * heads) for channel in channels)


def _from_lanes(lanes: Lanes, like: Float[Array, "b n a d"]) -> Float[Array, "b n a d"]:
    """Return one array per channel, (groups, tokens, pairs), as a single array of the shape and dtype of `like`."""
    batch, tokens, heads, _ = like.shape
    groups, _, pairs = lanes[0].shape
    channels = (jnp.swapaxes(lane.reshape(groups, tokens, pairs // heads, heads), 1, 2) for lane in lanes)
    return jnp.stack([channel.reshape(batch, tokens, heads) for channel in channels], axis=-1).astype(like.dtype)
