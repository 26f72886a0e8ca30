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
from ups_jax.models.grid import GridConv


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
    """h <- h + g * W((local_1(y) + spectral(y)) * local_2(y)) with y the modulated h and g the conditioned gate.

    The product of two linear maps is the only nonlinearity: most transport terms are quadratic, and a gate fits them
    with fewer layers than an activation does.
    """

    config: SpectralConfig
    periodic: tuple[bool, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *n h"], embedding: Float[Array, "b e"]) -> Float[Array, "b *n h"]:
        width = x.shape[-1]
        y, gate = modulation(x, embedding, dtype=self.dtype)
        local = GridConv(2 * width, self.config.taps, self.periodic, dtype=self.dtype, name="local")(y)
        value, factor = jnp.split(local, 2, axis=-1)
        mixed = SpectralMixing(self.config.modes, self.dtype, name="spectral")(y)
        return x + gate * nn.Dense(width, dtype=self.dtype, name="out")((value + mixed) * factor)


class SpectralMixing(nn.Module):
    """y_k = W_k x_k for the lowest `modes` Fourier modes of each axis, in float32; higher modes are left to others.

    The weights belong to wavenumbers, so the same parameters act on a grid of any size.
    """

    modes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *n h"]) -> Float[Array, "b *n h"]:
        width = x.shape[-1]
        sizes = x.shape[1:-1]
        count = (2 * self.modes - 1) ** (len(sizes) - 1) * self.modes
        weights = self.param("spectrum", _spectral_init, (2, count, width, width))
        chosen = [_wavenumbers(size, self.modes, half=axis == len(sizes) - 1) for axis, size in enumerate(sizes)]
        rows = np.zeros([1] * len(sizes), np.int64)
        for axis, numbers in enumerate(chosen):
            stride = self.modes * (2 * self.modes - 1) ** (len(sizes) - 2 - axis) if axis < len(sizes) - 1 else 1
            shift = self.modes - 1 if axis < len(sizes) - 1 else 0
            shape = [-1 if other == axis else 1 for other in range(len(sizes))]
            rows = rows + ((numbers + shift) * stride).reshape(shape)
        axes = tuple(range(1, x.ndim - 1))
        spectrum = jnp.fft.rfftn(x.astype(jnp.float32), axes=axes)
        grid = np.ix_(*[numbers % size for numbers, size in zip(chosen, sizes, strict=True)])
        low = spectrum[(slice(None), *grid)].reshape(x.shape[0], -1, width)
        real, imag = weights[0, rows.ravel()], weights[1, rows.ravel()]
        mixed_real = _modewise(low.real, real) - _modewise(low.imag, imag)
        mixed_imag = _modewise(low.real, imag) + _modewise(low.imag, real)
        mixed = (mixed_real + 1j * mixed_imag).reshape(x.shape[0], *rows.shape, width)
        full = jnp.zeros_like(spectrum).at[(slice(None), *grid)].set(mixed)
        return jnp.fft.irfftn(full, s=sizes, axes=axes).astype(self.dtype)


def _modewise(x: Float[Array, "b k h"], weights: Float[Array, "k h o"]) -> Float[Array, "b k o"]:
    return jnp.einsum("bkh,kho->bko", x, weights)


def _wavenumbers(points: int, modes: int, *, half: bool) -> np.ndarray:
    """The signed wavenumbers below `modes` that a grid of `points` carries; only the non-negative of the last axis."""
    highest = min(modes - 1, points // 2)
    if half:
        return np.arange(highest + 1)
    lowest = -min(modes - 1, (points - 1) // 2)
    return np.arange(lowest, highest + 1)


def _spectral_init(key, shape, dtype=jnp.float32):  # type: ignore[no-untyped-def]
    return nn.initializers.normal(stddev=1 / shape[-1])(key, shape, dtype)
