"""Latent tokens on a regular grid of nodes: what points say is pooled there, and read again at any place."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ups_jax.config import LatentConfig
from ups_jax.core.task import Task
from ups_jax.models.points.chunking import BLOCK, chunked_map, chunked_reduce


class NodePooling(nn.Module):
    """Means of the messages that the kernel brings to each node, and of the nodes around a place; no parameters."""

    task: Task
    latent: LatentConfig

    @property
    def nodes(self) -> Nodes:
        """Where the latent tokens lie."""
        task = self.task
        return node_grid(self.latent.nodes, task.origin, task.box, task.periodic)

    def pool(
        self, own: Float[Array, "b p c"], coords: Float[Array, "b p d"], mask: Float[Array, "b p"]
    ) -> Float[Array, "b n k"]:
        """The tokens of points with features `own` at physical `coords`, with the density of the points around them."""
        messages, density = scatter_to_nodes(spline_weights(self.nodes, coords, mask), own)
        tokens = jnp.concatenate([messages, density / (1 + density)], axis=-1)
        return tokens.reshape(tokens.shape[0], -1, tokens.shape[-1])

    def placed(self, tokens: Float[Array, "b n k"]) -> Float[Array, "b *n k"]:
        """The tokens as the core takes them: on their grid."""
        return tokens.reshape(tokens.shape[0], *self.nodes.shape, -1)

    def read(
        self, tokens: Float[Array, "b n h"], coords: Float[Array, "b q d"], mask: Float[Array, "b q"]
    ) -> Float[Array, "b q k"]:
        """What the tokens say at other places, or the same."""
        return gather_from_nodes(spline_weights(self.nodes, coords, mask), self.placed(tokens))


# Below this share of a whole point's weight a node has no points around it.
_EMPTY = 1e-3


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """The nodes of a grid in a box: the centres of `shape` equal cells."""

    shape: tuple[int, ...]
    origin: tuple[float, ...]
    box: tuple[float, ...]
    periodic: tuple[bool, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SplineWeights:
    """Of each axis the kernel's values between points and nodes, and those times the relative position in nodes."""

    plain: tuple[Float[Array, "*blocks b p _"], ...]
    tilted: tuple[Float[Array, "*blocks b p _"], ...]


def node_grid(tokens: int, origin: Sequence[float], box: Sequence[float], periodic: Sequence[bool]) -> Nodes:
    """About `tokens` nodes, equally far apart along all axes as far as whole numbers allow, three an axis at least."""
    side = (math.prod(box) / tokens) ** (1 / len(box))
    shape = tuple(max(3, round(length / side)) for length in box)
    return Nodes(shape=shape, origin=tuple(origin), box=tuple(box), periodic=tuple(periodic))


def spline_weights(nodes: Nodes, coords: Float[Array, "b p d"], mask: Float[Array, "b p"]) -> SplineWeights:
    """Between points at physical `coords` and the nodes; a point that is not there has none. One that has left a box
    with walls counts as on them."""
    plain, tilted = [], []
    axes = zip(nodes.shape, nodes.origin, nodes.box, nodes.periodic, strict=True)
    for axis, (count, origin, length, wraps) in enumerate(axes):
        place = (coords[..., axis] - origin) * (count / length) - 0.5
        if not wraps:
            place = jnp.clip(place, -0.5, count - 0.5)
        offset = place[..., None] - jnp.arange(count, dtype=place.dtype).reshape(1, 1, -1)
        if wraps:
            offset = (offset + count / 2) % count - count / 2
        kernel = _spline(offset)
        if axis == 0:
            kernel = kernel * mask[..., None]
        plain.append(kernel)
        tilted.append(kernel * offset)
    return SplineWeights(plain=tuple(plain), tilted=tuple(tilted))


def scatter_to_nodes(
    weights: SplineWeights, messages: Float[Array, "b p c"], block: int = BLOCK
) -> tuple[Float[Array, "b *n k"], Float[Array, "b *n 1"]]:
    """The mean messages that arrive at each node, in all copies, and the weight of the points around it; 0 where there
    are none. Of more than `block` points as many are held at a time."""

    def sums(part: tuple[SplineWeights, Array]) -> tuple[Array, Array]:
        own, said = part
        density = _scatter(own.plain, jnp.ones_like(said[..., :1]))
        return jnp.concatenate([_scatter(factors, said) for factors in _copies(own)], axis=-1), density

    total, density = chunked_reduce(sums, (weights, messages), block)
    return jnp.where(density > _EMPTY, total / jnp.maximum(density, _EMPTY), 0.0), density


def gather_from_nodes(
    weights: SplineWeights, values: Float[Array, "b *n c"], block: int = BLOCK
) -> Float[Array, "b p k"]:
    """The mean of the nodes around each point, in all copies; 0 at a point that is not there."""

    def gathered(own: SplineWeights) -> Array:
        share = functools.reduce(jnp.multiply, [factor.sum(axis=-1) for factor in own.plain])
        every = [_gather(factors, values) for factors in _copies(own)]
        return jnp.concatenate(every, axis=-1) / jnp.maximum(share, _EMPTY)[..., None]

    return chunked_map(gathered, weights, block)


def shepard_interpolation(
    sides: Sequence[float],
    periodic: Sequence[bool],
    values: Float[Array, "b p c"],
    coords: Float[Array, "b p d"],
    mask: Float[Array, "b p"],
    query: Float[Array, "b q d"],
) -> Float[Array, "b q c"]:
    """Values at points in a box with such `sides`, at any others: means weighted with the distance to the power
    -2 (D + 1) (Shepard 1968), which are a point's own values where it lies."""
    offset = query[:, :, None] - coords[:, None]
    box = jnp.asarray(sides, offset.dtype).reshape(1, 1, 1, -1)
    wraps = jnp.asarray(periodic).reshape(1, 1, 1, -1)
    offset = jnp.where(wraps, (offset / box + 0.5) % 1 * box - 0.5 * box, offset)
    squares = jnp.where(mask[:, None] > 0, jnp.square(offset).sum(-1), jnp.inf) + 1e-12 * max(sides) ** 2
    nearest = squares.min(-1, keepdims=True)
    weights = (nearest / squares) ** (len(sides) + 1)
    return jnp.einsum("bqp,bpc->bqc", weights / weights.sum(-1, keepdims=True), values)


def _spline(offset: Float[Array, "..."]) -> Float[Array, "..."]:
    """The quadratic B-spline: 3/4 - r^2 up to 1/2, (3/2 - |r|)^2 / 2 up to 3/2, 0 beyond."""
    distance = jnp.abs(offset)
    outer = 0.5 * jnp.square(jnp.maximum(1.5 - distance, 0.0))
    return jnp.where(distance < 0.5, 0.75 - jnp.square(offset), outer)


def _copies(weights: SplineWeights) -> list[tuple[Float[Array, "b p _"], ...]]:
    """The factors of the plain copy, and of that with the relative position along each axis."""
    axes = range(len(weights.plain))
    tilts = [tuple(weights.tilted[j] if j == axis else weights.plain[j] for j in axes) for axis in axes]
    return [weights.plain, *tilts]


def _scatter(factors: Sequence[Float[Array, "b p _"]], messages: Float[Array, "b p c"]) -> Float[Array, "b *n c"]:
    batch, points, channels = messages.shape
    result = messages
    for factor in reversed(factors[1:]):
        result = (factor[..., None] * result.reshape(batch, points, 1, -1)).reshape(batch, points, -1)
    summed = jnp.einsum("bpn,bpc->bnc", factors[0], result)
    return summed.reshape(batch, *(factor.shape[-1] for factor in factors), channels)


def _gather(factors: Sequence[Float[Array, "b p _"]], values: Float[Array, "b *n c"]) -> Float[Array, "b p c"]:
    batch, first, channels = values.shape[0], values.shape[1], values.shape[-1]
    result = jnp.einsum("bpn,bnc->bpc", factors[0], values.reshape(batch, first, -1))
    for factor in factors[1:]:
        result = result.reshape(*result.shape[:2], factor.shape[-1], -1)
        result = (factor[..., None] * result).sum(axis=2)
    return result.reshape(*result.shape[:2], channels)
