"""Latent tokens without a grid: learned queries attend to all points, and points attend to the tokens.

Positions enter as Fourier features at integer frequencies (Tancik et al. 2020): whole periods on a periodic axis, half
periods between walls. The queries are learned vectors of the same length. They start as the features of positions
spread evenly over the box, so that each query initially attends to the points around its position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ups_jax.config import LatentConfig
from ups_jax.core.task import Task
from ups_jax.models.attention import attention
from ups_jax.models.layers import Dense
from ups_jax.models.points.chunking import CHUNK_SIZE, chunked_map, chunked_reduce

# Initial score of a query for a point at its position, without the contribution of the features.
_SHARPNESS = 6.0
# Smallest number of frequencies per axis.
_MIN_FREQUENCIES = 4


class QueryPooling(nn.Module):
    """Attention of `latent.nodes` queries to points (`pool`), and of points to the resulting tokens (`read`)."""

    task: Task
    latent: LatentConfig
    width: int
    num_heads: int

    def setup(self) -> None:
        # Queries and keys share the map of positions, so that a score is highest where the positions agree. The layers
        # named `told_` read the tokens; their names are those of stored parameters.
        sharp = nn.initializers.variance_scaling(
            2 * _SHARPNESS / math.sqrt(self.width // self.num_heads), "fan_in", "truncated_normal"
        )
        self.queries = self.param("queries", self._initial_queries)
        self.place, self.told_place = Dense(self.width, kernel_init=sharp), Dense(self.width, kernel_init=sharp)
        self.key, self.told_key = Dense(self.width), Dense(self.width)
        self.value, self.told_value = Dense(self.width), Dense(self.width)

    def pool(
        self, features: Float[Array, "b p c"], coords: Float[Array, "b p d"], mask: Float[Array, "b p"]
    ) -> Float[Array, "b n k"]:
        """Return the tokens: the result of each query's attention to the points, followed by the query itself."""
        positions = self._position_features(coords)
        query = self._split_heads(self.place(self.queries[None]))[0]
        key = self._split_heads(self.key(features) + self.place(positions))
        value = self._split_heads(nn.silu(self.value(jnp.concatenate([features, positions], axis=-1))))
        attended = pool_by_attention(query, key, value, mask)
        attended = attended.reshape(*attended.shape[:2], -1)
        queries = jnp.broadcast_to(self.queries[None], (*attended.shape[:2], positions.shape[-1]))
        return jnp.concatenate([attended, queries], axis=-1)

    def to_architecture_layout(self, tokens: Float[Array, "b n k"]) -> Float[Array, "b n k"]:
        """Return the tokens unchanged, because they have no grid."""
        return tokens

    def read(
        self, tokens: Float[Array, "b n h"], coords: Float[Array, "b q d"], mask: Float[Array, "b q"]
    ) -> Float[Array, "b q k"]:
        """Return the result of each point's attention to the tokens, followed by the features of the point's position.

        Args:
            coords: Physical coordinates of the points, which may differ from the points that were pooled.
            mask: Not used; every pooling has this argument.
        """
        positions = self._position_features(coords)
        query = self._split_heads(self.told_place(positions))
        key = self._split_heads(self.told_key(tokens) + self.told_place(self.queries[None]))
        value = self._split_heads(self.told_value(tokens))
        chunk_size = _default_chunk_size(tokens.shape[1] * self.num_heads)
        attended = chunked_map(lambda chunk: attention(chunk, key, value), query, chunk_size)
        return jnp.concatenate([attended.reshape(*attended.shape[:2], -1), positions], axis=-1)

    def _split_heads(self, x: Float[Array, "b n h"]) -> Float[Array, "b n a d"]:
        """Return the channels split into attention heads."""
        return x.reshape(*x.shape[:2], self.num_heads, -1)

    def _position_features(self, coords: Float[Array, "b p d"]) -> Float[Array, "b p f"]:
        """Return the Fourier features of positions in physical coordinates."""
        task = self.task
        box = zip(task.origin, task.box, strict=True)
        positions = jnp.stack([(coords[..., axis] - low) / side for axis, (low, side) in enumerate(box)], axis=-1)
        return fourier_features(positions, task.periodic, self.latent.nodes)

    def _initial_queries(self, key: Array) -> Float[Array, "n f"]:
        """Return the Fourier features of positions that are spread evenly over the box."""
        del key
        positions = jnp.asarray(low_discrepancy_points(self.latent.nodes, len(self.task.axes)), jnp.float32)
        return fourier_features(positions[None], self.task.periodic, self.latent.nodes)[0]


def fourier_features(positions: Float[Array, "b p d"], periodic: Sequence[bool], tokens: int) -> Float[Array, "b p f"]:
    """Return sines and cosines of positions at integer frequencies.

    The shortest wavelength is about twice the distance between `tokens` evenly spread positions.

    Args:
        positions: Positions in units of the sides of the box; a position beyond a wall counts as on the wall.
        tokens: Number of tokens, which sets the number of frequencies.
    """
    side = math.ceil(tokens ** (1 / len(periodic)))
    waves = []
    for axis, wraps in enumerate(periodic):
        position = positions[..., axis : axis + 1] if wraps else jnp.clip(positions[..., axis : axis + 1], 0, 1)
        count = max(_MIN_FREQUENCIES, math.ceil(side / 2)) if wraps else max(_MIN_FREQUENCIES, side)
        frequencies = jnp.arange(1, count + 1, dtype=position.dtype).reshape(1, 1, -1)
        angles = position * (2 if wraps else 1) * jnp.pi * frequencies
        waves += [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(waves, axis=-1)


def low_discrepancy_points(count: int, axes: int) -> Float[np.ndarray, "n d"]:
    """Return `count` points that are spread evenly over the unit cube, for any count.

    References:
        Roberts 2018 (additive recurrence R_d).
    """
    ratio = 2.0
    for _ in range(64):
        ratio = (1 + ratio) ** (1 / (axes + 1))
    return (0.5 + np.arange(1, count + 1)[:, None] * ratio ** -np.arange(1.0, axes + 1)) % 1


def pool_by_attention(
    query: Float[Array, "n a d"],
    key: Float[Array, "b p a d"],
    value: Float[Array, "b p a d"],
    mask: Float[Array, "b p"],
    chunk_size: int | None = None,
) -> Float[Array, "b n a d"]:
    """Return softmax(query key^T / sqrt(d)) value over the present points of each row; 0 for a row without points.

    Args:
        query: Queries, shared by all rows.
        mask: 1 for each point that is present, 0 for padding.
        chunk_size: Number of points whose scores are in memory at once; None for a default.
    """
    query = query * query.shape[-1] ** -0.5
    chunk_size = chunk_size or _default_chunk_size(query.shape[0] * query.shape[1])

    def masked_scores(key: Array, mask: Array) -> Float[Array, "b a n p"]:
        return jnp.where(mask[:, None, None] > 0, jnp.einsum("nad,bpad->banp", query, key), -jnp.inf)

    def max_score(chunk: tuple[Array, Array]) -> Float[Array, "b a n"]:
        return masked_scores(*chunk).max(-1)

    fixed_arrays = jax.lax.stop_gradient((key, mask))
    highest = chunked_reduce(max_score, fixed_arrays, chunk_size, jnp.maximum, -jnp.inf)
    highest = jax.lax.stop_gradient(jnp.where(jnp.isfinite(highest), highest, 0.0))

    def weighted_sums(chunk: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        chunk_key, chunk_value, chunk_mask = chunk
        weights = jnp.exp(masked_scores(chunk_key, chunk_mask) - highest[..., None])
        return jnp.einsum("banp,bpad->bnad", weights, chunk_value), jnp.swapaxes(weights.sum(-1), 1, 2)

    total, weight = chunked_reduce(weighted_sums, (key, value, mask), chunk_size)
    # The weight of the highest score is 1, so the limit of 0.5 only affects rows without points.
    return total / jnp.maximum(weight, 0.5)[..., None]


def _default_chunk_size(scores_per_point: int) -> int:
    """Return the chunk size at which scores need the memory of `CHUNK_SIZE` points with 4 heads of 256 tokens."""
    return max(1, CHUNK_SIZE * 1024 // scores_per_point)
