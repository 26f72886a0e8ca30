"""Neighbours are those that a search by hand finds, however the box wraps and in whatever blocks they come."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import cKDTree

from ups_jax.models.points.message_passing import MessageRound, NeighbourMessages, neighbours_of

BOXES = {
    "walls": ((1.0, 2.0), (False, False)),
    "periodic": ((1.0, 2.0), (True, True)),
    "both": ((1.0, 0.5, 2.0), (True, False, True)),
}


def scattered(kind: str, points: int = 40) -> tuple[Any, Any]:
    rng = np.random.default_rng(3)
    sides, _ = BOXES[kind]
    coords = jnp.asarray(rng.random((2, points, len(sides))) * sides, jnp.float32)
    mask = np.ones((2, points), np.float32)
    mask[0, 5:9], mask[1, 30:] = 0, 0
    return coords, jnp.asarray(mask)


def by_hand(coords: Any, mask: Any, kind: str, count: int, radius: float = np.inf) -> list[list[dict[int, np.ndarray]]]:
    """Of each point the others that it hears, with their relative positions: scipy's tree over all images."""
    sides, periodic = BOXES[kind]
    shifts = np.stack(np.meshgrid(*[(-1, 0, 1) if wraps else (0,) for wraps in periodic], indexing="ij"), -1).reshape(
        -1, len(sides)
    )
    result = []
    for places, there in zip(np.asarray(coords, np.float64), np.asarray(mask) > 0, strict=True):
        known = np.flatnonzero(there)
        images = (places[known][None] + (shifts * sides)[:, None]).reshape(-1, len(sides))
        names = np.tile(known, len(shifts))
        distances, found = cKDTree(images).query(places, k=count + 2)
        row: list[dict[int, np.ndarray]] = []
        for point, place in enumerate(places):
            others = [(r, i) for r, i in zip(distances[point], found[point], strict=True) if names[i] != point][:count]
            heard = {int(names[i]): images[i] - place for r, i in others if r < radius}
            row.append(heard if there[point] else {})
        result.append(row)
    return result


@pytest.mark.parametrize("kind", BOXES)
@pytest.mark.parametrize("radius", [None, 0.3])
def test_they_are_those_of_a_search_by_hand(kind: str, radius: float | None) -> None:
    coords, mask = scattered(kind)
    near = neighbours_of(coords, mask, 5, *BOXES[kind], radius=radius)
    hand = by_hand(coords, mask, kind, 5, np.inf if radius is None else radius)
    counts = set()
    for row, points in enumerate(hand):
        for point, expected in enumerate(points):
            heard = np.flatnonzero(np.asarray(near.weight[row, point]) > 0)
            found = {int(near.index[row, point, i]): np.asarray(near.offset[row, point, i]) for i in heard}
            assert found.keys() == expected.keys()
            for name, offset in expected.items():
                np.testing.assert_allclose(found[name], offset, atol=1e-6)
            counts.add(len(expected))
    if radius is None:
        assert counts == {0, 5}
    else:
        assert len(counts) > 3


def test_weights_fall_to_nothing_where_the_neighbourhood_ends_beside_a_tenth_of_silence() -> None:
    line = jnp.asarray([[[0.0], [1.0], [3.0], [7.0]]])
    near = neighbours_of(line, jnp.ones((1, 4)), 2, (10.0,), (False,))
    # Of the first: at 1 and 3, the next at 7.
    own = np.array([1 - 1 / 49, 1 - 9 / 49])
    np.testing.assert_allclose(near.weight[0, 0], own / (own.sum() + 0.1), rtol=1e-6)
    near = neighbours_of(line, jnp.ones((1, 4)), 2, (10.0,), (False,), radius=4.0)
    own = np.array([1 - 1 / 16, 1 - 9 / 16])
    np.testing.assert_allclose(near.weight[0, 0], own / (own.sum() + 0.1), rtol=1e-6)
    # With as many others as are looked for, or fewer, all count, and a point that is alone hears nobody.
    near = neighbours_of(line, jnp.ones((1, 4)), 8, (10.0,), (False,))
    np.testing.assert_allclose(np.sort(near.weight[0, 0]), [0, *[1 / 3.1] * 3], rtol=1e-6)
    assert not neighbours_of(line[:, :1], jnp.ones((1, 1)), 8, (10.0,), (False,)).weight.any()


def told(own: Any, coords: Any, mask: Any, count: int, rounds: int = 2, radius: float | None = None) -> Any:
    near = neighbours_of(coords, mask, count, (1.0, 1.0), (True, True), radius=radius)
    messages = NeighbourMessages(rounds, 0.1)
    return messages.apply(messages.init(jax.random.key(0), own, near), own, near)


def test_of_points_that_are_equally_far_away_it_does_not_matter_which_are_taken() -> None:
    side = np.arange(6) / 6
    coords = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(1, 36, 2)
    rng = np.random.default_rng(0)
    own, order = rng.normal(size=(1, 36, 3)), rng.permutation(36)
    own, coords = jnp.asarray(own, jnp.float32), jnp.asarray(coords, jnp.float32)
    # Six of the four at one distance and the four at the next.
    plain = told(own, coords, jnp.ones((1, 36)), 6)
    np.testing.assert_allclose(told(own[:, order], coords[:, order], jnp.ones((1, 36)), 6), plain[:, order], atol=1e-5)
    assert np.abs(plain).max() > 0.1


@pytest.mark.parametrize("count", [1, 2])
def test_a_point_that_moves_makes_no_jump_where_another_becomes_its_neighbour(count: int) -> None:
    own = jnp.asarray([[[1.0], [2.0], [-3.0], [4.0]]])

    def first(place: float) -> Any:
        near = [0.55, 0.5] if count == 2 else [0.1, 0.1]
        coords = jnp.asarray([[[0.5, 0.5], [0.6, 0.5], [0.5, 0.5 - place], near]])
        return told(own, coords, jnp.ones((1, 4)), count, rounds=1)[0, 0, 0]

    values = np.asarray([first(place) for place in np.linspace(0.09, 0.11, 81)])
    assert np.abs(np.diff(values)).max() < 0.2 * np.ptp(values)


def test_a_point_that_leaves_the_radius_is_heard_less_and_less() -> None:
    own = jnp.asarray([[[1.0], [2.0]]])

    def first(place: float) -> Any:
        coords = jnp.asarray([[[0.5, 0.5], [0.5 + place, 0.5]]])
        return told(own, coords, jnp.ones((1, 2)), 1, rounds=1, radius=0.1)[0, 0, 0]

    values = np.asarray([first(place) for place in np.linspace(0.08, 0.105, 101)])
    assert np.abs(np.diff(values)).max() < 0.1 * np.ptp(values) and values[-1] == 0
    # A regular mesh that is moved by round-off is another one by round-off.
    side = np.arange(6) / 6
    lattice = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(1, 36, 2)
    moved = lattice + 1e-6 * np.random.default_rng(0).normal(size=lattice.shape)
    said = jnp.asarray(np.random.default_rng(1).normal(size=(1, 36, 3)), jnp.float32)
    one, other = (told(said, jnp.asarray(at, jnp.float32), jnp.ones((1, 36)), 3) for at in (lattice, moved))
    np.testing.assert_allclose(one, other, atol=1e-3)


def test_blocks_find_the_same_and_pass_the_same_gradients() -> None:
    coords, mask = scattered("both")
    sides, periodic = BOXES["both"]
    own = jnp.asarray(np.random.default_rng(0).normal(size=(2, 40, 3)), jnp.float32)
    whole = neighbours_of(coords, mask, 5, sides, periodic)
    parts = neighbours_of(coords, mask, 5, sides, periodic, block=7)
    for one, other in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(one, other)
    messages = MessageRound(0.2)
    params = messages.init(jax.random.key(0), own, whole)

    def slopes(block: int | None) -> Any:
        def loss(params: Any, own: Any, coords: Any) -> Any:
            near = neighbours_of(coords, mask, 5, sides, periodic, block=block)
            return jnp.square(messages.apply(params, own, near, block)).sum()

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(params, own, coords)

    one, other = slopes(None), slopes(7)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, other)
    # Places have a slope as well: a rollout's particles are moved by what they hear.
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(one))


def test_distances_and_messages_are_never_held_at_once() -> None:
    def held(block: int) -> int:
        def loss(own: Any, coords: Any) -> Any:
            near = neighbours_of(coords, jnp.ones((1, 2048)), 8, (1.0, 1.0), (True, True), block=block)
            messages = MessageRound(0.1)
            shapes = jax.eval_shape(messages.init, jax.random.key(0), own, near)
            params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
            return jnp.square(messages.apply(params, own, near, block)).sum()

        shapes = jax.ShapeDtypeStruct((1, 2048, 64), jnp.float32), jax.ShapeDtypeStruct((1, 2048, 2), jnp.float32)
        return jax.jit(jax.grad(loss)).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert held(64) < held(2048) / 2
