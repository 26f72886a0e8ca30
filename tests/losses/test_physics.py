"""Physics priors where they should be zero, where they should not, and what they must not do."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ups_jax import losses

# Compiled whole: operation by operation most of the time would go into compiling each.
divergence = jax.jit(losses.divergence, static_argnames=("spacing", "periodic"))
smoothness = jax.jit(losses.smoothness, static_argnames=("spacing", "periodic"))
conservation = jax.jit(losses.conservation, static_argnames="reduction")
positivity = jax.jit(losses.positivity)


def plane(shape: tuple[int, int], lengths: tuple[float, float]) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """Coordinates of a periodic grid and its spacing."""
    spacing = (lengths[0] / shape[0], lengths[1] / shape[1])
    x, y = np.meshgrid(*(np.arange(n) * step for n, step in zip(shape, spacing, strict=True)), indexing="ij")
    return x, y, spacing


def field(*channels: np.ndarray) -> jax.Array:
    return jnp.asarray(np.stack(channels, -1)[None], jnp.float32)


@pytest.mark.parametrize("shape", [(32, 20), (15, 32)])
def test_a_periodic_flow_of_a_stream_function_has_no_divergence(shape: tuple[int, int]) -> None:
    x, y, spacing = plane(shape, (2 * np.pi, 3.0))
    k = 2 * np.pi / 3.0
    # psi = sin(2 x) cos(3 k y) + cos(x + k y), u = d psi / dy, v = -d psi / dx.
    u = -3 * k * np.sin(2 * x) * np.sin(3 * k * y) - k * np.sin(x + k * y)
    v = -2 * np.cos(2 * x) * np.cos(3 * k * y) + np.sin(x + k * y)
    assert divergence(field(u, v), spacing, (True, True)) < 1e-5
    # With the spacings the wrong way round it is another flow.
    assert divergence(field(u, v), spacing[::-1], (True, True)) > 0.1
    np.testing.assert_allclose(
        divergence(field(u + np.sin(x), v), spacing, (True, True)), np.abs(np.cos(x)).mean(), rtol=1e-4
    )


def test_divergence_between_walls_counts_no_point_on_them() -> None:
    x, y = np.meshgrid(np.linspace(-1, 1, 32), np.linspace(-1, 1, 20), indexing="ij")
    spacing = (2 / 31, 2 / 19)
    assert divergence(field(-y, x), spacing, (False, False)) < 1e-5
    # Zeros on the walls would pull the mean down to 1.7.
    np.testing.assert_allclose(divergence(field(x, y), spacing, (False, False)), 2.0, rtol=1e-4)


def test_divergence_in_one_and_three_dimensions() -> None:
    x = np.arange(16) * 2 * np.pi / 16
    line = jnp.asarray(np.sin(x)[None, :, None], jnp.float32)
    np.testing.assert_allclose(divergence(line, (2 * np.pi / 16,), (True,)), np.abs(np.cos(x)).mean(), rtol=1e-5)
    a, b, c = np.meshgrid(x, x, x, indexing="ij")
    beltrami = [np.sin(c) + np.cos(b), np.sin(a) + np.cos(c), np.sin(b) + np.cos(a)]
    assert divergence(field(*beltrami), (2 * np.pi / 16,) * 3, (True,) * 3) < 1e-5
    with pytest.raises(ValueError, match=r"1.*channels.*2"):
        divergence(jnp.zeros((1, 8, 2)), (0.1,), (True,))
    with pytest.raises(ValueError, match="points"):
        divergence(jnp.zeros((1, 2, 1)), (0.1,), (False,))


def test_an_advected_field_is_conserved_and_a_larger_one_is_not() -> None:
    x = np.arange(32) * 2 * np.pi / 32
    start = jnp.asarray((1.3 + np.sin(x) + 0.3 * np.cos(3 * x))[None, :, None], jnp.float32)
    assert conservation(jnp.roll(start, 5, 1), start) < 1e-6
    between = jnp.asarray((1.3 + np.sin(x - 0.4) + 0.3 * np.cos(3 * x - 1.2))[None, :, None], jnp.float32)
    assert conservation(between, start) < 1e-6
    ones = jnp.ones((2, 8, 8, 1))
    np.testing.assert_allclose(conservation(1.5 * ones, ones), 0.5, rtol=1e-5)


def test_conservation_of_a_field_about_zero_does_not_explode() -> None:
    x = np.arange(32) * 2 * np.pi / 32
    wave = jnp.asarray(np.sin(x)[None, :, None], jnp.float32)
    # The change of its mean, 0.01, over its root mean square.
    np.testing.assert_allclose(conservation(wave + 0.01, wave), 0.01 * np.sqrt(2), rtol=1e-4)
    assert np.isfinite(conservation(wave, 1e-10 * wave))
    assert np.isfinite(conservation(wave, 0 * wave))
    gradient = jax.grad(lambda start: conservation(wave, start))(0 * wave)
    assert np.all(np.isfinite(gradient))


def test_each_sample_is_held_against_its_own_start() -> None:
    start = jnp.asarray([1.0, 5.0])[:, None, None] * jnp.ones((2, 8, 1))
    np.testing.assert_array_equal(conservation(start, start, reduction="none"), 0)
    np.testing.assert_allclose(conservation(start[::-1], start, reduction="none"), [4, 0.8], rtol=1e-5)


def test_positivity_is_of_what_is_negative_alone() -> None:
    np.testing.assert_array_equal(positivity(jnp.asarray([0.0, 1.0, 2.0])[None, :, None]), 0)
    values = jnp.asarray([1.0, -0.5, 2.0, -1.0])[None, :, None]
    np.testing.assert_allclose(positivity(values), 0.375)
    np.testing.assert_allclose(jax.grad(positivity)(values)[0, :, 0], [0, -0.25, 0, -0.25])


def test_smoothness_is_the_total_variation_whatever_the_batch() -> None:
    flat = jnp.full((2, 6, 6, 3), 4.0)
    value, gradient = jax.value_and_grad(lambda x: smoothness(x, (0.5, 0.5), (False, False)))(flat)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)
    board = jnp.asarray(np.indices((6, 6)).sum(0) % 2.0)[None, :, :, None]
    for batch in (1, 4):
        many = jnp.tile(board, (batch, 1, 1, 2))
        np.testing.assert_allclose(smoothness(many, (0.5, 0.25), (True, False)), 1 / 0.5 + 1 / 0.25, rtol=1e-6)
