"""Neighbours are those that a search by hand finds, however the box wraps and in whatever blocks they come."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import cKDTree

from ups_jax.models.points.message_passing import MessageRound, NeighbourMessages, nearest_neighbours
from ups_jax.models.points.node_pooling import shepard_interpolation

BOXES = {
    "walls": ((1.0, 2.0), (False, False)),
    "periodic": ((1.0, 2.0), (True, True)),
    "both": ((1.0, 0.5, 2.0), (True, False, True)),
}

compiled_neighbours = jax.jit(nearest_neighbours, static_argnames=("count", "box", "periodic", "radius", "chunk_size"))


def scattered(kind: str, points: int = 40) -> tuple[Any, Any]:
    rng = np.random.default_rng(3)
    sides, _ = BOXES[kind]
    coords = jnp.asarray(rng.random((2, points, len(sides))) * sides, jnp.float32)
    mask = np.ones((2, points), np.float32)
    mask[0, 5:9], mask[1, 30:] = 0, 0
    return coords, jnp.asarray(mask)


def by_hand(coords: Any, mask: Any, kind: str, count: int, radius: float = np.inf) -> list[list[dict[int, np.ndarray]]]:
    """Return each point's neighbours with their relative positions, by scipy's tree over all images."""
    sides, periodic = BOXES[kind]
    shifts = np.stack(np.meshgrid(*[(-1, 0, 1) if wraps else (0,) for wraps in periodic], indexing="ij"), -1).reshape(
        -1, len(sides)
    )
    result = []
    for places, there in zip(np.asarray(coords, np.float64), np.asarray(mask) > 0, strict=True):
        present = np.flatnonzero(there)
        images = (places[present][None] + (shifts * sides)[:, None]).reshape(-1, len(sides))
        names = np.tile(present, len(shifts))
        distances, neighbours = cKDTree(images).query(places, k=count + 2)
        row: list[dict[int, np.ndarray]] = []
        for point, place in enumerate(places):
            others = [(r, i) for r, i in zip(distances[point], neighbours[point], strict=True) if names[i] != point][
                :count
            ]
            heard = {int(names[i]): images[i] - place for r, i in others if r < radius}
            row.append(heard if there[point] else {})
        result.append(row)
    return result


@pytest.mark.parametrize("power", [-30, 30])
def test_neighbours_and_interpolations_do_not_depend_on_the_unit_of_length(power: int) -> None:
    coords, mask = scattered("both")
    sides, periodic = BOXES["both"]
    unit = 10.0**power
    box = tuple(side * unit for side in sides)
    near, scaled = (
        nearest_neighbours(jnp.asarray(coords * length), mask, 4, lengths, periodic, 0.3 * length)
        for length, lengths in ((1.0, sides), (unit, box))
    )
    np.testing.assert_array_equal(scaled.index, near.index)
    np.testing.assert_allclose(scaled.weight, near.weight, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scaled.offset / unit, near.offset, atol=1e-6)
    values = jnp.asarray(np.random.default_rng(0).normal(size=(2, 40, 1)), jnp.float32)
    expected, interpolated = (
        shepard_interpolation(lengths, periodic, values, coords * length, mask, 0.9 * coords * length)
        for length, lengths in ((1.0, sides), (unit, box))
    )
    np.testing.assert_allclose(interpolated, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", BOXES)
@pytest.mark.parametrize("radius", [None, 0.3])
def test_they_are_those_of_a_search_by_hand(kind: str, radius: float | None) -> None:
    coords, mask = scattered(kind)
    sides, periodic = BOXES[kind]
    near = compiled_neighbours(coords, mask, count=5, box=sides, periodic=periodic, radius=radius)
    index, offsets, weight = (np.asarray(part) for part in (near.index, near.offset, near.weight))
    hand = by_hand(coords, mask, kind, 5, np.inf if radius is None else radius)
    counts = set()
    for row, points in enumerate(hand):
        for point, expected in enumerate(points):
            heard = np.flatnonzero(weight[row, point] > 0)
            actual = {int(index[row, point, i]): offsets[row, point, i] for i in heard}
            assert actual.keys() == expected.keys()
            for name, offset in expected.items():
                np.testing.assert_allclose(actual[name], offset, atol=1e-6)
            counts.add(len(expected))
    if radius is None:
        assert counts == {0, 5}
    else:
        assert len(counts) > 3


def test_weights_fall_to_nothing_where_the_neighbourhood_ends_beside_a_tenth_of_silence() -> None:
    line = np.asarray([[[0.0], [1.0], [3.0], [7.0]]], np.float32)

    def weights(coords: np.ndarray, count: int, radius: float | None = None) -> np.ndarray:
        mask = np.ones(coords.shape[:2], np.float32)
        near = compiled_neighbours(coords, mask, count=count, box=(10.0,), periodic=(False,), radius=radius)
        return np.asarray(near.weight)

    # Of the first: at 1 and 3, the next at 7.
    expected = np.array([1 - 1 / 49, 1 - 9 / 49])
    np.testing.assert_allclose(weights(line, 2)[0, 0], expected / (expected.sum() + 0.1), rtol=1e-6)
    expected = np.array([1 - 1 / 16, 1 - 9 / 16])
    np.testing.assert_allclose(weights(line, 2, radius=4.0)[0, 0], expected / (expected.sum() + 0.1), rtol=1e-6)
    # With as many others as are looked for, or fewer, all count, and a point that is alone hears nobody.
    np.testing.assert_allclose(np.sort(weights(line, 8)[0, 0]), [0, *[1 / 3.1] * 3], rtol=1e-6)
    assert not weights(line[:, :1], 8).any()


@partial(jax.jit, static_argnames=("count", "rounds", "radius"))
def receive_messages(features: Any, coords: Any, count: int, rounds: int = 2, radius: float | None = None) -> Any:
    """Return the messages that the points of each row receive; all points are present."""
    near = nearest_neighbours(coords, jnp.ones(coords.shape[:2]), count, (1.0, 1.0), (True, True), radius=radius)
    messages = NeighbourMessages(rounds, 0.1)
    return messages.apply(messages.init(jax.random.key(0), features, near), features, near)


def lattice() -> np.ndarray:
    side = np.arange(6) / 6
    return np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(1, 36, 2)


def test_of_points_that_are_equally_far_away_it_does_not_matter_which_are_taken() -> None:
    coords = lattice().astype(np.float32)
    rng = np.random.default_rng(0)
    features, order = rng.normal(size=(1, 36, 3)).astype(np.float32), rng.permutation(36)
    # Six of the four at one distance and the four at the next.
    plain = np.asarray(receive_messages(features, coords, 6))
    np.testing.assert_allclose(receive_messages(features[:, order], coords[:, order], 6), plain[:, order], atol=1e-5)
    assert np.abs(plain).max() > 0.1


def heard_by_the_first(values: list[float], coords: np.ndarray, count: int, radius: float | None = None) -> np.ndarray:
    """Return the message to the first point of each row after one round; all rows have the same features."""
    features = np.broadcast_to(np.asarray(values, np.float32)[None, :, None], (*coords.shape[:2], 1))
    return np.asarray(receive_messages(features, coords.astype(np.float32), count, rounds=1, radius=radius))[:, 0, 0]


@pytest.mark.parametrize("count", [1, 2])
def test_a_point_that_moves_makes_no_jump_where_another_becomes_its_neighbour(count: int) -> None:
    near = [0.55, 0.5] if count == 2 else [0.1, 0.1]
    places = np.linspace(0.09, 0.11, 81)
    coords = np.stack([[[0.5, 0.5], [0.6, 0.5], [0.5, 0.5 - place], near] for place in places])
    values = heard_by_the_first([1.0, 2.0, -3.0, 4.0], coords, count)
    assert np.abs(np.diff(values)).max() < 0.2 * np.ptp(values)


def test_a_point_that_leaves_the_radius_is_heard_less_and_less() -> None:
    coords = np.stack([[[0.5, 0.5], [0.5 + place, 0.5]] for place in np.linspace(0.08, 0.105, 101)])
    values = heard_by_the_first([1.0, 2.0], coords, 1, radius=0.1)
    assert np.abs(np.diff(values)).max() < 0.1 * np.ptp(values) and values[-1] == 0
    # A regular mesh that is moved by round-off is another one by round-off.
    regular = lattice()
    moved = regular + 1e-6 * np.random.default_rng(0).normal(size=regular.shape)
    said = np.random.default_rng(1).normal(size=(1, 36, 3)).astype(np.float32)
    one, other = (receive_messages(said, coords.astype(np.float32), 3) for coords in (regular, moved))
    np.testing.assert_allclose(one, other, atol=1e-3)


def test_blocks_find_the_same_and_pass_the_same_gradients() -> None:
    coords, mask = scattered("both")
    sides, periodic = BOXES["both"]
    features = jnp.asarray(np.random.default_rng(0).normal(size=(2, 40, 3)), jnp.float32)
    messages = MessageRound(0.2)

    @partial(jax.jit, static_argnames="block")
    def slopes(features: Any, coords: Any, block: int | None) -> Any:
        """The neighbours, the parameters, and a loss with its gradients."""
        params = messages.init(jax.random.key(0), features, nearest_neighbours(coords, mask, 5, sides, periodic))

        def loss(params: Any, features: Any, coords: Any) -> Any:
            near = nearest_neighbours(coords, mask, 5, sides, periodic, chunk_size=block)
            return jnp.square(messages.apply(params, features, near, block)).sum(), near

        (value, near), gradients = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(params, features, coords)
        return near, (value, gradients)

    (whole, one), (parts, other) = slopes(features, coords, None), slopes(features, coords, 7)
    for left, right in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(left, right)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, other)
    # Places have a slope as well: a rollout's particles are moved by what they hear.
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(one))


def test_distances_and_messages_are_never_held_at_once() -> None:
    def held(block: int) -> int:
        def loss(features: Any, coords: Any) -> Any:
            near = nearest_neighbours(coords, jnp.ones((1, 2048)), 8, (1.0, 1.0), (True, True), chunk_size=block)
            messages = MessageRound(0.1)
            shapes = jax.eval_shape(messages.init, jax.random.key(0), features, near)
            params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
            return jnp.square(messages.apply(params, features, near, block)).sum()

        shapes = jax.ShapeDtypeStruct((1, 2048, 64), jnp.float32), jax.ShapeDtypeStruct((1, 2048, 2), jnp.float32)
        return jax.jit(jax.grad(loss)).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert held(64) < held(2048) / 2
