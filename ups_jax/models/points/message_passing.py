"""Messages between neighbouring points: who is whose neighbour, and rounds of what they tell each other.

The neighbours are searched for in the graph, once a step, because points may move. A message counts the less the nearer
its sender is to where the neighbourhood ends, and nothing there: a point that enters or leaves it makes no jump, and of
points that are equally far away, as on a regular mesh, it does not matter which are taken.
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

# Distances, and features of messages, that are held at a time for each row.
_DISTANCES = 2**22
_FEATURES = 2**21
# The weight of silence in a point's mean: a last neighbour that leaves is heard less and less.
_SILENCE = 0.1


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Of each point up to k others: which they are, where they lie relative to it, physical, and the weight of each.

    The weights of a point add up to less than one, as silence counts as well, and are all 0 where it has no neighbours.
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
    block: int | None = None,
) -> Neighbours:
    """The `count` nearest of the points that are there, within `radius` where that is given; along a periodic axis the
    nearest image counts.

    The weight falls as 1 - (r / R)^2 to zero at the radius R, which is the distance of the next point beyond the count
    where that is nearer. The distances of `block` points to all are held at a time.
    """
    points = coords.shape[1]
    fixed = jax.lax.stop_gradient(coords)
    everyone = jnp.arange(points)

    def nearest(part: tuple[Float[Array, "b q d"], Int[Array, "b q"]]) -> Int[Array, "b q k"]:
        place, own = part
        squares = _squares(fixed[:, None] - place[:, :, None], sides, periodic)
        other = (mask[:, None] > 0) & (everyone.reshape(1, 1, -1) != own[..., None])
        # Without the barrier XLA sees two slices of the result and sorts everything: 159 ms, and 6 ms with it, for
        # eight rows of 406 points on a core.
        found = jax.lax.top_k(jnp.where(other, -squares, -jnp.inf), min(count + 1, points))[1]
        return jax.lax.optimization_barrier(found)

    own = jnp.broadcast_to(everyone[None], mask.shape)
    index = chunked_map(nearest, (fixed, own), block or max(1, _DISTANCES // points))
    offset = _nearest_image(_of(coords, index) - coords[:, :, None], sides, periodic)
    squares = jnp.square(offset).sum(-1)
    # Where there are fewer others than are looked for, the last ones are not there, or the point itself.
    present = (_of(mask, index) > 0) & (index != own[..., None]) & (mask[..., None] > 0)
    reach = jnp.full((*mask.shape, 1), jnp.inf if radius is None else radius**2, squares.dtype)
    if index.shape[-1] > count:
        reach = jnp.minimum(reach, jnp.where(present, squares, jnp.inf)[..., count:])
        index, offset, squares, present = (x[:, :, :count] for x in (index, offset, squares, present))
    weight = jnp.maximum(1 - squares / jnp.maximum(reach, 1e-12 * max(sides) ** 2), 0.0) * present
    return Neighbours(index=index, offset=offset, weight=weight / (weight.sum(-1, keepdims=True) + _SILENCE))


class NeighbourMessages(nn.Module):
    """What points with features `own` are told by their neighbours in `rounds` rounds, in each of which they speak of
    what they have been told before. Positions are measured in `scale`."""

    rounds: int
    scale: float
    remat: bool = False

    @nn.compact
    def __call__(self, own: Float[Array, "b p c"], neighbours: Neighbours) -> Float[Array, "b p c"]:
        kind = remat_block(MessageRound) if self.remat else MessageRound
        told = jnp.zeros_like(own)
        for number in range(self.rounds):
            told = told + kind(self.scale, name=f"round_{number}")(own + told, neighbours)
        return told


class MessageRound(nn.Module):
    """A linear map of the mean of silu(a of the sender + b of the receiver + c of the relative position).

    The two linear layers round the nonlinearity are on points, not on pairs: a sum and a mean can wait, or go first.
    """

    scale: float

    @nn.compact
    def __call__(self, own: Float[Array, "b p c"], neighbours: Neighbours, block: int | None = None) -> Array:
        width, (*_, count, axes) = own.shape[-1], neighbours.offset.shape
        said = Dense(width, name="sender")(own)
        place = Matrix(axes, width, name="place")() / self.scale

        def heard(part: tuple[Float[Array, "b q c"], Neighbours]) -> Float[Array, "b q c"]:
            asked, near = part
            pairs = _of(said, near.index) + asked[:, :, None] + matmul_rows(near.offset, place)
            return jnp.einsum("bqk,bqkc->bqc", near.weight, nn.silu(pairs))

        parts = (Dense(width, name="receiver")(own), neighbours)
        mean = chunked_map(heard, parts, block or max(1, _FEATURES // (count * width)))
        return Dense(width, name="told")(mean) * neighbours.weight.sum(-1, keepdims=True)


class Matrix(nn.Module):
    """A kernel for products that are not a layer's own."""

    inputs: int
    features: int

    @nn.compact
    def __call__(self) -> Float[Array, "i o"]:
        return self.param("kernel", nn.initializers.lecun_normal(), (self.inputs, self.features))


def _squares(
    offset: Float[Array, "b q p d"], sides: Sequence[float], periodic: Sequence[bool]
) -> Float[Array, "b q p"]:
    """Squared distances, axis by axis: the axes are too few to be worked on at once."""
    return sum(map(jnp.square, _images(offset, sides, periodic)), start=jnp.zeros((), offset.dtype))


def _nearest_image(
    offset: Float[Array, "b p k d"], sides: Sequence[float], periodic: Sequence[bool]
) -> Float[Array, "b p k d"]:
    return jnp.stack(_images(offset, sides, periodic), axis=-1)


def _images(offset: Float[Array, "*b d"], sides: Sequence[float], periodic: Sequence[bool]) -> list[Float[Array, "*b"]]:
    """The way to the nearest image along each axis."""
    axes = zip(jnp.moveaxis(offset, -1, 0), sides, periodic, strict=True)
    return [way - side * jnp.round(way / side) if wraps else way for way, side, wraps in axes]


def _of(values: Float[Array, "b p *c"], index: Int[Array, "b q k"]) -> Float[Array, "b q k *c"]:
    """The values of the points that are meant."""
    return jax.vmap(lambda own, which: own[which])(values, index)
