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
from ups_jax.models.grid import bounded
from ups_jax.models.kernels import Nodes, between, nodes_of, to_nodes, to_points, weights_of
from ups_jax.models.latent_state import Conditions, Geometry, LatentState
from ups_jax.models.normalizer import normalize_inputs
from ups_jax.models.operator import INCREMENT_LIMIT, core_of
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

    @property
    def nodes(self) -> Nodes:
        """Where the latent tokens lie."""
        task = self.task
        return nodes_of(self.latent.nodes, task.origin, task.box, task.periodic)

    def setup(self) -> None:
        self.features = PointFeatures(self.task, self.latent.dim)
        self.condition = ConditionEmbedding(self.task)
        self.core, self.width = core_of(self.operator_config, self.task.periodic, self.dtype, self.remat)
        self.entrance = Dense(self.width)
        self.field_exit = PointExit(self.task, self.width)

    def encode(self, fields: Float[Array, "b k p c"], cond: Conditions) -> Float[Array, "b n d"]:
        """Tokens of the newest of `k` frames of context and of what came before it."""
        weights = weights_of(self.nodes, self._coords(fields, cond), self._geometry(cond).mask)
        messages, density = to_nodes(weights, self.features(fields, self._geometry(cond)))
        tokens = jnp.concatenate([messages, density / (1 + density)], axis=-1)
        return tokens.reshape(tokens.shape[0], -1, tokens.shape[-1])

    def operate(self, state: LatentState) -> LatentState:
        """One time step of the tokens; what they are afterwards is for `decode` to read."""
        tokens = state.z.reshape(state.z.shape[0], *self.nodes.shape, -1)
        hidden = self.core(self.entrance(tokens), self.condition(state.cond))
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
        weights = weights_of(self.nodes, coords, geometry.mask)
        around = to_points(weights, z.reshape(z.shape[0], *self.nodes.shape, -1))
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
        found = between(self.nodes, values, geometry.coords, geometry.mask, query)
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
        return _physical(fields[:, -1], self.task)


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
        coords = _physical(fields[:, -1], task) if task.moving else geometry.coords
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


def _physical(frame: Float[Array, "b p c"], task: Task) -> Float[Array, "b p d"]:
    """The coordinates that the moving channels of a normalised frame stand for."""
    mean, std = (
        jnp.asarray([values[channel] for channel in task.moving], jnp.float32).reshape(1, 1, -1)
        for values in (task.statistics.mean, task.statistics.std)
    )
    return frame[..., list(task.moving)] * std + mean
