"""Message passing between neighbouring points: the search of neighbours, and rounds of messages between them.

Neighbours are searched at every time step, because points may move. The weight of a message falls to zero at the edge
of the neighbourhood, so that results change continuously when a point enters or leaves it. The choice between equally
distant points, as on a regular mesh, therefore does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ups_jax.models.layers import Dense, matmul_rows, remat_block
from ups_jax.models.points.chunking import chunked_map

# Largest numbers of distances and of message features that a chunk holds per row.
_DISTANCES = 2**22
_FEATURES = 2**21
# Weight of an empty message in a point's mean: the messages fade out when the last neighbour leaves.
_EMPTY_WEIGHT = 0.1


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Up to k neighbours of each point.

    Attributes:
        index: Index of each neighbour.
        offset: Physical vector from the point to the neighbour.
        weight: Weight of the neighbour's message. The weights of a point add up to less than 1; they are all 0 if the
            point has no neighbours.
    """

    index: Int[Array, "*blocks b p k"]
    offset: Float[Array, "*blocks b p k d"]
    weight: Float[Array, "*blocks b p k"]


def nearest_neighbours(
    coords: Float[Array, "b p d"],
    mask: Float[Array, "b p"],
    count: int,
    sides: Sequence[float],
    periodic: Sequence[bool],
    radius: float | None = None,
    chunk_size: int | None = None,
) -> Neighbours:
    """Return the nearest neighbours of each point, and the weights of their messages.

    The weight is proportional to 1 - (r / R)^2 at the distance r. R is the radius or, if smaller, the distance of the
    nearest point beyond the `count` neighbours. Distances along a periodic axis are those to the nearest image.

    Args:
        coords: Physical coordinates of the points.
        mask: 1 for each point that is present, 0 for padding.
        count: Largest number of neighbours.
        sides: Lengths of the sides of the box.
        periodic: For each axis, whether it is periodic.
        radius: Largest distance of a neighbour; None for no limit.
        chunk_size: Number of points whose distances to all others are in memory at once; None for a default.
    """
    points = coords.shape[1]
    fixed_coords = jax.lax.stop_gradient(coords)
    point_ids = jnp.arange(points)

    def nearest(chunk: tuple[Float[Array, "b q d"], Int[Array, "b q"]]) -> Int[Array, "b q k"]:
        chunk_coords, chunk_ids = chunk
        squares = _squared_distances(fixed_coords[:, None] - chunk_coords[:, :, None], sides, periodic)
        is_candidate = (mask[:, None] > 0) & (point_ids.reshape(1, 1, -1) != chunk_ids[..., None])
        # The result is sliced twice below. Without the barrier XLA then sorts all points: 159 ms instead of 6 ms for
        # eight rows of 406 points on one core.
        index = jax.lax.top_k(jnp.where(is_candidate, -squares, -jnp.inf), min(count + 1, points))[1]
        return jax.lax.optimization_barrier(index)

    ids = jnp.broadcast_to(point_ids[None], mask.shape)
    index = chunked_map(nearest, (fixed_coords, ids), chunk_size or max(1, _DISTANCES // points))
    offset = _nearest_image(_take(coords, index) - coords[:, :, None], sides, periodic)
    squares = jnp.square(offset).sum(-1)
    # If there are too few candidates, the last entries are padding points or the point itself.
    is_neighbour = (_take(mask, index) > 0) & (index != ids[..., None]) & (mask[..., None] > 0)
    radius_squares = jnp.full((*mask.shape, 1), jnp.inf if radius is None else radius**2, squares.dtype)
    if index.shape[-1] > count:
        radius_squares = jnp.minimum(radius_squares, jnp.where(is_neighbour, squares, jnp.inf)[..., count:])
        index, offset, squares, is_neighbour = (x[:, :, :count] for x in (index, offset, squares, is_neighbour))
    weight = jnp.maximum(1 - squares / jnp.maximum(radius_squares, 1e-12 * max(sides) ** 2), 0.0) * is_neighbour
    return Neighbours(index=index, offset=offset, weight=weight / (weight.sum(-1, keepdims=True) + _EMPTY_WEIGHT))


class NeighbourMessages(nn.Module):
    """Sum of the messages that each point receives from its neighbours in several rounds.

    A round sends the features plus the messages of all earlier rounds.

    Attributes:
        rounds: Number of rounds.
        scale: Length by which relative positions are divided.
        remat: Whether the backward pass recomputes each round.
    """

    rounds: int
    scale: float
    remat: bool = False

    @nn.compact
    def __call__(self, features: Float[Array, "b p c"], neighbours: Neighbours) -> Float[Array, "b p c"]:
        message_round = remat_block(MessageRound) if self.remat else MessageRound
        messages = jnp.zeros_like(features)
        for number in range(self.rounds):
            messages = messages + message_round(self.scale, name=f"round_{number}")(features + messages, neighbours)
        return messages


class MessageRound(nn.Module):
    """Messages of one round: a linear map of the weighted mean of silu(sender + receiver + relative position).

    Sender, receiver and position stand for learned linear maps of these. The maps of sender and receiver and the final
    one act on points instead of on pairs of points, which is equivalent and cheaper.
    """

    scale: float

    @nn.compact
    def __call__(self, features: Float[Array, "b p c"], neighbours: Neighbours, chunk_size: int | None = None) -> Array:
        width, (*_, count, axes) = features.shape[-1], neighbours.offset.shape
        sender = Dense(width, name="sender")(features)
        position_kernel = Matrix(axes, width, name="place")() / self.scale

        def weighted_mean(chunk: tuple[Float[Array, "b q c"], Neighbours]) -> Float[Array, "b q c"]:
            receiver, near = chunk
            pairs = _take(sender, near.index) + receiver[:, :, None] + matmul_rows(near.offset, position_kernel)
            return jnp.einsum("bqk,bqkc->bqc", near.weight, nn.silu(pairs))

        arrays = (Dense(width, name="receiver")(features), neighbours)
        mean = chunked_map(weighted_mean, arrays, chunk_size or max(1, _FEATURES // (count * width)))
        return Dense(width, name="told")(mean) * neighbours.weight.sum(-1, keepdims=True)


class Matrix(nn.Module):
    """Learned matrix (inputs, features), for products that a Dense layer does not express."""

    inputs: int
    features: int

    @nn.compact
    def __call__(self) -> Float[Array, "i o"]:
        return self.param("kernel", nn.initializers.lecun_normal(), (self.inputs, self.features))


def _squared_distances(
    offset: Float[Array, "b q p d"], sides: Sequence[float], periodic: Sequence[bool]
) -> Float[Array, "b q p"]:
    """Return the squared distances to the nearest images, summed axis by axis because the last axis is short."""
    return sum(map(jnp.square, _image_offsets(offset, sides, periodic)), start=jnp.zeros((), offset.dtype))


def _nearest_image(
    offset: Float[Array, "b p k d"], sides: Sequence[float], periodic: Sequence[bool]
) -> Float[Array, "b p k d"]:
    """Return the vectors to the nearest periodic images."""
    return jnp.stack(_image_offsets(offset, sides, periodic), axis=-1)


def _image_offsets(
    offset: Float[Array, "*b d"], sides: Sequence[float], periodic: Sequence[bool]
) -> list[Float[Array, "*b"]]:
    """Return the offset to the nearest periodic image along each axis."""
    axes = zip(jnp.moveaxis(offset, -1, 0), sides, periodic, strict=True)
    return [x - side * jnp.round(x / side) if wraps else x for x, side, wraps in axes]


def _take(values: Float[Array, "b p *c"], index: Int[Array, "b q k"]) -> Float[Array, "b q k *c"]:
    """Return the values of the points with the given indices, for each row."""
    return jax.vmap(lambda row, row_index: row[row_index])(values, index)
