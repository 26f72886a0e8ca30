"""The benchmark's own FNO computes what the package's does, with the same weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import package_fno
import pytest
from comparison.fno import FNO, FourierMixing

from ups_jax.models.spectral import SpectralMixing


@pytest.mark.parametrize("name", package_fno.SHAPES)
def test_the_fno_equals_the_package_with_its_recorded_weights(name: str) -> None:
    _assert_equal(name, *package_fno.recorded(name))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", package_fno.SHAPES)
def test_the_fno_equals_the_installed_package_with_its_weights(name: str) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("neuralop.models")
    _assert_equal(name, *package_fno.computed(name))


def test_both_ways_to_mix_modes_are_the_same_map() -> None:
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 30, 4)), jnp.float32)
    weights = {"spectrum": jnp.asarray(np.random.default_rng(2).standard_normal((7, 4, 8)), jnp.float32)}
    by_fft = FourierMixing(7).apply({"params": weights}, x)
    np.testing.assert_allclose(by_fft, SpectralMixing(7).apply({"params": weights}, x), atol=1e-5)


def _assert_equal(name: str, params: dict[str, Any], expected: np.ndarray) -> None:
    ours = FNO(
        channels=package_fno.CHANNELS,
        width=package_fno.WIDTH,
        modes=package_fno.MODES,
        periodic=(True,) * len(package_fno.SHAPES[name]),
    )
    result = ours.apply({"params": jax.tree.map(jnp.asarray, params)}, jnp.asarray(package_fno.given(name)))
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(result, expected, atol=2e-5 * np.abs(expected).max())
