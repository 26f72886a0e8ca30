"""Field losses against numpy and closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ups_jax.losses import h1, nrmse


@pytest.mark.parametrize("shape", [(3, 16, 1), (3, 8, 6, 2)])
def test_nrmse_of_each_sample_is_the_ratio_of_root_mean_squares(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    pred, target = jnp.asarray(rng.normal(size=(2, *shape)), jnp.float32)
    axes = tuple(range(1, len(shape)))
    expected = np.sqrt(((pred - target) ** 2).mean(axes) / (target**2).mean(axes))
    np.testing.assert_allclose(nrmse(pred, target, reduction="none"), expected, rtol=1e-5)


def test_nrmse_and_its_gradient_are_zero_on_an_exact_prediction() -> None:
    target = jnp.ones((2, 8, 1))
    value, gradient = jax.value_and_grad(lambda pred: nrmse(pred, target, reduction="sum"))(target)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_the_gradient_error_of_a_wave_is_the_error_of_its_amplitude() -> None:
    x = jnp.arange(64) * 2 / 64
    wave = jnp.sin(2 * jnp.pi * x)[None, :, None]
    np.testing.assert_allclose(h1(1.1 * wave, wave, (2 / 64,), (True,)), 0.1, rtol=1e-4)


def test_the_gradient_error_does_not_see_a_constant_and_wraps_only_where_the_domain_does() -> None:
    target = jnp.arange(8.0)[None, :, None]
    np.testing.assert_allclose(h1(target + 3, target, (1.0,), (True,)), 0, atol=1e-6)
    # A line has the same slope everywhere between walls; on a circle it jumps back.
    between_walls = h1(2 * target, target + 0, (1.0,), (False,))
    np.testing.assert_allclose(between_walls, 1, rtol=1e-6)
    spike = target.at[0, 0, 0].add(1.0)
    on_circle = h1(spike, target, (1.0,), (True,))
    np.testing.assert_allclose(on_circle, np.sqrt(2 / (7 + 49)), rtol=1e-6)


def test_the_gradient_error_weighs_each_axis_by_its_spacing() -> None:
    rng = np.random.default_rng(0)
    error, target = rng.normal(size=(2, 1, 8, 8, 1)).astype(np.float32)

    def slope(values: np.ndarray, axis: int, step: float) -> float:
        return float((((np.roll(values, -1, axis) - values) / step) ** 2).mean())

    expected = np.sqrt((slope(error, 1, 0.5) + slope(error, 2, 0.1)) / (slope(target, 1, 0.5) + slope(target, 2, 0.1)))
    value = h1(jnp.asarray(target + error), jnp.asarray(target), (0.5, 0.1), (True, True))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
