"""The spectral core: tokens mix globally through a fixed number of Fourier modes and locally through a convolution.

A translation is a phase, so transport is linear in the modes (Li et al. 2021, FNO); sharp fronts are the convolution's.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ups_jax.config import SpectralConfig
from ups_jax.models.conditioning import modulation
from ups_jax.models.grid import GridConv, bounded


class SpectralCore(nn.Module):
    """`depth` blocks of {modulation, spectral mixing and local convolution, gate}, each residual."""

    config: SpectralConfig
    periodic: tuple[bool, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *n h"], embedding: Float[Array, "b e"]) -> Float[Array, "b *n h"]:
        for _ in range(self.config.depth):
            x = SpectralBlock(self.config, self.periodic, self.dtype)(x, embedding)
        return x


class SpectralBlock(nn.Module):
    """h <- h + g * W((A y + spectral(y)) * bounded(local(y))) with y the modulated h and g the conditioned gate.

    The product of two linear maps is the nonlinearity: most transport terms are quadratic, and a gate fits them with
    fewer layers than an activation does. One factor is bounded, or a rollout that leaves the data could grow as a
    polynomial of degree 2^depth.
    """

    config: SpectralConfig
    periodic: tuple[bool, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *n h"], embedding: Float[Array, "b e"]) -> Float[Array, "b *n h"]:
        width = x.shape[-1]
        y, gate = modulation(x, embedding, dtype=self.dtype)
        value = nn.Dense(width, dtype=self.dtype, name="value")(y)
        value = value + SpectralMixing(self.config.modes, self.dtype, name="spectral")(y)
        factor = GridConv(width, self.config.taps, self.periodic, dtype=self.dtype, name="local")(y)
        return x + gate * nn.Dense(width, dtype=self.dtype, name="out")(value * bounded(factor, 3.0))


class SpectralMixing(nn.Module):
    """y_k = W_k x_k for the lowest `modes` Fourier modes of each axis, in float32; higher modes are left to others.

    The weights belong to wavenumbers, so the same parameters act on a grid of any size. The truncated transforms are
    products with real matrices and the modes one batched product of [re; im] with [Re W | Im W]: with few tokens and
    modes that is faster than FFT and complex products, and costs modes x tokens.
    """

    modes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *n h"]) -> Float[Array, "b *n h"]:
        batch, *sizes, width = x.shape
        last = len(sizes) - 1
        weights = self.param("spectrum", _spectral_init, (_mode_count(self.modes, len(sizes)), width, 2 * width))
        waves = [_wavenumbers(size, self.modes, half=axis == last) for axis, size in enumerate(sizes)]
        analysis = [_fourier(size, numbers) for size, numbers in zip(sizes, waves, strict=True)]
        x = x.astype(jnp.float32)
        real = _along(analysis[last].real, x, last)
        imag = _along(analysis[last].imag, x, last)
        for axis in range(last):
            matrix = analysis[axis]
            real, imag = (
                _along(matrix.real, real, axis) - _along(matrix.imag, imag, axis),
                _along(matrix.real, imag, axis) + _along(matrix.imag, real, axis),
            )
        modes = real.shape[1:-1]
        both = jnp.concatenate([_mode_first(real), _mode_first(imag)], axis=1)
        product = both @ weights[_rows(waves, self.modes)]
        from_real, from_imag = product[:, :batch], product[:, batch:]
        real = _mode_last(from_real[..., :width] - from_imag[..., width:], modes)
        imag = _mode_last(from_real[..., width:] + from_imag[..., :width], modes)
        for axis in range(last):
            matrix = analysis[axis].conj().T
            real, imag = (
                _along(matrix.real, real, axis) - _along(matrix.imag, imag, axis),
                _along(matrix.real, imag, axis) + _along(matrix.imag, real, axis),
            )
        # A real field: each positive wavenumber of the last axis stands for its conjugate as well.
        once = (waves[last] == 0) | (2 * waves[last] == sizes[last])
        matrix = (analysis[last] * np.where(once, 1.0, 2.0)[:, None]).T
        field = _along(matrix.real, real, last) + _along(matrix.imag, imag, last)
        return field.astype(self.dtype)


def _along(matrix: np.ndarray, x: Float[Array, "b *n h"], axis: int) -> Float[Array, "b *m h"]:
    """The matrix applied to one grid axis."""
    moved = jnp.tensordot(jnp.asarray(matrix, jnp.float32), x, ((1,), (axis + 1,)))
    return jnp.moveaxis(moved, 0, axis + 1)


def _mode_first(x: Float[Array, "b *k h"]) -> Float[Array, "m b h"]:
    return jnp.moveaxis(x.reshape(x.shape[0], -1, x.shape[-1]), 1, 0)


def _mode_last(x: Float[Array, "m b h"], modes: tuple[int, ...]) -> Float[Array, "b *k h"]:
    return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], *modes, x.shape[-1])


def _fourier(points: int, wavenumbers: np.ndarray) -> np.ndarray:
    """Rows of the unitary discrete Fourier transform."""
    return np.exp(-2j * np.pi * np.outer(wavenumbers, np.arange(points)) / points) / np.sqrt(points)


def _wavenumbers(points: int, modes: int, *, half: bool) -> np.ndarray:
    """The signed wavenumbers below `modes` that a grid of `points` carries; only the non-negative of the last axis."""
    highest = min(modes - 1, points // 2)
    lowest = 0 if half else -min(modes - 1, (points - 1) // 2)
    return np.arange(lowest, highest + 1)


def _mode_count(modes: int, dimensions: int) -> int:
    return (2 * modes - 1) ** (dimensions - 1) * modes


def _rows(waves: list[np.ndarray], modes: int) -> np.ndarray:
    """Where the matrices of the present wavenumbers lie among all of them."""
    *others, last = waves
    rows = last
    for distance, numbers in enumerate(reversed(others)):
        stride = modes * (2 * modes - 1) ** distance
        rows = ((numbers + modes - 1) * stride)[:, None] + rows.ravel()
    return rows.ravel()


def _spectral_init(key: Array, shape: tuple[int, ...]) -> Float[Array, "m h o"]:
    return nn.initializers.normal(stddev=(2 * shape[1]) ** -0.5)(key, shape, jnp.float32)
