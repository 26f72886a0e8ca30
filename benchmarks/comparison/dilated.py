"""A dilated residual convolutional net (after Stachenfeld et al. 2022): sees far through few points, all local."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ups_jax.models.layers import Dense


class DilatedNet(nn.Module):
    """Encoder, `blocks` residual blocks of convolutions with `dilations`, decoder; three taps an axis."""

    channels: int
    width: int
    periodic: tuple[bool, ...]
    blocks: int = 4
    dilations: tuple[int, ...] = (1, 2, 4, 8, 4, 2, 1)

    @nn.compact
    def __call__(self, x: Float[Array, "b *s c"]) -> Float[Array, "b *s o"]:
        x = DilatedConv(self.width, 1, self.periodic, name="entrance")(x)
        for block in range(self.blocks):
            y = x
            for layer, dilation in enumerate(self.dilations):
                y = nn.relu(DilatedConv(self.width, dilation, self.periodic, name=f"block_{block}_{layer}")(y))
            x = x + y
        neighbours = dilated_neighbourhood(x, 1, self.periodic)
        return Dense(self.channels, kernel_init=nn.initializers.zeros, name="write")(neighbours)


class DilatedConv(nn.Module):
    """Convolution of three points an axis, `dilation` apart; wraps round periodic axes, repeats the edge elsewhere."""

    features: int
    dilation: int
    periodic: tuple[bool, ...]

    @nn.compact
    def __call__(self, x: Float[Array, "b *s c"]) -> Float[Array, "b *s features"]:
        return Dense(self.features)(dilated_neighbourhood(x, self.dilation, self.periodic))


def dilated_neighbourhood(x: Float[Array, "b *s c"], dilation: int, periodic: Sequence[bool]) -> Float[Array, "b *s k"]:
    """Each point's 3 ** dimensions neighbours at distance `dilation`, concatenated on the channel axis in C order."""
    sizes = x.shape[1:-1]
    for axis, wraps in enumerate(periodic, start=1):
        width = [(0, 0)] * x.ndim
        width[axis] = (dilation, dilation)
        x = jnp.pad(x, width, mode="wrap" if wraps else "edge")
    shifts = itertools.product((0, dilation, 2 * dilation), repeat=len(sizes))
    windows = (tuple(slice(start, start + size) for start, size in zip(shift, sizes, strict=True)) for shift in shifts)
    return jnp.concatenate([x[(slice(None), *window)] for window in windows], axis=-1)
