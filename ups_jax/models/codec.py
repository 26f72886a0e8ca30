"""The codec of fields on a grid: encoding to tokens, and decoding at the grid points or at any other points.

A token consists of its patch of every input frame, newest first, followed by learned features of these patches and
their neighbours. The patches hold the field without loss, and the features are a function of the patches. An advanced
latent state is therefore equal to the encoding of its decoded field.
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
    """`dim` learned features of each token, from its patches, their neighbours and their position between walls."""

    task: Task
    config: LatentConfig

    @nn.compact
    def __call__(self, patches: Float[Array, "b *n k"]) -> Float[Array, "b *n dim"]:
        x = jnp.concatenate([patches, *_bounded_coordinates(patches, self.task, self.config)], axis=-1)
        return nn.silu(GridConv(self.config.dim, 3, self.task.periodic, name="stem")(x))


def frame_patches(fields: Float[Array, "b k *s c"], config: LatentConfig) -> Float[Array, "b *n kc"]:
    """Return the patches of `k` frames for each token, concatenated on the channel axis, newest frame first."""
    patch = patch_shape(fields.shape[2:-1], config.patch_size)
    return jnp.concatenate([patchify(fields[:, -1 - back], patch) for back in range(fields.shape[1])], axis=-1)


def to_tokens(patches: Float[Array, "b *n k"], features: Float[Array, "b *n dim"]) -> Float[Array, "b n d"]:
    """Return tokens of patches and features, flattened from their grid to a sequence."""
    tokens = jnp.concatenate([patches, features], axis=-1)
    return tokens.reshape(tokens.shape[0], -1, tokens.shape[-1])


def newest_patch_width(task: Task, config: LatentConfig) -> int:
    """Return the number of leading channels of a token that hold its patch of the newest frame."""
    return math.prod(patch_shape(task.shape, config.patch_size)) * len(task.channels)


def to_grid(z: Float[Array, "b n d"], task: Task, config: LatentConfig) -> Float[Array, "b *n d"]:
    """Return a sequence of tokens arranged on their grid, the inverse of the flattening in `to_tokens`."""
    patch = patch_shape(task.shape, config.patch_size)
    tokens = [points // size for points, size in zip(task.shape, patch, strict=True)]
    return z.reshape(z.shape[0], *tokens, z.shape[-1])


def decode_grid(z: Float[Array, "b n d"], task: Task, config: LatentConfig) -> Float[Array, "b *s c"]:
    """Return the newest frame, normalised, at the points of the grid."""
    newest = to_grid(z[..., : newest_patch_width(task, config)], task, config)
    return unpatchify(newest, patch_shape(task.shape, config.patch_size))


def decode_points(
    z: Float[Array, "b n d"], query: Float[Array, "b q axes"], task: Task, config: LatentConfig
) -> Float[Array, "b q c"]:
    """Return the newest frame, normalised, at arbitrary points `query` in physical coordinates."""
    return interpolate(decode_grid(z, task, config), query, task.origin, task.spacing, task.periodic)


def _bounded_coordinates(
    patches: Float[Array, "b *n k"], task: Task, config: LatentConfig
) -> list[Float[Array, "b *n p"]]:
    """Return the coordinates in [-1, 1] of each patch's points along every axis that is not periodic."""
    columns = []
    for axis, wraps in enumerate(task.periodic):
        if not wraps:
            shape = [1] * (len(task.shape) + 2)
            shape[1 + axis] = task.shape[axis]
            line = jnp.linspace(-1.0, 1.0, task.shape[axis], dtype=patches.dtype).reshape(shape)
            coords = patchify(jnp.broadcast_to(line, (1, *task.shape, 1)), patch_shape(task.shape, config.patch_size))
            columns.append(jnp.broadcast_to(coords, (*patches.shape[:-1], coords.shape[-1])))
    return columns
