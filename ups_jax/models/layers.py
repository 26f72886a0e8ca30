"""Dense layers on the tokens of a grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ups_jax.core.task import Input, Statistics


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


Block = TypeVar("Block", bound=type[nn.Module])


def recomputed(block: Block) -> Block:
    """The class of modules with the same name, so that parameters are called the same and checkpoints fit both.

    Values and gradients are the same, for one more forward pass; a block keeps its inputs alone (Chen et al. 2016).
    """
    result = nn.remat(block)
    result.__name__ = block.__name__
    return result


def apply(model: nn.Module, params: Any, *inputs: Any, method: str | None = None) -> Any:
    """`model.apply` with float32 products, and those of its gradient, as exact as `model.products` says: `highest` is
    float32 where a GPU or TPU would take fewer bits of its factors, `default` is the device's own choice."""
    with jax.default_matmul_precision(model.products):
        return model.apply({"params": params}, *inputs, method=method)


def normalize(fields: Float[Array, "... c"], statistics: Statistics) -> Float[Array, "... c"]:
    """(u - mean) / std per channel, float32."""
    mean, std = (jnp.asarray(values, jnp.float32) for values in (statistics.mean, statistics.std))
    return (fields.astype(jnp.float32) - _last(mean, fields)) / _last(std, fields)


def normalize_inputs(inputs: Float[Array, "... i"], channels: Sequence[Input]) -> Float[Array, "... i"]:
    """The same for the given fields of a steady task."""
    mean = jnp.asarray([channel.mean for channel in channels], jnp.float32)
    std = jnp.asarray([channel.std for channel in channels], jnp.float32)
    return (inputs.astype(jnp.float32) - _last(mean, inputs)) / _last(std, inputs)


def denormalize(fields: Float[Array, "... c"], statistics: Statistics) -> Float[Array, "... c"]:
    """Inverse of `normalize`: physical units."""
    mean, std = (jnp.asarray(values, jnp.float32) for values in (statistics.mean, statistics.std))
    return fields * _last(std, fields) + _last(mean, fields)


def _last(values: Float[Array, " c"], like: Float[Array, "... c"]) -> Float[Array, "... c"]:
    return values.reshape((1,) * (like.ndim - 1) + (-1,))
