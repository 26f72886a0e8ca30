"""The codec of grids: fields to tokens and back, at the grid's points or anywhere between them.

A token carries its patch of the newest frame as it is, so reconstruction has no error to train away; what is learned
is the features beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ups_jax.config import LatentConfig
from ups_jax.models.grid import GridConv, interpolate, patch_of, patchify, unpatchify
from ups_jax.task import Task


class GridEncoder(nn.Module):
    """Frames of context -> tokens: the newest frame's patches, and `dim` features of each patch and its neighbours."""

    task: Task
    config: LatentConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, fields: Float[Array, "b k *s c"]) -> Float[Array, "b n d"]:
        features = stem(stack_context(fields), self.task, self.config, self.dtype)
        carried = patchify(fields[:, -1], patch_of(fields.shape[2:-1], self.config.patch_size))
        tokens = jnp.concatenate([carried, features.astype(jnp.float32)], axis=-1)
        return tokens.reshape(tokens.shape[0], -1, tokens.shape[-1])


def stem(x: Float[Array, "b *s c"], task: Task, config: LatentConfig, dtype: Any) -> Float[Array, "b *n dim"]:
    """`dim` features of each patch of x and its neighbours, which know where between the walls they lie.

    Call it inside a compact module: it makes one module named `stem`.
    """
    patch = patch_of(x.shape[1:-1], config.patch_size)
    x = jnp.concatenate([x, *_bounded_coordinates(x, task.periodic)], axis=-1)
    conv = GridConv(config.dim, 3, task.periodic, dtype=dtype, name="stem")
    return nn.silu(conv(patchify(x.astype(dtype), patch)))


def carried_width(task: Task, config: LatentConfig) -> int:
    """How many leading numbers of a token are its patch of the field."""
    return math.prod(patch_of(task.shape, config.patch_size)) * len(task.channels)


def to_grid(z: Float[Array, "b n d"], task: Task, config: LatentConfig) -> Float[Array, "b *n d"]:
    """Tokens back on their grid."""
    patch = patch_of(task.shape, config.patch_size)
    tokens = [points // size for points, size in zip(task.shape, patch, strict=True)]
    return z.reshape(z.shape[0], *tokens, z.shape[-1])


def decode_grid(z: Float[Array, "b n d"], task: Task, config: LatentConfig) -> Float[Array, "b *s c"]:
    """The field at the points of the grid."""
    carried = to_grid(z[..., : carried_width(task, config)], task, config)
    return unpatchify(carried, patch_of(task.shape, config.patch_size))


def decode_points(
    z: Float[Array, "b n d"], query: Float[Array, "b q axes"], task: Task, config: LatentConfig
) -> Float[Array, "b q c"]:
    """The field at any points, given in physical coordinates."""
    return interpolate(decode_grid(z, task, config), query, task.origin, task.spacing, task.periodic)


def stack_context(fields: Float[Array, "b k *s c"]) -> Float[Array, "b *s kc"]:
    """Frames of context become channels, oldest first."""
    x = jnp.moveaxis(fields, 1, -2)
    return x.reshape(*x.shape[:-2], -1)


def _bounded_coordinates(x: Float[Array, "b *s c"], periodic: Sequence[bool]) -> list[Float[Array, "b *s 1"]]:
    """Where a point lies between the walls, in [-1, 1]; a periodic axis has no such place."""
    columns = []
    for axis, wraps in enumerate(periodic, start=1):
        if not wraps:
            shape = [1] * x.ndim
            shape[axis] = x.shape[axis]
            line = jnp.linspace(-1.0, 1.0, x.shape[axis]).reshape(shape)
            columns.append(jnp.broadcast_to(line, (*x.shape[:-1], 1)).astype(x.dtype))
    return columns
