"""What a point knows of itself, and how a point's values change by what it knows and what it is told."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ups_jax.models.dense import Dense
from ups_jax.models.grid import bounded
from ups_jax.models.latent_state import Geometry
from ups_jax.models.normalizer import normalize_inputs
from ups_jax.models.operator import INCREMENT_LIMIT
from ups_jax.task import Task


class PointFeatures(nn.Module):
    """`dim` features of each point's values in all frames of context, newest first, and of its given fields; and of
    where it lies between walls, in [-1, 1]. A periodic axis has no such place, and moving points are known by how far
    they have come since the earlier frames."""

    task: Task
    dim: int

    @nn.compact
    def __call__(self, fields: Float[Array, "b k p c"], geometry: Geometry) -> Float[Array, "b p dim"]:
        task = self.task
        others = [channel for channel in range(len(task.channels)) if channel not in task.moving]
        columns = [fields[:, -1 - back][..., others] for back in range(fields.shape[1])]
        columns.append(normalize_inputs(geometry.given, task.inputs))
        coords = physical(fields[:, -1], task) if task.moving else geometry.coords
        for axis, wraps in enumerate(task.periodic):
            if not wraps:
                columns.append(2 * (coords[..., axis : axis + 1] - task.origin[axis]) / task.box[axis] - 1)
        if task.moving:
            change = jnp.asarray([task.statistics.delta_std[c] / task.statistics.std[c] for c in task.moving])
            moved = fields[..., list(task.moving)]
            earlier = [moved[:, -1 - back] for back in range(1, moved.shape[1])]
            columns += [(moved[:, -1] - before) / change.reshape(1, 1, -1) for before in earlier]
        x = jnp.concatenate(columns, axis=-1) * geometry.mask[..., None]
        return nn.silu(Dense(self.dim, name="own")(x)) * geometry.mask[..., None]


class PointExit(nn.Module):
    """Increment of a point's values, from the tokens around it times its own features, and from both as they are.

    Written in units of one-step differences, like the exit of grids.
    """

    task: Task
    width: int

    @nn.compact
    def __call__(self, around: Float[Array, "b p k"], own: Float[Array, "b p d"]) -> Float[Array, "b p c"]:
        mixed = Dense(self.width, name="mix")(around)
        product = mixed * Dense(self.width, name="local")(own)
        hidden = nn.silu(Dense(self.width, name="hidden")(jnp.concatenate([product, mixed, own], axis=-1)))
        seen = jnp.concatenate([hidden, product, mixed, own], axis=-1)
        channels = len(self.task.channels)
        increment = bounded(Dense(channels, kernel_init=nn.initializers.zeros, name="write")(seen), INCREMENT_LIMIT)
        statistics = self.task.statistics
        scale = [change / std for change, std in zip(statistics.delta_std, statistics.std, strict=True)]
        return increment * jnp.asarray(scale, jnp.float32).reshape(1, 1, -1)


def physical(frame: Float[Array, "b p c"], task: Task) -> Float[Array, "b p d"]:
    """The coordinates that the moving channels of a normalised frame stand for."""
    mean, std = (
        jnp.asarray([values[channel] for channel in task.moving], jnp.float32).reshape(1, 1, -1)
        for values in (task.statistics.mean, task.statistics.std)
    )
    return frame[..., list(task.moving)] * std + mean
