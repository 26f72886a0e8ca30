"""Schedules, the parameter average and the choice of Muon's matrices."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ups_jax.config import OptimizerConfig, SchedulerConfig, StageConfig
from ups_jax.optim import build_optimizer, build_schedule, ema_init, ema_params, ema_update
from ups_jax.optim.muon import scale_by_muon


def test_cosine_rises_over_the_warm_up_and_ends_at_its_floor() -> None:
    schedule = build_schedule(SchedulerConfig(name="cosineannealinglr", warmup=0.1, eta_min=1e-5), 1e-2, 100)
    np.testing.assert_allclose([schedule(step) for step in range(10)], 1e-3 * np.arange(1, 11), rtol=1e-5)
    half = 10 + 45
    np.testing.assert_allclose(schedule(half), 1e-5 + (1e-2 - 1e-5) / 2, rtol=1e-5)
    np.testing.assert_allclose(schedule(100), 1e-5, rtol=1e-4)


def test_constant_stays_after_the_warm_up_and_no_warm_up_starts_at_full_rate() -> None:
    schedule = build_schedule(SchedulerConfig(name="constant", warmup=0.5), 1.0, 10)
    np.testing.assert_allclose([schedule(step) for step in (0, 4, 5, 9, 50)], [0.2, 1, 1, 1, 1], rtol=1e-6)
    assert build_schedule(SchedulerConfig(name="constant", warmup=0.0), 1.0, 10)(0) == 1.0


def test_by_default_the_average_reaches_back_a_fortieth_of_the_steps_so_far() -> None:
    values = np.random.default_rng(0).normal(size=60)
    state = ema_init({"w": jnp.zeros(())})
    for count, value in enumerate(values, start=1):
        state = ema_update({"w": jnp.asarray(value, jnp.float32)}, state, None)
        weights = np.array([math.comb(index + 39, 39) for index in range(count)]) / math.comb(count + 39, 40)
        assert weights.sum() == pytest.approx(1, rel=1e-12)
        average = ema_params({"w": jnp.zeros(())}, state, None)["w"]
        np.testing.assert_allclose(average, weights @ values[:count], rtol=1e-5, atol=1e-6)
    # How long ago the averaged parameters were, on average: (n - 1) / 41 steps.
    assert weights @ np.arange(59, -1, -1) == pytest.approx(59 / 41)


def test_a_fixed_decay_gives_the_closed_form_of_its_weights() -> None:
    decay, values = 0.9, [1.0, 3.0, -2.0]
    state = ema_init({"w": jnp.zeros(())})
    for value in values:
        state = ema_update({"w": jnp.asarray(value)}, state, decay)
    weights = np.array([decay**2, decay, 1.0]) * (1 - decay)
    expected = np.dot(weights, values) / weights.sum()
    np.testing.assert_allclose(ema_params({"w": jnp.zeros(())}, state, decay)["w"], expected, rtol=1e-6)


def test_the_average_of_one_step_is_the_parameters_and_of_none_too() -> None:
    params = {"w": jnp.asarray([1.5, -2.5])}
    state = ema_init(params)
    np.testing.assert_array_equal(ema_params(params, state, 0.999)["w"], params["w"])
    np.testing.assert_allclose(ema_params(params, ema_update(params, state, 0.999), 0.999)["w"], params["w"], rtol=1e-4)
    np.testing.assert_array_equal(ema_params(params, ema_update(params, state, None), None)["w"], params["w"])


def test_muon_turns_a_hidden_matrix_into_a_near_orthogonal_step_and_leaves_the_rest_to_adamw() -> None:
    rng = np.random.default_rng(0)
    params = {
        "core": {"Dense_0": {"kernel": jnp.asarray(rng.normal(size=(12, 12)), jnp.float32), "bias": jnp.zeros(12)}},
        "write": {"kernel": jnp.asarray(rng.normal(size=(12, 12)), jnp.float32)},
    }
    gradients = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params)
    stage = StageConfig(
        grad_clip=None,
        optimizer=OptimizerConfig(name="muon", lr=1.0),
        scheduler=SchedulerConfig(name="constant", warmup=0.0),
    )
    tx = build_optimizer(stage, 10)
    updates, _ = tx.update(gradients, tx.init(params), params)
    values = np.linalg.svd(updates["core"]["Dense_0"]["kernel"], compute_uv=False)
    assert values.min() > 0.5 and values.max() < 1.5
    for name, leaf in (("bias", updates["core"]["Dense_0"]["bias"]), ("exit", updates["write"]["kernel"])):
        np.testing.assert_allclose(np.abs(leaf), 1.0, rtol=1e-3, err_msg=name)


def test_muon_orthogonalises_wide_tall_and_stacked_matrices_alike() -> None:
    rng = np.random.default_rng(0)
    shapes = {"tall": (12, 4), "wide": (4, 12), "stack": (3, 4, 12), "square": (6, 6)}
    gradients = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    tx = scale_by_muon()
    updates, _ = tx.update(gradients, tx.init(gradients))
    for name, update in updates.items():
        height, width = update.shape[-2:]
        values = np.linalg.svd(np.asarray(update) / max(1, width / height) ** 0.5, compute_uv=False)
        assert values.min() > 0.6 and values.max() < 1.25, name
    alone, _ = tx.update({"wide": gradients["wide"]}, tx.init({"wide": gradients["wide"]}))
    np.testing.assert_allclose(updates["wide"], alone["wide"], rtol=1e-4, atol=1e-6)


def test_muon_agrees_with_optax_on_the_first_step() -> None:
    gradient = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(8, 24)), jnp.float32)}
    axes = {"w": optax.contrib.MuonDimensionNumbers(0, 1)}
    ours, theirs = scale_by_muon(), optax.contrib.scale_by_muon(eps=1e-7, weight_dimension_numbers=axes)
    first, _ = ours.update(gradient, ours.init(gradient))
    second, _ = theirs.update(gradient, theirs.init(gradient), gradient)
    np.testing.assert_allclose(first["w"], second["w"] * np.sqrt(3), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_gradient_is_clipped_to_its_norm(name: str) -> None:
    stage = StageConfig(grad_clip=0.5, optimizer=OptimizerConfig(name=name))  # type: ignore[arg-type]
    params = {"bias": jnp.zeros((2, 2))}
    tx = build_optimizer(stage, 10)
    state = tx.update({"bias": jnp.full((2, 2), 100.0)}, tx.init(params), params)[1]
    momentum = [leaf for path, leaf in optax.tree.get_all_with_path(state, "mu") if jax.tree.leaves(leaf)]
    np.testing.assert_allclose(optax.tree.norm(momentum[-1]) / (1 - 0.9), 0.5, rtol=1e-4)
