"""Dense layers, recomputation of blocks, matmul precision, and the normalisation of fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from ups_jax.core.task import Input, Statistics


def layer_dtype(dtype: DTypeLike, x: Array) -> DTypeLike:
    """Return the type in which a layer computes: float64 if `x` is float64, else `dtype`."""
    return jnp.float64 if x.dtype == jnp.float64 else dtype


class Dense(nn.Module):
    """Dense layer x @ kernel + bias with the parameters of `flax.linen.Dense`, computed by `matmul_rows`."""

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
    """Return x @ kernel, with the leading axes of x flattened: over several axes XLA's gradient is slow on a CPU."""
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def add_bias(x: Float[Array, "b *n o"], bias: Float[Array, " o"]) -> Float[Array, "b *n o"]:
    """Return x + bias in the type of x."""
    return x + bias.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


Block = TypeVar("Block", bound=type[nn.Module])


def remat_block(block: Block) -> Block:
    """Return the module class `block` with a backward pass that recomputes the block from its inputs, to save memory.

    Values and gradients do not change; a training step does one more forward pass of the block. The class keeps its
    name, so that parameters have the same names and checkpoints can be read with and without recomputation.

    References:
        Chen et al. 2016.
    """
    result = nn.remat(block)
    result.__name__ = block.__name__
    return result


def apply_model(model: nn.Module, params: PyTree, *inputs: PyTree, method: str | None = None) -> PyTree:
    """Return the model's output, with float32 matrix products at the precision `model.matmul_precision`.

    The precision also holds for the gradient. `highest` computes in float32 on every device; `default` lets a GPU or
    TPU round the factors to fewer bits.

    Args:
        *inputs: Arguments of the method.
        method: Name of the method; `__call__` if None.
    """
    with jax.default_matmul_precision(model.matmul_precision):
        return model.apply({"params": params}, *inputs, method=method)


def normalize(fields: Float[Array, "... c"], statistics: Statistics) -> Float[Array, "... c"]:
    """Return (u - mean) / std per channel, in float64 for float64 fields and in float32 for any other."""
    fields = fields.astype(layer_dtype(jnp.float32, fields))
    return (fields - _broadcast_channels(statistics.mean, fields)) / _broadcast_channels(statistics.std, fields)


def normalize_inputs(inputs: Float[Array, "... i"], channels: Sequence[Input]) -> Float[Array, "... i"]:
    """Return input fields, in physical units, normalised by the mean and standard deviation of each channel."""
    inputs = inputs.astype(layer_dtype(jnp.float32, inputs))
    mean, std = ([getattr(channel, name) for channel in channels] for name in ("mean", "std"))
    return (inputs - _broadcast_channels(mean, inputs)) / _broadcast_channels(std, inputs)


def denormalize(fields: Float[Array, "... c"], statistics: Statistics) -> Float[Array, "... c"]:
    """Return normalised fields in physical units, the inverse of `normalize`."""
    return fields * _broadcast_channels(statistics.std, fields) + _broadcast_channels(statistics.mean, fields)


def _broadcast_channels(values: Sequence[float], like: Float[Array, "... c"]) -> Float[Array, "*ones c"]:
    """Return one value per channel as an array that broadcasts with `like`."""
    return jnp.asarray(values, layer_dtype(jnp.float32, like)).reshape((1,) * (like.ndim - 1) + (-1,))
