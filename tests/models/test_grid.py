"""Grid pieces against plain numpy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from ups_jax.models.grid import GridConv, interpolate, interpolate_to_grid, stack_neighbours
from ups_jax.models.spectral import SpectralMixing


def test_neighbours_wrap_on_periodic_axes_and_repeat_the_edge_elsewhere() -> None:
    x = jnp.arange(4.0)[None, :, None]
    np.testing.assert_array_equal(stack_neighbours(x, 3, [True])[0], [[3, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 0]])
    np.testing.assert_array_equal(stack_neighbours(x, 3, [False])[0], [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 3]])


@pytest.mark.parametrize("points", [12, 11, 5])
def test_spectral_mixing_is_a_product_of_each_mode_with_its_matrix(points: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, points, 3)).astype(np.float32)
    weights = rng.normal(size=(4, 3, 6)).astype(np.float32)
    mixed = SpectralMixing(modes=4).apply({"params": {"spectrum": weights}}, jnp.asarray(x))
    spectrum = np.fft.rfft(x, axis=1)
    expected = np.zeros_like(spectrum)
    for mode in range(min(4, points // 2 + 1)):
        expected[:, mode] = spectrum[:, mode] @ (weights[mode, :, :3] + 1j * weights[mode, :, 3:])
    np.testing.assert_allclose(mixed, np.fft.irfft(expected, points, axis=1), atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 10), (7, 4)])
def test_spectral_mixing_in_two_dimensions_has_one_matrix_a_signed_wavenumber(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *shape, 3)).astype(np.float32)
    weights = rng.normal(size=(3, 5, 3, 6)).astype(np.float32)
    mixed = SpectralMixing(modes=3).apply({"params": {"spectrum": weights}}, jnp.asarray(x))
    spectrum = np.fft.rfft2(x, axes=(1, 2))
    expected = np.zeros_like(spectrum)
    for first in range(-2, 3):
        for second in range(3):
            matrix = weights[second, first + 2]
            expected[:, first, second] = spectrum[:, first, second] @ (matrix[:, :3] + 1j * matrix[:, 3:])
    np.testing.assert_allclose(mixed, np.fft.irfft2(expected, shape, axes=(1, 2)), atol=1e-5)


GRID = {"origin": (-1.0, 0.5), "spacing": (0.25, 0.2), "periodic": (True, False)}


def test_interpolation_along_lines_is_interpolation_at_every_point_of_their_grid() -> None:
    field = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 7, 3)), jnp.float32)
    lines = [np.linspace(-1.2, 1.1, 9), np.linspace(0.4, 1.8, 5)]
    points = np.stack(np.meshgrid(*lines, indexing="ij"), -1).reshape(1, -1, 2).repeat(2, 0)
    dense = interpolate(field, jnp.asarray(points, jnp.float32), **GRID)
    np.testing.assert_allclose(interpolate_to_grid(field, lines, **GRID), dense.reshape(2, 9, 5, 3), atol=2e-5)


def test_a_value_at_a_point_of_the_grid_is_handed_over_to_the_bit() -> None:
    field = np.random.default_rng(0).normal(size=(2, 8, 7, 1)).astype(np.float32)
    lines = [-1 + 0.125 * np.arange(16), 0.5 + 0.1 * np.arange(13)]
    np.testing.assert_array_equal(interpolate_to_grid(jnp.asarray(field), lines, **GRID)[:, ::2, ::2], field)


@pytest.mark.parametrize("shape", [(64,), (128, 96)])
def test_a_band_limited_field_is_the_same_on_twice_the_points(shape: tuple[int, ...]) -> None:
    def field(factor: int) -> np.ndarray:
        x = np.meshgrid(*[2 * np.pi * np.arange(factor * n) / (factor * n) for n in shape], indexing="ij")
        return np.sin(9 * x[0] + 1)[None, ..., None] + np.cos(sum(x) * 4)[None, ..., None]

    lines = [np.arange(2 * n) / (2 * n) for n in shape]
    axes = len(shape)
    fine = interpolate_to_grid(
        jnp.asarray(field(1), jnp.float32), lines, (0.0,) * axes, tuple(1 / n for n in shape), (True,) * axes
    )
    np.testing.assert_allclose(fine, field(2), atol=3e-6)


@pytest.mark.parametrize("features", [2, 40], ids=["after", "before"])
@pytest.mark.parametrize("periodic", [(True,), (False,), (True, False)])
def test_a_convolution_is_the_product_over_the_neighbours_either_way(features: int, periodic: tuple[bool, ...]) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, *(7, 6)[: len(periodic)], 20)).astype(np.float32)
    taps = 3 ** len(periodic)
    kernel = rng.standard_normal((taps * 20, features)).astype(np.float32)
    bias = rng.standard_normal(features).astype(np.float32)
    params = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
    result = GridConv(features, 3, periodic).apply({"params": params}, jnp.asarray(x))
    padded = x
    for axis, wraps in enumerate(periodic, start=1):
        width = [(0, 0)] * x.ndim
        width[axis] = (1, 1)
        padded = np.pad(padded, width, mode="wrap" if wraps else "edge")
    expected = np.zeros((*x.shape[:-1], features)) + bias
    for tap, shift in enumerate(np.ndindex(*(3,) * len(periodic))):
        window = tuple(slice(start, start + size) for start, size in zip(shift, x.shape[1:-1], strict=True))
        expected += padded[(slice(None), *window)] @ kernel[tap * 20 : (tap + 1) * 20].astype(np.float64)
    np.testing.assert_allclose(result, expected, atol=1e-4)
