"""The codec of grids: fields to tokens and back, at the grid's points or anywhere between them.

A token is its patch of every frame of context, newest first, and learned features of those patches and their
neighbours. Nothing of the field is lost, and what is learned can be read off the patches again: a latent state that is
advanced is what the encoder would make of its field.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ups_jax.config import LatentConfig
from ups_jax.core.task import Task
from ups_jax.models.grid import GridConv, interpolate, patch_shape, patchify, unpatchify

# Below this name of a simulator's parameters lie those of its codec.
CODEC = "features"


class PatchFeatures(nn.Module):
    """`dim` features of each token's patches and their neighbours, which know where between the walls they lie."""

    task: Task
    config: LatentConfig

    @nn.compact
    def __call__(self, patches: Float[Array, "b *n k"]) -> Float[Array, "b *n dim"]:
        x = jnp.concatenate([patches, *_bounded_coordinates(patches, self.task, self.config)], axis=-1)
        return nn.silu(GridConv(self.config.dim, 3, self.task.periodic, name="stem")(x))


def frame_patches(fields: Float[Array, "b k *s c"], config: LatentConfig) -> Float[Array, "b *n kc"]:
    """Each token's patches of `k` frames, newest first."""
    patch = patch_shape(fields.shape[2:-1], config.patch_size)
    return jnp.concatenate([patchify(fields[:, -1 - back], patch) for back in range(fields.shape[1])], axis=-1)


def to_tokens(patches: Float[Array, "b *n k"], features: Float[Array, "b *n dim"]) -> Float[Array, "b n d"]:
    """The tokens as one sequence."""
    tokens = jnp.concatenate([patches, features], axis=-1)
    return tokens.reshape(tokens.shape[0], -1, tokens.shape[-1])


def newest_patch_width(task: Task, config: LatentConfig) -> int:
    """How many leading numbers of a token are its patch of the newest frame."""
    return math.prod(patch_shape(task.shape, config.patch_size)) * len(task.channels)


def to_grid(z: Float[Array, "b n d"], task: Task, config: LatentConfig) -> Float[Array, "b *n d"]:
    """Tokens back on their grid."""
    patch = patch_shape(task.shape, config.patch_size)
    tokens = [points // size for points, size in zip(task.shape, patch, strict=True)]
    return z.reshape(z.shape[0], *tokens, z.shape[-1])


def decode_grid(z: Float[Array, "b n d"], task: Task, config: LatentConfig) -> Float[Array, "b *s c"]:
    """The field at the points of the grid."""
    carried = to_grid(z[..., : newest_patch_width(task, config)], task, config)
    return unpatchify(carried, patch_shape(task.shape, config.patch_size))


def decode_points(
    z: Float[Array, "b n d"], query: Float[Array, "b q axes"], task: Task, config: LatentConfig
) -> Float[Array, "b q c"]:
    """The field at any points, given in physical coordinates."""
    return interpolate(decode_grid(z, task, config), query, task.origin, task.spacing, task.periodic)


def _bounded_coordinates(
    patches: Float[Array, "b *n k"], task: Task, config: LatentConfig
) -> list[Float[Array, "b *n p"]]:
    """Where a patch's points lie between the walls, in [-1, 1]; a periodic axis has no such place."""
    columns = []
    for axis, wraps in enumerate(task.periodic):
        if not wraps:
            shape = [1] * (len(task.shape) + 2)
            shape[1 + axis] = task.shape[axis]
            line = jnp.linspace(-1.0, 1.0, task.shape[axis], dtype=patches.dtype).reshape(shape)
            places = patchify(jnp.broadcast_to(line, (1, *task.shape, 1)), patch_shape(task.shape, config.patch_size))
            columns.append(jnp.broadcast_to(places, (*patches.shape[:-1], places.shape[-1])))
    return columns
