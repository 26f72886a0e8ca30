"""Query sampling: always different points, spread over the grid where asked, the same for the same key."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ups_jax.losses import sample_present_points, sample_queries, take_points

KEY = jax.random.key(0)
present_sampled = jax.jit(sample_present_points, static_argnums=2)


@settings(max_examples=12, deadline=None)
@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    queries=st.integers(1, 60),
    strategy=st.sampled_from(["uniform", "stratified"]),
    seed=st.integers(0, 99),
)
def test_the_points_are_different_ones_of_the_grid(shape: list[int], queries: int, strategy: str, seed: int) -> None:
    points = math.prod(shape)
    with jax.disable_jit():
        indices = np.asarray(sample_queries(jax.random.key(seed), points, queries, strategy, shape))
    assert indices.shape == (min(queries, points),)
    assert len(set(indices.tolist())) == len(indices)
    assert indices.min() >= 0 and indices.max() < points


@pytest.mark.parametrize("strategy", ["uniform", "stratified"])
def test_as_many_queries_as_points_are_the_grid_as_it_is(strategy: str) -> None:
    for queries in (16, 40):
        indices = sample_queries(KEY, 16, queries, strategy, (4, 4))
        np.testing.assert_array_equal(indices, np.arange(16))
    values = jnp.arange(32.0).reshape(1, 4, 4, 2)
    np.testing.assert_array_equal(take_points(values, indices), values.reshape(1, 16, 2))


def test_a_key_draws_under_jit_what_it_draws_outside_and_another_key_other_points() -> None:
    for strategy in ("uniform", "stratified"):
        draw = jax.jit(lambda key, strategy=strategy: sample_queries(key, 64, 20, strategy, (8, 8)))
        first, again, other = (np.asarray(draw(jax.random.key(seed))) for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        np.testing.assert_array_equal(first, sample_queries(jax.random.key(1), 64, 20, strategy, (8, 8)))
        assert set(first.tolist()) != set(other.tolist())


def test_a_stratified_draw_takes_as_many_from_every_block() -> None:
    indices = np.asarray(sample_queries(KEY, 32 * 32, 256, "stratified", (32, 32)))
    # 16 x 16 blocks of 2 x 2 points, one of each.
    blocks = (indices // 32 // 2) * 16 + indices % 32 // 2
    np.testing.assert_array_equal(np.bincount(blocks, minlength=256), 1)
    # 3 x 3 blocks: 11 points are one of each and two more, of different blocks.
    indices = np.asarray(sample_queries(KEY, 81, 11, "stratified", (9, 9)))
    counts = np.bincount(indices // 9 // 3 * 3 + indices % 9 // 3, minlength=9)
    assert sorted(counts.tolist()) == [1] * 7 + [2] * 2
    assert len(np.asarray(sample_queries(KEY, 16, 8, "stratified", (4, 4)))) == 8


def test_every_point_is_drawn_as_often() -> None:
    for strategy in ("uniform", "stratified"):
        draws = jax.jit(jax.vmap(lambda key, strategy=strategy: sample_queries(key, 36, 7, strategy, (6, 6))))
        counts = np.bincount(np.asarray(draws(jax.random.split(KEY, 3000))).ravel(), minlength=36)
        # 583 on average, and a standard deviation of 22.
        assert np.abs(counts - 3000 * 7 / 36).max() < 100, strategy


def test_queries_cut_a_field_to_their_points() -> None:
    values = np.random.default_rng(0).normal(size=(2, 3, 4, 2))
    queries = np.array([5, 0, 11])
    expected = np.stack([values[:, index // 4, index % 4] for index in queries], axis=1)
    np.testing.assert_allclose(take_points(jnp.asarray(values, jnp.float32), jnp.asarray(queries)), expected, rtol=1e-6)


def test_bad_requests_are_refused() -> None:
    with pytest.raises(Exception, match="strategy"):
        sample_queries(KEY, 16, 4, "halton", (4, 4))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="grid_shape"):
        sample_queries(KEY, 16, 4, "stratified")
    with pytest.raises(ValueError, match=r"15.*16"):
        sample_queries(KEY, 16, 4, "stratified", (3, 5))
    with pytest.raises(ValueError, match="0"):
        sample_queries(KEY, 16, 0)


@settings(max_examples=25, deadline=None)
@given(
    mask=st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=4),
    queries=st.sampled_from([1, 5, 9, 12]),
)
def test_queries_of_a_set_fall_on_points_that_are_there(mask: list[list[bool]], queries: int) -> None:
    present = np.array(mask, np.float32)
    # Filled up to four rows, so that a number of queries is compiled once.
    filled = np.concatenate([present, np.ones((4 - len(mask), 9), np.float32)])
    indices = np.asarray(present_sampled(KEY, filled, queries))[: len(mask)]
    assert indices.shape == (len(mask), min(queries, 9))
    for row, there in zip(indices, present, strict=True):
        assert len(set(row.tolist())) == len(row)
        # All of the points that are there come before those that are not.
        scored = there[row]
        assert scored.sum() == min(queries, there.sum()) and (np.diff(scored) <= 0).all()


def test_the_points_of_a_set_are_drawn_evenly_and_a_row_s_whatever_its_company() -> None:
    present = jnp.asarray([[1, 1, 0, 1, 1, 0, 1, 1], [1, 0, 1, 1, 1, 1, 1, 1]], jnp.float32)
    drawn = np.asarray(
        jax.jit(jax.vmap(lambda key: sample_present_points(key, present, 3)))(jax.random.split(KEY, 2000))
    )
    counts = np.bincount(drawn[:, 0].ravel(), minlength=8)
    assert (counts[[2, 5]] == 0).all()
    np.testing.assert_allclose(counts[np.asarray(present[0]) > 0], 1000, rtol=0.15)
    alone = present_sampled(KEY, present[1:], 3)
    np.testing.assert_array_equal(alone[0], present_sampled(KEY, present, 3)[1])


def test_queries_of_each_row_cut_a_set_to_its_points() -> None:
    values = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    queries = np.array([[4, 0], [2, 3]])
    taken = take_points(jnp.asarray(values), jnp.asarray(queries))
    np.testing.assert_array_equal(taken, np.stack([values[0, [4, 0]], values[1, [2, 3]]]))
