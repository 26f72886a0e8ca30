"""Dense layers on the tokens of a grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ups_jax.core.task import Input, Statistics


def layer_dtype(dtype: Any, x: Array) -> Any:
    """Return the type that a layer computes in: float64 for a float64 array, `dtype` for any other."""
    return jnp.float64 if x.dtype == jnp.float64 else dtype


class Dense(nn.Module):
    """x @ kernel + bias as flax's layer computes it, with the product of `matmul_rows`."""

    features: int
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *n c"]) -> Float[Array, "b *n o"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        dtype = layer_dtype(self.dtype, x)
        return add_bias(matmul_rows(x.astype(dtype), kernel.astype(dtype)), bias)


def matmul_rows(x: Float[Array, "b *n c"], kernel: Float[Array, "c o"]) -> Float[Array, "b *n o"]:
    """x @ kernel on the rows (b n, c): on a CPU XLA's gradient of a product over several leading axes is slow."""
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def add_bias(x: Float[Array, "b *n o"], bias: Float[Array, " o"]) -> Float[Array, "b *n o"]:
    """x + bias in the type of x."""
    return x + bias.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


Block = TypeVar("Block", bound=type[nn.Module])


def remat_block(block: Block) -> Block:
    """The class of modules with the same name, so that parameters are called the same and checkpoints fit both.

    Values and gradients are the same, for one more forward pass; a block keeps its inputs alone (Chen et al. 2016).
    """
    result = nn.remat(block)
    result.__name__ = block.__name__
    return result


def apply_model(model: nn.Module, params: Any, *inputs: Any, method: str | None = None) -> Any:
    """`model.apply` with float32 products, and those of its gradient, as exact as `model.matmul_precision` says: `highest` is
    float32 where a GPU or TPU would take fewer bits of its factors, `default` is the device's own choice."""
    with jax.default_matmul_precision(model.matmul_precision):
        return model.apply({"params": params}, *inputs, method=method)


def normalize(fields: Float[Array, "... c"], statistics: Statistics) -> Float[Array, "... c"]:
    """Return (u - mean) / std per channel, in float64 for float64 fields and in float32 for any other."""
    fields = fields.astype(layer_dtype(jnp.float32, fields))
    return (fields - _last(statistics.mean, fields)) / _last(statistics.std, fields)


def normalize_inputs(inputs: Float[Array, "... i"], channels: Sequence[Input]) -> Float[Array, "... i"]:
    """Return the given fields of a steady task, normalised as `normalize` does."""
    inputs = inputs.astype(layer_dtype(jnp.float32, inputs))
    mean, std = ([getattr(channel, name) for channel in channels] for name in ("mean", "std"))
    return (inputs - _last(mean, inputs)) / _last(std, inputs)


def denormalize(fields: Float[Array, "... c"], statistics: Statistics) -> Float[Array, "... c"]:
    """Inverse of `normalize`: physical units."""
    return fields * _last(statistics.std, fields) + _last(statistics.mean, fields)


def _last(values: Sequence[float], like: Float[Array, "... c"]) -> Float[Array, "*ones c"]:
    """Return one value per channel in a shape that broadcasts with `like`."""
    return jnp.asarray(values, layer_dtype(jnp.float32, like)).reshape((1,) * (like.ndim - 1) + (-1,))
