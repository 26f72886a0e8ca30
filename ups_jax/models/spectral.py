"""The spectral core: tokens mix globally through a fixed number of Fourier modes and locally through a convolution.

A translation is a phase, so transport is linear in the modes (Li et al. 2021, FNO); sharp fronts are the convolution's.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ups_jax.config import SpectralConfig
from ups_jax.models.conditioning import modulation
from ups_jax.models.grid import GridConv, soft_clip
from ups_jax.models.layers import Dense, layer_dtype, remat_block


class SpectralCore(nn.Module):
    """`depth` blocks of {modulation, spectral mixing and local convolution, gate}, each residual."""

    config: SpectralConfig
    periodic: tuple[bool, ...]
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b *n h"], embedding: Float[Array, "b e"]) -> Float[Array, "b *n h"]:
        block = remat_block(SpectralBlock) if self.remat else SpectralBlock
        for _ in range(self.config.depth):
            x = block(self.config, self.periodic, self.dtype)(x, embedding)
        return x


class SpectralBlock(nn.Module):
    """h <- h + g * W((A y + spectral(y)) * bounded(local(y))) with y the modulated h and g the conditioned gate.

    The product of two linear maps is the nonlinearity: most transport terms are quadratic, and a gate fits them with
    fewer layers than an activation does. Both factors are bounded, or a rollout that leaves the data could grow as a
    polynomial of degree 2^depth.
    """

    config: SpectralConfig
    periodic: tuple[bool, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *n h"], embedding: Float[Array, "b e"]) -> Float[Array, "b *n h"]:
        width = x.shape[-1]
        y, gate = modulation(x, embedding, dtype=self.dtype)
        value = Dense(width, dtype=self.dtype, name="value")(y)
        value = value + SpectralMixing(self.config.modes, self.dtype, name="spectral")(y)
        factor = GridConv(width, self.config.taps, self.periodic, dtype=self.dtype, name="local")(y)
        return x + gate * Dense(width, dtype=self.dtype, name="out")(soft_clip(value, 8.0) * soft_clip(factor, 3.0))


class SpectralMixing(nn.Module):
    """y_k = W_k x_k for the lowest `modes` Fourier modes of each axis, in float32; higher modes are left to others.

    The weights belong to wavenumbers, so the same parameters act on a grid of any size. The truncated transforms are
    products with real matrices and the modes one batched product of rows (re, im) with [Re W | Im W]: with few tokens
    and modes that is faster than FFT and complex products. Tokens come first and channels last throughout, so that no
    transform has to turn its operand round.
    """

    modes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *n h"]) -> Float[Array, "b *n h"]:
        batch, *sizes, width = x.shape
        sizes = [sizes[-1], *sizes[:-1]]
        waves = [_wavenumbers(size, self.modes, half=axis == 0) for axis, size in enumerate(sizes)]
        weights = self.param("spectrum", _spectral_init, (*_spectrum_shape(self.modes, len(sizes)), width, 2 * width))
        first = _fourier(sizes[0], waves[0])
        others = [_complex_rows(_fourier(size, numbers)) for size, numbers in zip(sizes[1:], waves[1:], strict=True)]

        y = jnp.moveaxis(x.astype(layer_dtype(jnp.float32, x)), (-2, 0), (0, -2)).reshape(sizes[0], -1)
        y = _transform("kn,nr->kr", _real_rows(first), y)
        done = len(waves[0])
        for size, matrix in zip(sizes[1:], others, strict=True):
            y = _transform("kn,mnr->mkr", matrix, y.reshape(done, 2 * size, -1))
            done *= len(matrix) // 2
        present = weights[_present(waves, self.modes)].reshape(done, width, 2 * width)
        product = (y.reshape(done, 2 * batch, width) @ present).reshape(done, 2, batch, 2, width)
        real = product[:, 0, :, 0] - product[:, 1, :, 1]
        imag = product[:, 0, :, 1] + product[:, 1, :, 0]
        y = jnp.stack([real, imag], axis=1)
        for matrix in reversed(others):
            done //= len(matrix) // 2
            y = _transform("kn,mkr->mnr", matrix, y.reshape(done, len(matrix), -1))
        # A real field: each positive wavenumber of the halved axis stands for its conjugate as well.
        once = (waves[0] == 0) | (2 * waves[0] == sizes[0])
        y = _transform("nk,kr->nr", _real_rows(first * np.where(once, 1.0, 2.0)[:, None]).T, y.reshape(2 * done, -1))
        return jnp.moveaxis(y.reshape(*sizes, batch, width), (0, -2), (-2, 0)).astype(layer_dtype(self.dtype, y))


def _transform(axes: str, matrix: np.ndarray, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The product with a matrix of Fourier's, in float32 wherever the device would take fewer bits of its factors: a
    GPU's TF32 keeps ten, and with them a smooth field's high modes would be those of the round-off."""
    return jnp.einsum(axes, jnp.asarray(matrix, x.dtype), x, precision=jax.lax.Precision.HIGHEST)


def _fourier(points: int, wavenumbers: np.ndarray) -> np.ndarray:
    """Rows of the unitary discrete Fourier transform."""
    return np.exp(-2j * np.pi * np.outer(wavenumbers, np.arange(points)) / points) / np.sqrt(points)


def _real_rows(matrix: np.ndarray) -> np.ndarray:
    """The matrix for a real operand: real and imaginary part of each row in turn."""
    return np.stack([matrix.real, matrix.imag], axis=1).reshape(-1, matrix.shape[1])


def _complex_rows(matrix: np.ndarray) -> np.ndarray:
    """The matrix for an operand of n real parts above n imaginary ones; (re, im) of each row in turn."""
    real = np.concatenate([matrix.real, -matrix.imag], axis=1)
    imag = np.concatenate([matrix.imag, matrix.real], axis=1)
    return np.stack([real, imag], axis=1).reshape(2 * len(matrix), -1)


def _wavenumbers(points: int, modes: int, *, half: bool) -> np.ndarray:
    """The signed wavenumbers below `modes` that a grid of `points` carries; only the non-negative of a halved axis."""
    highest = min(modes - 1, points // 2)
    lowest = 0 if half else -min(modes - 1, (points - 1) // 2)
    return np.arange(lowest, highest + 1)


def _spectrum_shape(modes: int, dimensions: int) -> tuple[int, ...]:
    """All wavenumbers: the non-negative of the last space axis, then the signed of the others."""
    return (modes, *(2 * modes - 1,) * (dimensions - 1))


def _present(waves: list[np.ndarray], modes: int) -> tuple[slice, ...]:
    """Where the matrices of the present wavenumbers lie among all of them."""
    starts = [int(numbers[0]) + (0 if axis == 0 else modes - 1) for axis, numbers in enumerate(waves)]
    return tuple(slice(start, start + len(numbers)) for start, numbers in zip(starts, waves, strict=True))


def _spectral_init(key: Array, shape: tuple[int, ...]) -> Float[Array, "*m h o"]:
    return nn.initializers.normal(stddev=(2 * shape[-2]) ** -0.5)(key, shape, jnp.float32)
