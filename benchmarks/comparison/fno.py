"""The Fourier neural operator as the `neuraloperator` package computes it, channels last, and with local convolutions.

Same layers, same initial scale of the spectral weights. The transforms are whatever is faster on one CPU thread: an FFT
in one dimension, the library's truncated matrix products in more (BUILD_NOTES.md, "Peers").
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ups_jax.models.grid import GridConv
from ups_jax.models.layers import Dense
from ups_jax.models.spectral import SpectralMixing


class FNO(nn.Module):
    """Lifting, `depth` Fourier layers, projection.

    `modes` counts wavenumbers from 0 up, of either sign on all axes but the last: the package's `n_modes` is
    2 * modes - 1. `taps` > 0 adds a convolution of so many points an axis to each layer. `grid` appends the position
    in [0, 1) as channels, as the package does by default.
    """

    channels: int
    width: int
    modes: int
    periodic: tuple[bool, ...]
    depth: int = 4
    taps: int = 0
    grid: bool = True
    exit_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Float[Array, "b *s c"]) -> Float[Array, "b *s o"]:
        if self.grid:
            x = jnp.concatenate([x, *positions(x)], axis=-1)
        x = Dense(self.width, name="lift")(gelu(Dense(2 * self.width, name="lift_hidden")(x)))
        for layer in range(self.depth):
            last = layer == self.depth - 1
            x = FourierLayer(self.modes, self.taps, self.periodic, last, name=f"layer_{layer}")(x)
            x = x if last else gelu(x)
        x = gelu(Dense(2 * self.width, name="project")(x))
        return Dense(self.channels, kernel_init=self.exit_init, name="write")(x)


class FourierLayer(nn.Module):
    """gelu(spectral(x) + W x [+ local(x)]) through a two-layer MLP, plus the input times one number a channel.

    `last` leaves the first activation out, as the package does in its last layer.
    """

    modes: int
    taps: int
    periodic: tuple[bool, ...]
    last: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b *s h"]) -> Float[Array, "b *s h"]:
        width = x.shape[-1]
        mixing = FourierMixing if x.ndim == 3 else SpectralMixing
        y = mixing(self.modes, name="spectral")(x)
        y = y + Dense(width, name="skip")(x)
        if self.taps:
            y = y + GridConv(width, self.taps, self.periodic, name="local")(x)
        y = y if self.last else gelu(y)
        y = Dense(width, name="mlp_out")(gelu(Dense(width // 2, name="mlp_hidden")(y)))
        gate = self.param("gate", nn.initializers.ones, (width,))
        return y + x * gate.reshape((1,) * (x.ndim - 1) + (-1,))


class FourierMixing(nn.Module):
    """y_k = W_k x_k for the lowest `modes` wavenumbers of one axis, by FFT; parameters as in `SpectralMixing`."""

    modes: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n h"]) -> Float[Array, "b n h"]:
        points, width = x.shape[1:]
        init = nn.initializers.normal((2 * width) ** -0.5)
        weights = self.param("spectrum", init, (self.modes, width, 2 * width))
        kept = min(self.modes, points // 2 + 1)
        matrices = weights[:kept, :, :width] + 1j * weights[:kept, :, width:]
        spectrum = jnp.einsum("bki,kio->bko", jnp.fft.rfft(x, axis=1)[:, :kept], matrices)
        return jnp.fft.irfft(spectrum, n=points, axis=1)


def gelu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The exact one, as in the package; with erf, which costs less than jax.nn.gelu's erfc."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


def positions(x: Float[Array, "b *s c"]) -> list[Float[Array, "b *s 1"]]:
    """Where each point lies along each axis, from 0 to just below 1."""
    columns = []
    for axis in range(1, x.ndim - 1):
        shape = [1] * x.ndim
        shape[axis] = x.shape[axis]
        line = jnp.arange(x.shape[axis], dtype=x.dtype) / x.shape[axis]
        columns.append(jnp.broadcast_to(line.reshape(shape), (*x.shape[:-1], 1)))
    return columns
