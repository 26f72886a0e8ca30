"""Tokens without a grid: queries spread over the box hear the points around them, whatever blocks these come in."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from point_tasks import example, still_task, swarm_task

from ups_jax.config import LatentConfig, OperatorConfig
from ups_jax.models import PointSimulator
from ups_jax.models.operator import build_architecture
from ups_jax.models.points.query_pooling import (
    QueryPooling,
    fourier_features,
    low_discrepancy_points,
    pool_by_attention,
)


def parts(points: int = 21) -> tuple[Any, Any, Any, Any]:
    rng = np.random.default_rng(0)
    query = jnp.asarray(3 * rng.normal(size=(5, 2, 4)), jnp.float32)
    key, value = (jnp.asarray(rng.normal(size=(3, points, 2, 4)), jnp.float32) for _ in range(2))
    mask = np.asarray(rng.random((3, points)) > 0.3, np.float32)
    mask[2] = 0
    return query, key, value, jnp.asarray(mask)


def test_pooling_is_a_softmax_over_the_points_that_are_there() -> None:
    query, key, value, mask = parts()
    pooled = pool_by_attention(query, key, value, mask)
    for row in range(2):
        there = np.asarray(mask[row]) > 0
        scores = np.einsum("nad,pad->anp", query, np.asarray(key)[row, there]) / 2
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        expected = np.einsum("anp,pad->nad", weights, np.asarray(value)[row, there])
        np.testing.assert_allclose(pooled[row], expected, atol=2e-6)
    # A row that only fills a batch up has no points at all.
    assert not np.asarray(pooled[2]).any()


def test_blocks_are_the_same_sums_and_gradients_also_where_a_block_has_no_points() -> None:
    query, key, value, mask = parts()
    mask = mask.at[0, :8].set(0)

    def slopes(block: int) -> Any:
        def loss(query: Any, key: Any, value: Any) -> Any:
            return jnp.square(pool_by_attention(query, key, value, mask, block)).sum()

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(query, key, value)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), slopes(8), slopes(21))


def test_large_scores_neither_overflow_nor_vanish() -> None:
    query, key, value, mask = parts()
    for sign in (1, -1):
        pooled, pull = jax.vjp(lambda key: pool_by_attention(300 * sign * query, jnp.abs(key), value, mask), key)  # noqa: B023
        assert np.isfinite(pooled).all() and np.abs(pooled[:2]).max(axis=(2, 3)).min() > 1e-3
        assert np.isfinite(pull(jnp.ones_like(pooled))[0]).all()


def test_scores_are_never_held_at_once() -> None:
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 2, 4), (1, 2048, 2, 4), (1, 2048))]

    def held(block: int) -> int:
        gradient = jax.jit(
            jax.grad(lambda q, k, m: jnp.square(pool_by_attention(q, k, k, m, block)).sum(), argnums=(0, 1))
        )
        return gradient.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert held(128) < held(2048) / 2


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_places_are_spread_evenly(axes: int) -> None:
    places = low_discrepancy_points(64, axes)
    assert places.shape == (64, axes) and (places >= 0).all() and (places < 1).all()
    # Every cell of an eighth of the cube, or of the line, has its share within a few.
    cells = (places * (8 if axes == 1 else 2)).astype(int)
    counts = np.unique(cells, axis=0, return_counts=True)[1]
    share = 64 / (8 if axes == 1 else 2**axes)
    assert len(counts) == 64 / share and np.abs(counts - share).max() <= share / 2


def test_waves_are_the_same_after_a_period_and_stand_at_walls() -> None:
    places = jnp.asarray([[[0.2, 0.9]]])
    waves = fourier_features(places, (True, False), 16)
    np.testing.assert_allclose(
        fourier_features(places + jnp.asarray([[[3.0, 0.0]]]), (True, False), 16), waves, atol=1e-4
    )
    beyond = fourier_features(jnp.asarray([[[0.2, 1.0]], [[0.2, 1.4]]]), (True, False), 16)
    np.testing.assert_array_equal(beyond[0], beyond[1])
    assert np.abs(beyond[0] - waves[0]).max() > 0.1


@pytest.mark.parametrize("task", [still_task(400), swarm_task(400)], ids=["walls", "periodic"])
def test_at_first_a_query_hears_the_points_around_its_place(task: Any) -> None:
    """The share of what it hears that comes from there, against the share of the points that lie there."""
    pooling = QueryPooling(task, LatentConfig(dim=1, nodes=16), 64, 4)
    shares = np.random.default_rng(0).random((1, 400, 2))
    coords = jnp.asarray(shares * task.box + task.origin, jnp.float32)
    params = pooling.init(jax.random.key(1), jnp.ones((1, 400, 1)), coords, jnp.ones((1, 400)), method="pool")
    offset = shares[0, :, None] - low_discrepancy_points(16, 2)[None]
    if all(task.periodic):
        offset -= np.round(offset)
    near = (np.hypot(offset[..., 0], offset[..., 1]) < 0.2).astype(np.float32)

    def heard(module: QueryPooling) -> Any:
        query = module.place(module.queries).reshape(16, 4, -1)
        key = module.place(fourier_features(jnp.asarray(shares, jnp.float32), task.periodic, 16)).reshape(1, 400, 4, -1)
        return pool_by_attention(query, key, jnp.broadcast_to(near[None, :, None], (1, 400, 4, 16)), jnp.ones((1, 400)))

    nearby_shares = np.diagonal(np.asarray(pooling.apply(params, method=heard))[0].mean(1))
    assert (nearby_shares > 1.5 * near.mean(0)).all() and nearby_shares.mean() > 3 * near.mean()


@pytest.mark.parametrize("core", ["spectral", "pdet_unet"])
def test_a_core_that_needs_a_grid_gets_no_tokens_without_one(core: Any) -> None:
    with pytest.raises(ValueError, match=core):
        build_architecture(OperatorConfig(architecture_type=core), None, jnp.float32)


def test_there_are_as_many_tokens_as_wanted() -> None:
    task = still_task()
    model = PointSimulator(
        task, LatentConfig(dim=4, nodes=7, pooling="queries"), OperatorConfig(architecture_type="pdet_stack")
    )
    fields, cond = example(task)
    params = jax.eval_shape(model.init, jax.random.key(0), fields, cond)["params"]
    tokens = jax.eval_shape(lambda p: model.apply({"params": p}, fields, cond, method="encode"), params)
    assert tokens.shape[:2] == (2, 7)
