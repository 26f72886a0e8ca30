"""Fields to model units and back, with the train split's per-channel statistics of a task."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from ups_jax.task import Input, Statistics


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
