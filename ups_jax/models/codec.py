"""The codec of fields on a grid: encoding to tokens, and decoding at the grid points or at any other points.

Each token belongs to one patch of the grid. It holds the values of this patch in every input frame, newest first,
followed by learned features of these values and of the neighbouring patches. The values are kept without loss and
determine the features, so encoding the decoded frames gives the same tokens again. The networks take the values after
`resample_patches`, which differ from the kept ones only on a periodic axis that the patch size does not divide.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ups_jax.config import LatentConfig
from ups_jax.core.task import Task
from ups_jax.models.grid import GridConv, interpolate
from ups_jax.models.patches import task_patches

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


def frame_patches(fields: Float[Array, "b k *s c"], task: Task, config: LatentConfig) -> Float[Array, "b *n kc"]:
    """Return for each token its patch of every frame, newest frame first, concatenated on the channel axis."""
    patches = task_patches(task, config)
    return jnp.concatenate([patches.patchify(fields[:, -1 - back]) for back in range(fields.shape[1])], axis=-1)


def resample_patches(frames: Float[Array, "b *n kc"], task: Task, config: LatentConfig) -> Float[Array, "b *n kc"]:
    """Return the patches of every frame, from `frame_patches`, as the networks take them."""
    patches, width = task_patches(task, config), newest_patch_width(task, config)
    if not patches.resampled_axes:
        return frames
    parts = [patches.resample(frames[..., first : first + width]) for first in range(0, frames.shape[-1], width)]
    return jnp.concatenate(parts, axis=-1)


def to_tokens(patches: Float[Array, "b *n k"], features: Float[Array, "b *n dim"]) -> Float[Array, "b n d"]:
    """Return tokens, the concatenation of patches and features, with the axes of the grid flattened to one."""
    tokens = jnp.concatenate([patches, features], axis=-1)
    return tokens.reshape(tokens.shape[0], -1, tokens.shape[-1])


def newest_patch_width(task: Task, config: LatentConfig) -> int:
    """Return the number of channels of a patch of one frame; a token begins with its patch of the newest frame."""
    return task_patches(task, config).points * len(task.channels)


def to_grid(z: Float[Array, "b n d"], task: Task, config: LatentConfig) -> Float[Array, "b *n d"]:
    """Return the tokens `z` with the token axis reshaped to the axes of the grid, which `to_tokens` flattened."""
    return z.reshape(z.shape[0], *task_patches(task, config).counts, z.shape[-1])


def decode_grid(z: Float[Array, "b n d"], task: Task, config: LatentConfig) -> Float[Array, "b *s c"]:
    """Return the newest frame held by the tokens `z`, normalised, at the points of the grid."""
    newest = to_grid(z[..., : newest_patch_width(task, config)], task, config)
    return task_patches(task, config).unpatchify(newest)


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
            coords = task_patches(task, config).patchify(jnp.broadcast_to(line, (1, *task.shape, 1)))
            columns.append(jnp.broadcast_to(coords, (*like.shape[:-1], coords.shape[-1])))
    return columns
