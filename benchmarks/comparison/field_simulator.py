"""A simulator without tokens: what peers need to be trained and evaluated by the library's own code.

The latent state is the field itself, so that encode and decode only reshape. All that is not architecture is the
library's: increment in units of one-step differences, exact conservation, and persistence before training.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ups_jax.models import Conditions, LatentState, Simulator
from ups_jax.models.conditioning import standardize
from ups_jax.models.grid import interpolate, soft_clip
from ups_jax.models.operator import INCREMENT_LIMIT


class FieldSimulator(Simulator):
    """u -> u + increment, where `net` maps the field and its coefficients, as constant channels, to the increment.

    The last layer of `net` must be called `write` and start at zero.
    """

    net: nn.Module | None = None

    def setup(self) -> None:
        pass

    def encode(self, fields: Float[Array, "b k *s c"]) -> Float[Array, "b n d"]:
        """The newest frame, its points in one row."""
        return fields[:, -1].reshape(fields.shape[0], -1, fields.shape[-1])

    def operate(self, state: LatentState) -> LatentState:
        """One time step of the field."""
        assert self.net is not None
        field = self._on_grid(state.z)
        increment = self.net(jnp.concatenate([field, constant_channels(state.cond, self.task, field)], axis=-1))
        increment = self._physical(soft_clip(increment, INCREMENT_LIMIT))
        return replace(state, z=state.z + increment.reshape(state.z.shape), t=state.t + state.cond.dt)

    def next_field(self, state: LatentState) -> Float[Array, "b *s c"]:
        """The field one time step later."""
        return self.decode(self.operate(state).z)

    def decode(
        self, z: Float[Array, "b n d"], query: Float[Array, "b q axes"] | None = None
    ) -> Float[Array, "b *s c"] | Float[Array, "b q c"]:
        """The field on the grid, or interpolated at `query` points in physical coordinates."""
        field = self._on_grid(z)
        if query is None:
            return field
        return interpolate(field, query, self.task.origin, self.task.spacing, self.task.periodic)

    def _on_grid(self, z: Float[Array, "b n d"]) -> Float[Array, "b *s d"]:
        return z.reshape(z.shape[0], *self.task.shape, z.shape[-1])

    def _physical(self, increment: Float[Array, "b *s c"]) -> Float[Array, "b *s c"]:
        """From units of one-step differences to those of the normalised field, without a mean where it is conserved."""
        statistics = self.task.statistics
        scale = [change / std for change, std in zip(statistics.delta_std, statistics.std, strict=True)]
        increment = increment * _last(jnp.asarray(scale, jnp.float32), increment)
        kept = [channel in self.task.conserved for channel in range(increment.shape[-1])]
        mean = increment.mean(tuple(range(1, increment.ndim - 1)), keepdims=True)
        return increment - jnp.where(_last(jnp.asarray(kept), increment), mean, 0.0)


def constant_channels(cond: Conditions, task: Any, like: Float[Array, "b *s c"]) -> Float[Array, "b *s p"]:
    """Each coefficient, standardised as the library does it, at every point; the training mean where unknown."""
    mask = cond.mask.astype(jnp.float32)
    columns = [
        standardize(cond.coefficients[:, index], coefficient) * mask[:, index]
        for index, coefficient in enumerate(task.coefficients)
    ]
    if not columns:
        return jnp.zeros((*like.shape[:-1], 0), like.dtype)
    values = jnp.stack(columns, axis=-1).reshape(like.shape[0], *(1,) * (like.ndim - 2), len(columns))
    return jnp.broadcast_to(values, (*like.shape[:-1], len(columns)))


def _last(values: Array, like: Array) -> Array:
    return values.reshape((1,) * (like.ndim - 1) + (-1,))
