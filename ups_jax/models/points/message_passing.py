"""Message passing between neighbouring points: the search for neighbours, and rounds of messages between them.

Neighbours are searched at every time step, because points may move. The weight of a message falls to zero at the edge
of the neighbourhood, so that results change continuously when a point enters or leaves the neighbourhood, and do not
depend on the choice between equally distant points, as on a regular mesh.
"""

from __future__ import annotations

import math
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
    box: Sequence[float],
    periodic: Sequence[bool],
    radius: float | None = None,
    chunk_size: int | None = None,
) -> Neighbours:
    """Return at most `count` nearest neighbours of each point, and the weights of their messages.

    The weight is proportional to 1 - (r / R)^2 for a neighbour at distance r. R is `radius`, or the distance of the
    nearest point that is not one of the `count` neighbours, whichever is smaller. Distances along a periodic axis are
    to the nearest image.

    Args:
        mask: 1 for each point that is present, 0 for padding.
        box: Lengths of the sides of the box.
        radius: Largest distance of a neighbour; None for no limit.
        chunk_size: Number of points whose distances to all others are in memory at once; None for a default.
    """
    points = coords.shape[1]
    # Squared lengths must not overflow or vanish in float32; dividing by a power of two is exact.
    unit = length_unit(box)
    coords, box = coords / unit, [side / unit for side in box]
    fixed_coords = jax.lax.stop_gradient(coords)
    point_ids = jnp.arange(points)

    def nearest(chunk: tuple[Float[Array, "b q d"], Int[Array, "b q"]]) -> Int[Array, "b q k"]:
        chunk_coords, chunk_ids = chunk
        squares = _squared_lengths(fixed_coords[:, None] - chunk_coords[:, :, None], box, periodic)
        is_candidate = (mask[:, None] > 0) & (point_ids.reshape(1, 1, -1) != chunk_ids[..., None])
        # The result is sliced twice below. Without the barrier XLA then sorts all points: 159 ms instead of 6 ms for
        # eight rows of 406 points on one core.
        index = jax.lax.top_k(jnp.where(is_candidate, -squares, -jnp.inf), min(count + 1, points))[1]
        return jax.lax.optimization_barrier(index)

    ids = jnp.broadcast_to(point_ids[None], mask.shape)
    index = chunked_map(nearest, (fixed_coords, ids), chunk_size or max(1, _DISTANCES // points))
    offset = _nearest_image_offsets(_take_neighbours(coords, index) - coords[:, :, None], box, periodic)
    squares = jnp.square(offset).sum(-1)
    # If there are too few candidates, the last entries are padding points or the point itself.
    is_neighbour = (_take_neighbours(mask, index) > 0) & (index != ids[..., None]) & (mask[..., None] > 0)
    radius_squares = jnp.full((*mask.shape, 1), jnp.inf if radius is None else (radius / unit) ** 2, squares.dtype)
    if index.shape[-1] > count:
        radius_squares = jnp.minimum(radius_squares, jnp.where(is_neighbour, squares, jnp.inf)[..., count:])
        index, offset, squares, is_neighbour = (x[:, :, :count] for x in (index, offset, squares, is_neighbour))
    weight = jnp.maximum(1 - squares / jnp.maximum(radius_squares, 1e-12 * max(box) ** 2), 0.0) * is_neighbour
    return Neighbours(
        index=index, offset=offset * unit, weight=weight / (weight.sum(-1, keepdims=True) + _EMPTY_WEIGHT)
    )


def length_unit(box: Sequence[float]) -> float:
    """Return the smallest power of two that is not smaller than any side of a box."""
    return 2.0 ** math.ceil(math.log2(max(box)))


class NeighbourMessages(nn.Module):
    """Sum of the messages that each point receives from its neighbours in several rounds.

    In each round a point sends its features plus the sum of all messages that it received in earlier rounds.

    Attributes:
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
    """Messages that each point receives in one round: a linear map of a weighted mean of silu(S + R + P).

    The mean runs over the point's neighbours. S, R and P are learned linear maps of the sender's features, the
    receiver's features and the sender's relative position. S, R and the final linear map are computed per point instead
    of per pair of points, which is equivalent and cheaper.
    """

    scale: float

    @nn.compact
    def __call__(self, features: Float[Array, "b p c"], neighbours: Neighbours, chunk_size: int | None = None) -> Array:
        width, (*_, count, axes) = features.shape[-1], neighbours.offset.shape
        sender = Dense(width, name="sender")(features)
        position_kernel = Matrix(axes, width, name="place")() / self.scale

        def weighted_mean(chunk: tuple[Float[Array, "b q c"], Neighbours]) -> Float[Array, "b q c"]:
            receiver, near = chunk
            pairs = (
                _take_neighbours(sender, near.index) + receiver[:, :, None] + matmul_rows(near.offset, position_kernel)
            )
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


def _squared_lengths(
    offset: Float[Array, "b q p d"], box: Sequence[float], periodic: Sequence[bool]
) -> Float[Array, "b q p"]:
    """Return the squared lengths of offsets to the nearest images, added axis by axis as the last axis is short."""
    return sum(map(jnp.square, _image_components(offset, box, periodic)), start=jnp.zeros((), offset.dtype))


def _nearest_image_offsets(
    offset: Float[Array, "b p k d"], box: Sequence[float], periodic: Sequence[bool]
) -> Float[Array, "b p k d"]:
    """Return the offsets from points to the nearest periodic images of other points, from any of these offsets."""
    return jnp.stack(_image_components(offset, box, periodic), axis=-1)


def _image_components(
    offset: Float[Array, "*b d"], box: Sequence[float], periodic: Sequence[bool]
) -> list[Float[Array, "*b"]]:
    """Return, for each axis, the components of the offsets to the nearest periodic images."""
    axes = zip(jnp.moveaxis(offset, -1, 0), box, periodic, strict=True)
    return [x - side * jnp.round(x / side) if wraps else x for x, side, wraps in axes]


def _take_neighbours(values: Float[Array, "b p *c"], index: Int[Array, "b q k"]) -> Float[Array, "b q k *c"]:
    """Return, for each row of the batch, the values of the points with the given indices."""
    return jax.vmap(lambda row, row_index: row[row_index])(values, index)
