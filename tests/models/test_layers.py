"""The dense layer on the tokens of a grid: flax's own, in values, gradients and parameters."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ups_jax.models.layers import Dense


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dense_is_the_layer_of_flax(dtype: jnp.dtype) -> None:
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    dense, flax = Dense(6, dtype=dtype), nn.Dense(6, dtype=dtype)
    params = dense.init(jax.random.key(1), x)
    theirs = flax.init(jax.random.key(1), x)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, theirs)
    np.testing.assert_array_equal(params["params"]["kernel"], theirs["params"]["kernel"])
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    tolerance = 1e-6 if dtype == jnp.float32 else 1e-2

    def total(layer: nn.Module, values: dict[str, jax.Array]) -> jax.Array:
        result = layer.apply(values, x)
        assert result.dtype == dtype
        return jnp.sum(jnp.sin(result.astype(jnp.float32)))

    np.testing.assert_allclose(dense.apply(params, x), flax.apply(params, x), rtol=tolerance, atol=tolerance)
    ours, expected = (jax.grad(lambda values, layer=layer: total(layer, values))(params) for layer in (dense, flax))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=20 * tolerance, atol=20 * tolerance), ours, expected
    )
