"""A block of the spectral core adds a bounded amount, whatever comes in."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ups_jax.config import SpectralConfig
from ups_jax.models.spectral import SpectralBlock


def test_what_a_block_adds_does_not_grow_with_what_comes_in() -> None:
    block = SpectralBlock(SpectralConfig(hidden_dim=8, modes=3, taps=3), (True,))
    x, embedding = jax.random.normal(jax.random.key(0), (2, 16, 8)), jnp.zeros((2, 4))
    params = block.init(jax.random.key(1), x, embedding)
    added = jax.jit(lambda size: block.apply(params, size * x, embedding) - size * x)
    small, large = (float(jnp.abs(added(size)).max()) for size in (1.0, 1e4))
    # Either factor alone would let it grow ten thousandfold.
    assert 0 < large < 30 * small
    weights = np.abs(params["params"]["out"]["kernel"]).sum(0).max()
    assert large <= 1.01 * 8 * 3 * weights + 1
