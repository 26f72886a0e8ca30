"""Unrolling in time: where the gradient passes, and that nothing else depends on it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from ups_jax.losses.unroll import push_forward, unroll, unroll_with_last_step

# u_n+1 = a u_n, scored by (u_n+1 - y_n)^2: every gradient is known.
TARGETS = jnp.asarray([0.3, -0.2, 0.5, 0.1, 0.4], jnp.float32).reshape(5, 1, 1, 1)
START = jnp.full((1, 1, 1, 1), 2.0)
A = 0.9


def scored(a: Any, start: Any = START, **options: Any) -> Array:
    def advance(window: Array, target: Array) -> tuple[Array, Array]:
        new = a * window[:, -1]
        return new[:, None], jnp.sum((new - target) ** 2)

    return jnp.sum(unroll(advance, start, TARGETS, **options))


def hand_made_gradient(truncate: int) -> float:
    """d/da of the squares, with du/da taken to be 0 wherever the gradient is cut."""
    u, slope, total = 2.0, 0.0, 0.0
    for n, y in enumerate(np.asarray(TARGETS).ravel().astype(float)):
        if n % truncate == 0:
            slope = 0.0
        u, slope = A * u, u + A * slope
        total += 2 * (u - y) * slope
    return total


@pytest.mark.parametrize("truncate", [1, 2, 3, 5, 9])
def test_a_truncated_gradient_is_the_one_made_by_hand(truncate: int) -> None:
    gradient = jax.grad(lambda a: scored(a, segment_length=truncate))(A)
    np.testing.assert_allclose(gradient, hand_made_gradient(truncate), rtol=1e-5)


def test_a_cut_moves_no_value_and_a_long_one_no_gradient() -> None:
    assert float(scored(A, segment_length=2)) == float(scored(A))
    np.testing.assert_allclose(jax.grad(lambda a: scored(a))(A), hand_made_gradient(100), rtol=1e-5)
    assert abs(hand_made_gradient(2) - hand_made_gradient(100)) > 0.1


@pytest.mark.parametrize("truncate", [None, 2])
def test_what_is_computed_again_has_the_same_values_and_gradients(truncate: int | None) -> None:
    def value_and_grad(recompute: bool) -> Any:
        return jax.value_and_grad(lambda a: scored(a, segment_length=truncate, recompute=recompute))(A)

    np.testing.assert_allclose(value_and_grad(True), value_and_grad(False), rtol=1e-6)


@pytest.mark.parametrize("truncate", [None, 2])
@pytest.mark.parametrize("steps", [1, 5])
def test_the_last_step_alone_is_the_ending_one(truncate: int | None, steps: int) -> None:
    def values(a: Any, sign: float) -> Array:
        def advance(window: Array, target: Array) -> tuple[Array, Array]:
            new = a * window[:, -1]
            return new[:, None], jnp.sum((new - target) ** 2)

        def end(window: Array, target: Array) -> tuple[Array, Array]:
            return window, sign * advance(window, target)[1]

        return unroll_with_last_step(advance, end, START, TARGETS[:steps], segment_length=truncate)

    np.testing.assert_allclose(values(A, -1.0)[:-1], values(A, 1.0)[:-1])
    np.testing.assert_allclose(values(A, -1.0)[-1], -values(A, 1.0)[-1])
    if steps == len(TARGETS):
        np.testing.assert_allclose(values(A, 1.0).sum(), scored(A), rtol=1e-6)
        gradient = jax.grad(lambda a: values(a, 1.0).sum())(A)
        np.testing.assert_allclose(gradient, hand_made_gradient(truncate or 100), rtol=1e-5)


def test_a_pushforward_starts_from_the_model_s_own_state_and_lets_no_gradient_through() -> None:
    def pushed(a: Any, start: Any) -> Array:
        return push_forward(lambda a, window: a * window[:, -1], a, start, TARGETS[:3], jnp.zeros(1, jnp.int32))

    np.testing.assert_allclose(pushed(A, START), A**3 * START, rtol=1e-6)
    for gradient in jax.grad(lambda a, start: jnp.sum(pushed(a, start)), argnums=(0, 1))(A, START):
        assert np.abs(gradient).max() == 0
    # What is scored after it has the gradient of a start that is given.
    through = jax.grad(lambda a: scored(a, pushed(a, START)))(A)
    np.testing.assert_allclose(through, jax.grad(lambda a: scored(a, A**3 * START))(A), rtol=1e-5)


def test_a_pushforward_slides_the_window() -> None:
    window = jnp.asarray([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1)
    truth = jnp.full((2, 1, 1, 1), 7.0)
    pushed = push_forward(lambda _, frames: frames.sum(1), None, window, truth, jnp.zeros(1, jnp.int32))
    np.testing.assert_array_equal(np.ravel(pushed), [3.0, 6.0, 11.0])


def test_the_first_steps_of_a_row_are_the_true_ones_as_many_as_are_given() -> None:
    window, truth = jnp.ones((4, 1, 1, 1)), jnp.asarray([10.0, 20.0, 30.0]).reshape(3, 1, 1, 1).repeat(4, axis=1)
    pushed = push_forward(lambda _, frames: 2 * frames[:, -1], None, window, truth, jnp.arange(4))
    np.testing.assert_array_equal(np.ravel(pushed), [8.0, 40.0, 40.0, 30.0])
