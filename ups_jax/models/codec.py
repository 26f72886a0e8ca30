"""The codec of fields on a grid: encoding to tokens, and decoding at the grid points or at any other points.

Each token belongs to one patch of the grid. It holds the values of this patch in every input frame, newest first,
followed by learned features of these values and of the neighbouring patches. The values are kept without loss and
determine the features, so encoding the decoded frames gives the same tokens again.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ups_jax.config import LatentConfig
from ups_jax.core.task import Task
from ups_jax.models.grid import GridConv, interpolate, patch_shape, patchify, unpatchify

# Name of the codec's subtree in a simulator's parameters.
CODEC = "features"


class PatchFeatures(nn.Module):
    """The `dim` learned features of each token, from its patch, the adjacent patches and non-periodic coordinates."""

    task: Task
    config: LatentConfig

    @nn.compact
    def __call__(self, patches: Float[Array, "b *n k"]) -> Float[Array, "b *n dim"]:
        x = jnp.concatenate([patches, *_bounded_coordinates(patches, self.task, self.config)], axis=-1)
        return nn.silu(GridConv(self.config.dim, 3, self.task.periodic, name="stem")(x))


def frame_patches(fields: Float[Array, "b k *s c"], config: LatentConfig) -> Float[Array, "b *n kc"]:
    """Return for each token its patch of every frame, newest frame first, concatenated on the channel axis."""
    patch = patch_shape(fields.shape[2:-1], config.patch_size)
    return jnp.concatenate([patchify(fields[:, -1 - back], patch) for back in range(fields.shape[1])], axis=-1)


def to_tokens(patches: Float[Array, "b *n k"], features: Float[Array, "b *n dim"]) -> Float[Array, "b n d"]:
    """Return tokens, the concatenation of patches and features, with the axes of the grid flattened to one."""
    tokens = jnp.concatenate([patches, features], axis=-1)
    return tokens.reshape(tokens.shape[0], -1, tokens.shape[-1])


def newest_patch_width(task: Task, config: LatentConfig) -> int:
    """Return the number of channels of a patch of one frame; a token begins with its patch of the newest frame."""
    return math.prod(patch_shape(task.shape, config.patch_size)) * len(task.channels)


def to_grid(z: Float[Array, "b n d"], task: Task, config: LatentConfig) -> Float[Array, "b *n d"]:
    """Return the tokens `z` with the token axis reshaped to the axes of the grid, which `to_tokens` flattened."""
    patch = patch_shape(task.shape, config.patch_size)
    tokens = [points // size for points, size in zip(task.shape, patch, strict=True)]
    return z.reshape(z.shape[0], *tokens, z.shape[-1])


def decode_grid(z: Float[Array, "b n d"], task: Task, config: LatentConfig) -> Float[Array, "b *s c"]:
    """Return the newest frame held by the tokens `z`, normalised, at the points of the grid."""
    newest = to_grid(z[..., : newest_patch_width(task, config)], task, config)
    return unpatchify(newest, patch_shape(task.shape, config.patch_size))


def decode_points(
    z: Float[Array, "b n d"], query: Float[Array, "b q axes"], task: Task, config: LatentConfig
) -> Float[Array, "b q c"]:
    """Return the newest frame held by the tokens `z`, normalised, at `query` points in physical coordinates."""
    return interpolate(decode_grid(z, task, config), query, task.origin, task.spacing, task.periodic)


def _bounded_coordinates(
    like: Float[Array, "b *n k"], task: Task, config: LatentConfig
) -> list[Float[Array, "b *n p"]]:
    """Return one array per non-periodic axis: the coordinates in [-1, 1] of the points of each patch of `like`."""
    columns = []
    for axis, wraps in enumerate(task.periodic):
        if not wraps:
            shape = [1] * (len(task.shape) + 2)
            shape[1 + axis] = task.shape[axis]
            line = jnp.linspace(-1.0, 1.0, task.shape[axis], dtype=like.dtype).reshape(shape)
            coords = patchify(jnp.broadcast_to(line, (1, *task.shape, 1)), patch_shape(task.shape, config.patch_size))
            columns.append(jnp.broadcast_to(coords, (*like.shape[:-1], coords.shape[-1])))
    return columns
