"""The average of the parameters."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest

from ups_jax.optim import ema_init, ema_params, ema_update


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
