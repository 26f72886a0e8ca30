"""Dense layers on the tokens of a grid."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


class Dense(nn.Module):
    """x @ kernel + bias as flax's layer computes it, with the product of `matmul_rows`."""

    features: int
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *n c"]) -> Float[Array, "b *n o"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return add_bias(matmul_rows(x.astype(self.dtype), kernel.astype(self.dtype)), bias)


def matmul_rows(x: Float[Array, "b *n c"], kernel: Float[Array, "c o"]) -> Float[Array, "b *n o"]:
    """x @ kernel on the rows (b n, c): on a CPU XLA's gradient of a product over several leading axes is slow."""
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def add_bias(x: Float[Array, "b *n o"], bias: Float[Array, " o"]) -> Float[Array, "b *n o"]:
    """x + bias in the type of x."""
    return x + bias.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
