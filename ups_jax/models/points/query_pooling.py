"""Latent tokens of no grid: learned queries attend to all points, and any place attends to the tokens.

Where a point lies enters as waves of its place (Tancik et al. 2020, at whole frequencies): whole periods on a periodic
axis, half ones between walls. A query is such waves as well, learned from where they are those of places spread evenly
over the box, so that at first each hears the points around its place.
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
from ups_jax.models.points.chunking import BLOCK, chunked_map, chunked_reduce

# At first the score of a query for a point at its place, but for what the features add.
_SHARPNESS = 6.0
# Fewest frequencies an axis.
_FEWEST = 4


class QueryPooling(nn.Module):
    """`latent.nodes` tokens of the points, and what they say at a place, by attention with `num_heads` heads each."""

    task: Task
    latent: LatentConfig
    width: int
    num_heads: int

    def setup(self) -> None:
        # The two ends of a score share the map of places, so that it is highest where they agree.
        sharp = nn.initializers.variance_scaling(
            2 * _SHARPNESS / math.sqrt(self.width // self.num_heads), "fan_in", "truncated_normal"
        )
        self.queries = self.param("queries", self._spread)
        self.place, self.told_place = Dense(self.width, kernel_init=sharp), Dense(self.width, kernel_init=sharp)
        self.key, self.told_key = Dense(self.width), Dense(self.width)
        self.value, self.told_value = Dense(self.width), Dense(self.width)

    def pool(
        self, own: Float[Array, "b p c"], coords: Float[Array, "b p d"], mask: Float[Array, "b p"]
    ) -> Float[Array, "b n k"]:
        """The tokens of points with features `own` at physical `coords`: what each query has heard, and itself."""
        waves = self._waves(coords)
        query = self._heads(self.place(self.queries[None]))[0]
        key = self._heads(self.key(own) + self.place(waves))
        value = self._heads(nn.silu(self.value(jnp.concatenate([own, waves], axis=-1))))
        heard = pool_by_attention(query, key, value, mask)
        heard = heard.reshape(*heard.shape[:2], -1)
        return jnp.concatenate(
            [heard, jnp.broadcast_to(self.queries[None], (*heard.shape[:2], waves.shape[-1]))], axis=-1
        )

    def placed(self, tokens: Float[Array, "b n k"]) -> Float[Array, "b n k"]:
        """The tokens as the core takes them: they have no grid."""
        return tokens

    def read(
        self, tokens: Float[Array, "b n h"], coords: Float[Array, "b q d"], mask: Float[Array, "b q"]
    ) -> Float[Array, "b q k"]:
        """What the tokens say at any places, beside the waves of these."""
        waves = self._waves(coords)
        query = self._heads(self.told_place(waves))
        key = self._heads(self.told_key(tokens) + self.told_place(self.queries[None]))
        value = self._heads(self.told_value(tokens))
        told = chunked_map(lambda part: attention(part, key, value), query, _block(tokens.shape[1] * self.num_heads))
        return jnp.concatenate([told.reshape(*told.shape[:2], -1), waves], axis=-1)

    def _heads(self, x: Float[Array, "b n h"]) -> Float[Array, "b n a d"]:
        return x.reshape(*x.shape[:2], self.num_heads, -1)

    def _waves(self, coords: Float[Array, "b p d"]) -> Float[Array, "b p f"]:
        task = self.task
        box = zip(task.origin, task.box, strict=True)
        shares = jnp.stack([(coords[..., axis] - low) / side for axis, (low, side) in enumerate(box)], axis=-1)
        return fourier_features(shares, task.periodic, self.latent.nodes)

    def _spread(self, key: Array) -> Float[Array, "n f"]:
        del key
        shares = jnp.asarray(low_discrepancy_points(self.latent.nodes, len(self.task.axes)), jnp.float32)
        return fourier_features(shares[None], self.task.periodic, self.latent.nodes)[0]


def fourier_features(shares: Float[Array, "b p d"], periodic: Sequence[bool], tokens: int) -> Float[Array, "b p f"]:
    """Sines and cosines of places, given as shares of the box's sides; one beyond a wall counts as on it.

    The shortest of them are two of so many tokens apart, where these lie evenly.
    """
    side = math.ceil(tokens ** (1 / len(periodic)))
    waves = []
    for axis, wraps in enumerate(periodic):
        place = shares[..., axis : axis + 1] if wraps else jnp.clip(shares[..., axis : axis + 1], 0, 1)
        count = max(_FEWEST, math.ceil(side / 2)) if wraps else max(_FEWEST, side)
        angles = place * (2 if wraps else 1) * jnp.pi * jnp.arange(1, count + 1, dtype=place.dtype).reshape(1, 1, -1)
        waves += [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(waves, axis=-1)


def low_discrepancy_points(count: int, axes: int) -> Float[np.ndarray, "n d"]:
    """Places in the unit cube of which the first of any number lie evenly (the additive recurrence of Roberts 2018)."""
    ratio = 2.0
    for _ in range(64):
        ratio = (1 + ratio) ** (1 / (axes + 1))
    return (0.5 + np.arange(1, count + 1)[:, None] * ratio ** -np.arange(1.0, axes + 1)) % 1


def pool_by_attention(
    query: Float[Array, "n a d"],
    key: Float[Array, "b p a d"],
    value: Float[Array, "b p a d"],
    mask: Float[Array, "b p"],
    block: int | None = None,
) -> Float[Array, "b n a d"]:
    """softmax(query key^T / sqrt(d)) value over the points that are there, 0 where there are none.

    The scores of `block` points are held at a time.
    """
    query = query * query.shape[-1] ** -0.5
    block = block or _block(query.shape[0] * query.shape[1])

    def scores(key: Array, mask: Array) -> Float[Array, "b a n p"]:
        return jnp.where(mask[:, None, None] > 0, jnp.einsum("nad,bpad->banp", query, key), -jnp.inf)

    def largest(part: tuple[Array, Array]) -> Float[Array, "b a n"]:
        return scores(*part).max(-1)

    known = jax.lax.stop_gradient((key, mask))
    highest = chunked_reduce(largest, known, block, jnp.maximum, -jnp.inf)
    highest = jax.lax.stop_gradient(jnp.where(jnp.isfinite(highest), highest, 0.0))

    def sums(part: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        own_key, own_value, own_mask = part
        weights = jnp.exp(scores(own_key, own_mask) - highest[..., None])
        return jnp.einsum("banp,bpad->bnad", weights, own_value), jnp.swapaxes(weights.sum(-1), 1, 2)

    total, weight = chunked_reduce(sums, (key, value, mask), block)
    # The highest score alone weighs one.
    return total / jnp.maximum(weight, 0.5)[..., None]


def _block(scores: int) -> int:
    """Points whose `scores` are held at a time: as many as of 256 tokens with four heads."""
    return max(1, BLOCK * 1024 // scores)
