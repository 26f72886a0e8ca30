"""Spectral losses: what they see of a wave, and what they do not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ups_jax import losses

spectral_energy = jax.jit(losses.spectral_energy, static_argnums=2)
spectral_band = jax.jit(losses.spectral_band, static_argnums=(2, 3))

X = np.arange(32) * 2 * np.pi / 32


def wave(k: int, amplitude: float = 1.0, phase: float = 0.0) -> np.ndarray:
    return amplitude * np.sin(k * X + phase)


def fields(values: np.ndarray) -> jnp.ndarray:
    return jnp.asarray(values[None, :, None], jnp.float32)


def test_the_energy_sees_amplitudes_and_no_phases() -> None:
    assert spectral_energy(fields(wave(3, phase=1.0)), fields(wave(3)), 1) < 1e-5
    np.testing.assert_allclose(spectral_energy(fields(wave(3, 1.2)), fields(wave(3)), 1), 0.44, rtol=1e-4)
    with pytest.raises(ValueError, match="axis 0"):
        spectral_energy(fields(wave(3)), fields(wave(3)), 0)


def test_a_band_is_the_relative_error_of_its_wavenumbers_alone() -> None:
    target = fields(wave(2) + wave(8, 1e-2))
    pred = fields(wave(2, 1.1) + wave(8, 2e-2) + wave(14, 0.5))
    np.testing.assert_allclose(spectral_band(pred, target, 0, 4), 0.1, rtol=1e-4)
    # A hundredth of the amplitude, and as large a loss as it is wrong; eps is 1e-8 beside an energy of 5e-5.
    np.testing.assert_allclose(spectral_band(pred, target, 5, 12), 1.0, rtol=1e-3)
    open_ended, closed = spectral_band(pred, target, 13), spectral_band(pred, target, 13, 16)
    np.testing.assert_array_equal(open_ended, closed)
    np.testing.assert_allclose(open_ended, 0.5 / np.sqrt(2) / 1e-4, rtol=1e-3)
    with pytest.raises(ValueError, match="16"):
        spectral_band(pred, target, 17)
