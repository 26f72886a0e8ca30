"""Latent tokens on a regular grid of nodes, with B-spline weights between the nodes and the points around them."""

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
from ups_jax.models.points.chunking import CHUNK_SIZE, chunked_map, chunked_reduce
from ups_jax.models.points.message_passing import length_unit


class NodePooling(nn.Module):
    """Means of features around the nodes of a grid (`pool`) and of tokens around points (`read`); no parameters."""

    task: Task
    latent: LatentConfig

    @property
    def nodes(self) -> Nodes:
        """Return the grid of nodes, one for each latent token."""
        task = self.task
        return node_grid(self.latent.nodes, task.origin, task.box, task.periodic)

    def pool(
        self, features: Float[Array, "b p c"], coords: Float[Array, "b p d"], mask: Float[Array, "b p"]
    ) -> Float[Array, "b n k"]:
        """Return the tokens: the weighted mean of the features around each node, and the density of points there."""
        messages, density = scatter_to_nodes(spline_weights(self.nodes, coords, mask), features)
        tokens = jnp.concatenate([messages, density / (1 + density)], axis=-1)
        return tokens.reshape(tokens.shape[0], -1, tokens.shape[-1])

    def to_architecture_layout(self, tokens: Float[Array, "b n k"]) -> Float[Array, "b *n k"]:
        """Return the tokens arranged on the grid of nodes."""
        return tokens.reshape(tokens.shape[0], *self.nodes.shape, -1)

    def read(
        self, tokens: Float[Array, "b n h"], coords: Float[Array, "b q d"], mask: Float[Array, "b q"]
    ) -> Float[Array, "b q k"]:
        """Return the weighted mean and first moments of the tokens around each point, as by `gather_from_nodes`.

        Args:
            coords: Physical coordinates of the points, which may differ from the points that were pooled.
            mask: 1 for each point that is present, 0 for padding.
        """
        return gather_from_nodes(spline_weights(self.nodes, coords, mask), self.to_architecture_layout(tokens))


# A node counts as empty if the weights of the points around it add up to less than this.
_EMPTY = 1e-3

MeansAndDensity = tuple[Float[Array, "b *n k"], Float[Array, "b *n 1"]]


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """Regular grid of nodes: the centres of equal cells of a box, `shape` cells along the axes.

    Attributes:
        origin: Physical coordinates of the lower corner of the box.
        box: Lengths of the sides of the box.
        periodic: For each axis, whether it is periodic.
    """

    shape: tuple[int, ...]
    origin: tuple[float, ...]
    box: tuple[float, ...]
    periodic: tuple[bool, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SplineWeights:
    """B-spline weights between points and nodes: the product over the axes of one factor (b, p, nodes along the axis).

    Attributes:
        values: Factors of the weights.
        moments: Factors times the offset from node to point, in units of the node spacing.
    """

    values: tuple[Float[Array, "*blocks b p _"], ...]
    moments: tuple[Float[Array, "*blocks b p _"], ...]


def node_grid(tokens: int, origin: Sequence[float], box: Sequence[float], periodic: Sequence[bool]) -> Nodes:
    """Return a grid of about `tokens` nodes with nearly equal spacing along all axes and at least three per axis.

    Args:
        origin: Physical coordinates of the lower corner of the box.
        box: Lengths of the sides of the box.
    """
    side = (math.prod(box) / tokens) ** (1 / len(box))
    shape = tuple(max(3, round(length / side)) for length in box)
    return Nodes(shape=shape, origin=tuple(origin), box=tuple(box), periodic=tuple(periodic))


def spline_weights(nodes: Nodes, coords: Float[Array, "b p d"], mask: Float[Array, "b p"]) -> SplineWeights:
    """Return the quadratic B-spline weights between points and nodes.

    A point outside a box with walls is moved onto the wall.

    Args:
        mask: 1 for each point that is present; the weights of padding points are 0.
    """
    values, moments = [], []
    axes = zip(nodes.shape, nodes.origin, nodes.box, nodes.periodic, strict=True)
    for axis, (count, origin, length, wraps) in enumerate(axes):
        position = (coords[..., axis] - origin) * (count / length) - 0.5
        if not wraps:
            position = jnp.clip(position, -0.5, count - 0.5)
        offset = position[..., None] - jnp.arange(count, dtype=position.dtype).reshape(1, 1, -1)
        if wraps:
            offset = (offset + count / 2) % count - count / 2
        kernel = _quadratic_spline(offset)
        if axis == 0:
            kernel = kernel * mask[..., None]
        values.append(kernel)
        moments.append(kernel * offset)
    return SplineWeights(values=tuple(values), moments=tuple(moments))


def scatter_to_nodes(
    weights: SplineWeights, messages: Float[Array, "b p c"], chunk_size: int = CHUNK_SIZE
) -> MeansAndDensity:
    """Return the weighted mean and first moments of the points' messages at each node, and the sum of the weights.

    The first moments are the means of the messages times the offset from node to point along each axis. They follow the
    mean on the channel axis. Nodes without points are 0.
    """

    def weighted_sums(chunk: tuple[SplineWeights, Array]) -> tuple[Array, Array]:
        chunk_weights, chunk_messages = chunk
        density = _scatter_sum(chunk_weights.values, jnp.ones_like(chunk_messages[..., :1]))
        scattered = [_scatter_sum(factors, chunk_messages) for factors in _mean_and_moment_factors(chunk_weights)]
        return jnp.concatenate(scattered, axis=-1), density

    total, density = chunked_reduce(weighted_sums, (weights, messages), chunk_size)
    return jnp.where(density > _EMPTY, total / jnp.maximum(density, _EMPTY), 0.0), density


def gather_from_nodes(
    weights: SplineWeights, values: Float[Array, "b *n c"], chunk_size: int = CHUNK_SIZE
) -> Float[Array, "b p k"]:
    """Return the weighted mean and first moments of the nodes' values around each point; 0 at padding points.

    The first moments are defined as in `scatter_to_nodes` and follow the mean on the channel axis.
    """

    def gather(chunk: SplineWeights) -> Array:
        total = functools.reduce(jnp.multiply, [factor.sum(axis=-1) for factor in chunk.values])
        gathered = [_gather_sum(factors, values) for factors in _mean_and_moment_factors(chunk)]
        return jnp.concatenate(gathered, axis=-1) / jnp.maximum(total, _EMPTY)[..., None]

    return chunked_map(gather, weights, chunk_size)


def shepard_interpolation(
    box: Sequence[float],
    periodic: Sequence[bool],
    values: Float[Array, "b p c"],
    coords: Float[Array, "b p d"],
    mask: Float[Array, "b p"],
    query: Float[Array, "b q d"],
) -> Float[Array, "b q c"]:
    """Return values at the points `query`, interpolated by inverse-distance weights r^(-2 (d + 1)).

    At a point with a known value the result is that value.

    Args:
        box: Lengths of the sides of the box.
        values: Known values.
        coords: Physical coordinates of the known values.
        mask: 1 for each known value, 0 for padding.
        query: Physical coordinates of the points to interpolate to.

    References:
        Shepard 1968.
    """
    unit = length_unit(box)
    offset = (query[:, :, None] - coords[:, None]) / unit
    box = [side / unit for side in box]
    lengths = jnp.asarray(box, offset.dtype).reshape(1, 1, 1, -1)
    wraps = jnp.asarray(periodic).reshape(1, 1, 1, -1)
    offset = jnp.where(wraps, (offset / lengths + 0.5) % 1 * lengths - 0.5 * lengths, offset)
    squares = jnp.where(mask[:, None] > 0, jnp.square(offset).sum(-1), jnp.inf) + 1e-12 * max(box) ** 2
    nearest = squares.min(-1, keepdims=True)
    weights = (nearest / squares) ** (len(box) + 1)
    return jnp.einsum("bqp,bpc->bqc", weights / weights.sum(-1, keepdims=True), values)


def _quadratic_spline(offset: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the quadratic B-spline: 3/4 - r^2 for |r| < 1/2, (3/2 - |r|)^2 / 2 for |r| < 3/2, else 0."""
    distance = jnp.abs(offset)
    outer = 0.5 * jnp.square(jnp.maximum(1.5 - distance, 0.0))
    return jnp.where(distance < 0.5, 0.75 - jnp.square(offset), outer)


def _mean_and_moment_factors(weights: SplineWeights) -> list[tuple[Float[Array, "b p _"], ...]]:
    """Return the factors per axis of the weights for the mean, then of the weights for each axis's first moment."""
    axes = range(len(weights.values))
    moments = [tuple(weights.moments[j] if j == axis else weights.values[j] for j in axes) for axis in axes]
    return [weights.values, *moments]


def _scatter_sum(factors: Sequence[Float[Array, "b p _"]], messages: Float[Array, "b p c"]) -> Float[Array, "b *n c"]:
    """Return at each node the sum of the points' messages, weighted by the product of the `factors` over the axes."""
    batch, points, channels = messages.shape
    result = messages
    for factor in reversed(factors[1:]):
        result = (factor[..., None] * result.reshape(batch, points, 1, -1)).reshape(batch, points, -1)
    summed = jnp.einsum("bpn,bpc->bnc", factors[0], result)
    return summed.reshape(batch, *(factor.shape[-1] for factor in factors), channels)


def _gather_sum(factors: Sequence[Float[Array, "b p _"]], values: Float[Array, "b *n c"]) -> Float[Array, "b p c"]:
    """Return at each point the sum of the nodes' values, weighted by the product of the `factors` over the axes."""
    batch, first, channels = values.shape[0], values.shape[1], values.shape[-1]
    result = jnp.einsum("bpn,bnc->bpc", factors[0], values.reshape(batch, first, -1))
    for factor in factors[1:]:
        result = result.reshape(*result.shape[:2], factor.shape[-1], -1)
        result = (factor[..., None] * result).sum(axis=2)
    return result.reshape(*result.shape[:2], channels)
