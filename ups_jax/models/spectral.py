"""The spectral architecture: tokens mix globally through a fixed number of Fourier modes and locally by convolution.

A translation multiplies the modes by a phase, so transport is linear in them (Li et al. 2021, FNO). The convolution
represents sharp fronts.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ups_jax.config import SpectralConfig
from ups_jax.models.conditioning import modulate_and_gate
from ups_jax.models.grid import GridConv, soft_clip
from ups_jax.models.layers import Dense, layer_dtype, remat_block


class SpectralCore(nn.Module):
    """Stack of `depth` spectral blocks."""

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
    """Residual block h + g * W(clip(A y + spectral(y)) * clip(local(y))), with modulated input y and gate g.

    The product of two linear maps is the nonlinearity. Most transport terms are quadratic, and a product represents
    them with fewer layers than an activation function. Both factors are clipped softly; otherwise a rollout far from
    the training data could grow as a polynomial of degree 2^depth.
    """

    config: SpectralConfig
    periodic: tuple[bool, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *n h"], embedding: Float[Array, "b e"]) -> Float[Array, "b *n h"]:
        width = x.shape[-1]
        y, gate = modulate_and_gate(x, embedding, dtype=self.dtype)
        value = Dense(width, dtype=self.dtype, name="value")(y)
        value = value + SpectralMixing(self.config.modes, self.dtype, name="spectral")(y)
        factor = GridConv(width, self.config.taps, self.periodic, dtype=self.dtype, name="local")(y)
        return x + gate * Dense(width, dtype=self.dtype, name="out")(soft_clip(value, 8.0) * soft_clip(factor, 3.0))


class SpectralMixing(nn.Module):
    """Linear map y_k = W_k x_k of the lowest `modes` Fourier modes of each axis, in float32; higher modes become zero.

    Each wavenumber has its own weights, so the same parameters apply to a grid of any size. The truncated Fourier
    transforms and the map are products with real matrices, in which real and imaginary parts are separate rows and W_k
    is [Re W_k | Im W_k]. For few tokens and modes this is faster than FFT and complex products. Tokens are the first
    axis and channels the last one throughout, so that no transform needs a transpose.
    """

    modes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *n h"]) -> Float[Array, "b *n h"]:
        batch, *sizes, width = x.shape
        sizes = [sizes[-1], *sizes[:-1]]
        waves = [_wavenumbers(size, self.modes, non_negative=axis == 0) for axis, size in enumerate(sizes)]
        weights = self.param("spectrum", _spectral_init, (*_spectrum_shape(self.modes, len(sizes)), width, 2 * width))
        first = _fourier_rows(sizes[0], waves[0])
        later = [
            _matrix_for_complex_vectors(_fourier_rows(size, numbers))
            for size, numbers in zip(sizes[1:], waves[1:], strict=True)
        ]

        y = jnp.moveaxis(x.astype(layer_dtype(jnp.float32, x)), (-2, 0), (0, -2)).reshape(sizes[0], -1)
        y = _multiply("kn,nr->kr", _matrix_for_real_vectors(first), y)
        num_modes = len(waves[0])
        for size, matrix in zip(sizes[1:], later, strict=True):
            y = _multiply("kn,mnr->mkr", matrix, y.reshape(num_modes, 2 * size, -1))
            num_modes *= len(matrix) // 2
        used_weights = weights[_resolved_slices(waves, self.modes)].reshape(num_modes, width, 2 * width)
        product = (y.reshape(num_modes, 2 * batch, width) @ used_weights).reshape(num_modes, 2, batch, 2, width)
        real = product[:, 0, :, 0] - product[:, 1, :, 1]
        imag = product[:, 0, :, 1] + product[:, 1, :, 0]
        y = jnp.stack([real, imag], axis=1)
        for matrix in reversed(later):
            num_modes //= len(matrix) // 2
            y = _multiply("kn,mkr->mnr", matrix, y.reshape(num_modes, len(matrix), -1))
        # The field is real: on the halved axis each positive wavenumber also represents its complex conjugate.
        is_single = (waves[0] == 0) | (2 * waves[0] == sizes[0])
        inverse = _matrix_for_real_vectors(first * np.where(is_single, 1.0, 2.0)[:, None]).T
        y = _multiply("nk,kr->nr", inverse, y.reshape(2 * num_modes, -1))
        return jnp.moveaxis(y.reshape(*sizes, batch, width), (0, -2), (-2, 0)).astype(layer_dtype(self.dtype, y))


def _multiply(equation: str, matrix: np.ndarray, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the einsum `equation` of a Fourier matrix and `x`, in full float32 on every device.

    TF32 on a GPU keeps ten mantissa bits; the high modes of a smooth field would then be round-off.
    """
    return jnp.einsum(equation, jnp.asarray(matrix, x.dtype), x, precision=jax.lax.Precision.HIGHEST)


def _fourier_rows(points: int, wavenumbers: np.ndarray) -> np.ndarray:
    """Return the rows of the unitary discrete Fourier transform for the given wavenumbers, as a complex matrix."""
    return np.exp(-2j * np.pi * np.outer(wavenumbers, np.arange(points)) / points) / np.sqrt(points)


def _matrix_for_real_vectors(matrix: np.ndarray) -> np.ndarray:
    """Return the real matrix that multiplies real vectors by a complex `matrix`.

    Each row of `matrix` becomes two rows of the result: the real part of its product, then the imaginary part.
    """
    return np.stack([matrix.real, matrix.imag], axis=1).reshape(-1, matrix.shape[1])


def _matrix_for_complex_vectors(matrix: np.ndarray) -> np.ndarray:
    """Return the real matrix that multiplies complex vectors (real above imaginary parts) by a complex `matrix`.

    Each row of `matrix` becomes two rows of the result: the real part of its product, then the imaginary part.
    """
    real = np.concatenate([matrix.real, -matrix.imag], axis=1)
    imag = np.concatenate([matrix.imag, matrix.real], axis=1)
    return np.stack([real, imag], axis=1).reshape(2 * len(matrix), -1)


def _wavenumbers(points: int, modes: int, *, non_negative: bool) -> np.ndarray:
    """Return the wavenumbers smaller than `modes` in magnitude that an axis of `points` resolves, in increasing order.

    With `non_negative`, as for a real transform, the negative ones are left out.
    """
    highest = min(modes - 1, points // 2)
    lowest = 0 if non_negative else -min(modes - 1, (points - 1) // 2)
    return np.arange(lowest, highest + 1)


def _spectrum_shape(modes: int, dimensions: int) -> tuple[int, ...]:
    """Return the numbers of stored wavenumbers per axis: the last space axis comes first, then the others in order.

    The last space axis has only non-negative wavenumbers, as in a real FFT.
    """
    return (modes, *(2 * modes - 1,) * (dimensions - 1))


def _resolved_slices(waves: list[np.ndarray], modes: int) -> tuple[slice, ...]:
    """Return, for each axis of the stored weights, the slice of the wavenumbers `waves` that the grid resolves."""
    starts = [int(numbers[0]) + (0 if axis == 0 else modes - 1) for axis, numbers in enumerate(waves)]
    return tuple(slice(start, start + len(numbers)) for start, numbers in zip(starts, waves, strict=True))


def _spectral_init(key: Array, shape: tuple[int, ...]) -> Float[Array, "*m h o"]:
    """Return normally distributed initial weights with the standard deviation (2 h)^-1/2 for h input channels."""
    return nn.initializers.normal(stddev=(2 * shape[-2]) ** -0.5)(key, shape, jnp.float32)
