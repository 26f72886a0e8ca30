"""The operations that a step's share of the ceiling is counted from."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from speed.counts import least_bytes, product_operations

X, Y = jnp.ones((3, 5)), jnp.ones((5, 7))
PRODUCT = 2 * 3 * 5 * 7


def test_a_product_is_counted_with_every_pass_of_a_scan() -> None:
    def repeated(x: jax.Array, y: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda total, _: (total + x @ y, None), jnp.zeros((3, 7)), length=4)[0]

    assert product_operations(lambda x, y: x @ y, X, Y) == PRODUCT
    assert product_operations(jax.jit(repeated), X, Y) == 4 * PRODUCT


def test_a_gradient_is_three_times_its_loss() -> None:
    def loss(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(x @ y))

    assert product_operations(jax.grad(loss, argnums=(0, 1)), X, Y) == 3 * PRODUCT


def test_a_convolution_is_its_taps_at_every_point() -> None:
    fields, kernel = jnp.ones((2, 8, 3)), jnp.ones((5, 3, 4))

    def convolved(x: jax.Array, k: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, k, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))

    assert product_operations(convolved, fields, kernel) == 2 * (2 * 8 * 4) * (5 * 3)


def test_of_a_choice_the_cheapest_branch_counts() -> None:
    def either(x: jax.Array, y: jax.Array) -> jax.Array:
        return jax.lax.cond(x.sum() > 0, lambda: x @ y, lambda: (x @ y) @ (y.T @ y))

    assert product_operations(either, X, Y) == PRODUCT


def test_bytes_are_those_of_the_state_and_the_batch() -> None:
    assert least_bytes({"w": Y}, {"x": X}) == 24 * Y.size + 4 * X.size
