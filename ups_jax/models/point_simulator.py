"""The simulator of a set of points: they speak to a regular grid of latent tokens, which the operator's core advances,
and are told from it how they change.

A point keeps its own values beside the tokens, so that nothing of the field is lost and an untrained step is exactly
persistence. All sums are over neighbours: the order of the points changes nothing, and a point that is not there is
never heard.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ups_jax.config import LatentConfig, OperatorConfig
from ups_jax.models.conditioning import ConditionEmbedding
from ups_jax.models.dense import Dense
from ups_jax.models.kernels import between
from ups_jax.models.latent_state import Conditions, Geometry, LatentState
from ups_jax.models.node_pooling import NodePooling
from ups_jax.models.operator import core_of
from ups_jax.models.point_features import PointExit, PointFeatures, physical
from ups_jax.task import Task


class PointSimulator(nn.Module):
    """encode, operate, decode, as of `Simulator`; each takes the conditions with their geometry.

    Where the points move, those of a state are where its newest frame has them.
    """

    task: Task
    latent: LatentConfig
    operator_config: OperatorConfig
    context: int = 1
    dtype: Any = jnp.float32
    remat: bool = False
    products: str = "highest"

    def setup(self) -> None:
        self.features = PointFeatures(self.task, self.latent.dim)
        self.condition = ConditionEmbedding(self.task)
        self.core, self.width = core_of(self.operator_config, self.task.periodic, self.dtype, self.remat)
        self.pooling = NodePooling(self.task, self.latent)
        self.entrance = Dense(self.width)
        self.field_exit = PointExit(self.task, self.width)

    def encode(self, fields: Float[Array, "b k p c"], cond: Conditions) -> Float[Array, "b n d"]:
        """Tokens of the newest of `k` frames of context and of what came before it."""
        geometry = self._geometry(cond)
        return self.pooling.pool(self.features(fields, geometry), self._coords(fields, cond), geometry.mask)

    def operate(self, state: LatentState) -> LatentState:
        """One time step of the tokens; what they are afterwards is for `decode` to read."""
        hidden = self.core(self.entrance(self.pooling.placed(state.z)), self.condition(state.cond))
        z = hidden.reshape(hidden.shape[0], -1, hidden.shape[-1])
        return replace(state, z=z, t=state.t + state.cond.dt)

    def decode(
        self,
        z: Float[Array, "b n d"],
        fields: Float[Array, "b k p c"],
        cond: Conditions,
        query: Float[Array, "b q axes"] | None = None,
    ) -> Float[Array, "b p c"] | Float[Array, "b q c"]:
        """The values one step after the newest of `fields`, by the advanced tokens: at the points, or at any `query`
        points in physical coordinates, for which the fields are interpolated. ValueError for these where points move:
        the values are those of particles then, and of no place.
        """
        geometry, coords = self._geometry(cond), self._coords(fields, cond)
        if query is not None:
            fields, geometry = self._at(query, fields, geometry)
            coords = query
        around = self.pooling.read(z, coords, geometry.mask)
        increment = self.field_exit(around, self.features(fields, geometry))
        return fields[:, -1] + increment * geometry.mask[..., None]

    def __call__(self, fields: Float[Array, "b k p c"], cond: Conditions) -> Float[Array, "b p c"]:
        """The frame after the newest."""
        state = LatentState(z=self.encode(fields, cond), t=jnp.zeros_like(cond.dt), cond=cond)
        return self.decode(self.operate(state).z, fields, cond)

    def _at(
        self, query: Float[Array, "b q axes"], fields: Float[Array, "b k p c"], geometry: Geometry
    ) -> tuple[Float[Array, "b k q c"], Geometry]:
        """Fields and given fields at other points, as if they had been there."""
        if self.task.moving:
            raise ValueError(f"task {self.task.name} is of points that move; there is no field at other places")
        batch, frames, points, channels = fields.shape
        flat = jnp.moveaxis(fields, 1, 2).reshape(batch, points, frames * channels)
        values = jnp.concatenate([flat, geometry.given], axis=-1)
        found = between(self.task.box, self.task.periodic, values, geometry.coords, geometry.mask, query)
        moved = found[..., : frames * channels].reshape(batch, -1, frames, channels)
        there = Geometry(coords=query, mask=jnp.ones(query.shape[:2]), given=found[..., frames * channels :])
        return jnp.moveaxis(moved, 2, 1), there

    def _geometry(self, cond: Conditions) -> Geometry:
        if cond.geometry is None:
            raise ValueError(f"task {self.task.name} is of points, and the conditions have no geometry")
        return cond.geometry

    def _coords(self, fields: Float[Array, "b k p c"], cond: Conditions) -> Float[Array, "b p d"]:
        """Physical coordinates of the points in the newest frame."""
        if not self.task.moving:
            return self._geometry(cond).coords
        return physical(fields[:, -1], self.task)
