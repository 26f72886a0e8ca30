"""The inverse losses' directions, and the curriculum of their weight."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ups_jax.losses import inverse_decoding, inverse_encoding, inverse_weight


def test_a_codec_that_inverts_itself_has_no_inverse_loss() -> None:
    u = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 3)), jnp.float32)

    def encode(u: jax.Array) -> jax.Array:
        return 2 * u + 1

    def decode(z: jax.Array) -> jax.Array:
        return (z - 1) / 2

    assert inverse_encoding(decode, encode(u), u) < 1e-10
    assert inverse_decoding(encode, decode, encode(u)) < 1e-10
    np.testing.assert_allclose(inverse_encoding(lambda z: decode(z) + 0.5, encode(u), u), 0.25, rtol=1e-5)


def test_re_encoding_moves_the_codec_towards_its_tokens_and_not_the_tokens() -> None:
    u = jnp.ones((1, 4, 2))

    def loss(scale: jax.Array, stretch: jax.Array) -> jax.Array:
        return inverse_decoding(lambda u: scale * u, lambda z: 0.5 * z, stretch * u)

    # (0.5 scale - 1)^2 stretch^2; held fixed, the tokens' own scale acts through what is encoded again alone.
    by_scale, by_stretch = jax.grad(loss, (0, 1))(jnp.asarray(1.0), jnp.asarray(3.0))
    np.testing.assert_allclose(by_scale, 2 * (0.5 - 1) * 0.5 * 9)
    np.testing.assert_allclose(by_stretch, 2 * (0.5 * 3 - 3) * 0.5)


@pytest.mark.parametrize(
    ("epoch", "weight"),
    [(0, 0), (14, 0), (15, 0), (16.5, 0.001), (22.5, 0.005), (29, 0.14 / 15), (30, 0.01), (31, 0.01), (500, 0.01)],
)
def test_the_weight_is_off_then_rises_then_stays(epoch: float, weight: float) -> None:
    np.testing.assert_allclose(inverse_weight(epoch, 0.01), weight, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(jax.jit(lambda e: inverse_weight(e, 0.01))(epoch), weight, rtol=1e-5, atol=1e-9)


def test_the_weight_is_bounded_and_has_no_warm_up_of_no_epochs() -> None:
    np.testing.assert_allclose(inverse_weight(6.0, 1.0, 4, 0.2), 0.2)
    np.testing.assert_allclose(inverse_weight(4.4, 1.0, 4, 0.2), 0.1, rtol=1e-5)
    np.testing.assert_allclose(inverse_weight(0.0, 0.01, 0), 0.01)
    np.testing.assert_allclose(inverse_weight(0.0, 1.0, 0), 0.05)
