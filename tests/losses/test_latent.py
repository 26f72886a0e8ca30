"""Latent regularisers at the states that they reward and at the ones that have no direction."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ups_jax import losses

latent_norm, latent_diversity = jax.jit(losses.latent_norm), jax.jit(losses.latent_diversity)


def test_tokens_of_the_wanted_length_have_no_norm_loss() -> None:
    z = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)), jnp.float32)
    unit = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
    assert latent_norm(unit) < 1e-6
    np.testing.assert_allclose(latent_norm(3 * unit), 2.0, rtol=1e-6)
    assert latent_norm(3 * unit, 3.0) < 1e-6


def test_diversity_is_zero_at_right_angles_and_one_when_all_are_parallel() -> None:
    assert latent_diversity(4 * jnp.eye(3)[None]) == 0
    parallel = jnp.asarray([1.0, -2.0, 0.5])[None, :, None] * jnp.ones((1, 3, 4))
    np.testing.assert_allclose(latent_diversity(parallel), 1.0, rtol=1e-6)
    assert latent_diversity(jnp.ones((2, 1, 4))) == 0


def test_zero_tokens_have_finite_gradients() -> None:
    for loss in (latent_norm, latent_diversity):
        assert np.all(np.isfinite(jax.grad(loss)(jnp.zeros((1, 3, 2)))))
