"""The simulator of a set of points: they speak to latent tokens, which the operator's core advances, and are told by
them how they change; before that, where it is wanted, they speak to each other.

A point keeps its own values beside the tokens, so that nothing of the field is lost and an untrained step is exactly
persistence. All that is heard is a mean: the order of the points changes nothing, and a point that is not there is
never heard.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ups_jax.config import LatentConfig, OperatorConfig
from ups_jax.core.task import Task
from ups_jax.models.conditioning import ConditionEmbedding, Conditions, Geometry, LatentState
from ups_jax.models.grid import soft_clip
from ups_jax.models.layers import Dense, normalize_inputs
from ups_jax.models.operator import INCREMENT_LIMIT, build_architecture
from ups_jax.models.points.message_passing import NeighbourMessages, nearest_neighbours
from ups_jax.models.points.node_pooling import NodePooling, shepard_interpolation
from ups_jax.models.points.query_pooling import QueryPooling


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
    matmul_precision: str = "highest"

    def setup(self) -> None:
        self.features = PointFeatures(self.task, self.latent.dim)
        self.condition = ConditionEmbedding(self.task)
        self.messages = None
        if self.latent.neighbours:
            scale = self.latent.radius or self.task.spacing[0]
            self.messages = NeighbourMessages(self.latent.rounds, scale, self.remat)
        axes = {"nodes": self.task.periodic, "queries": None}[self.latent.pooling]
        self.core, self.width = build_architecture(self.operator_config, axes, self.dtype, self.remat)
        make = {
            "nodes": lambda: NodePooling(self.task, self.latent),
            "queries": lambda: QueryPooling(self.task, self.latent, self.width, self.operator_config.pdet.num_heads),
        }
        self.pooling = make[self.latent.pooling]()
        self.entrance = Dense(self.width)
        self.field_exit = PointExit(self.task, self.width)

    def encode(self, fields: Float[Array, "b k p c"], cond: Conditions) -> Float[Array, "b n d"]:
        """Tokens of the newest of `k` frames of context and of what came before it."""
        return self._tokens(self._known(fields, cond))

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
        known = self._known(fields, cond)
        if query is not None:
            known = self._at(query, known)
        return self._next(z, known)

    def __call__(self, fields: Float[Array, "b k p c"], cond: Conditions) -> Float[Array, "b p c"]:
        """The frame after the newest."""
        # The neighbours are looked for once.
        known = self._known(fields, cond)
        state = LatentState(z=self._tokens(known), t=jnp.zeros_like(cond.dt), cond=cond)
        return self._next(self.operate(state).z, known)

    def _known(self, fields: Float[Array, "b k p c"], cond: Conditions) -> Known:
        """What is known of the points in the newest frame."""
        if cond.geometry is None:
            raise ValueError(f"task {self.task.name} is of points, and the conditions have no geometry")
        geometry, task, latent = cond.geometry, self.task, self.latent
        if task.moving:
            geometry = replace(geometry, coords=physical(fields[:, -1], task))
        known = Known(fields=fields, geometry=geometry)
        if self.messages is None:
            return known
        count, radius = latent.neighbours, latent.radius
        near = nearest_neighbours(geometry.coords, geometry.mask, count, task.box, task.periodic, radius)
        return replace(known, told=self.messages(self._own(known), near))

    def _own(self, known: Known) -> Float[Array, "b p h"]:
        """The features of the points, with what their neighbours have told them."""
        own = self.features(known.fields, known.geometry)
        return own if known.told is None else own + known.told

    def _tokens(self, known: Known) -> Float[Array, "b n d"]:
        return self.pooling.pool(self._own(known), known.geometry.coords, known.geometry.mask)

    def _next(self, z: Float[Array, "b n d"], known: Known) -> Float[Array, "b p c"]:
        around = self.pooling.read(z, known.geometry.coords, known.geometry.mask)
        return known.fields[:, -1] + self.field_exit(around, self._own(known)) * known.geometry.mask[..., None]

    def _at(self, query: Float[Array, "b q axes"], known: Known) -> Known:
        """Fields, given fields and what was told at other points, as if they had been there."""
        if self.task.moving:
            raise ValueError(f"task {self.task.name} is of points that move; there is no field at other places")
        fields, geometry = known.fields, known.geometry
        batch, frames, points, channels = fields.shape
        flat = jnp.moveaxis(fields, 1, 2).reshape(batch, points, frames * channels)
        told = [] if known.told is None else [known.told]
        values = jnp.concatenate([flat, geometry.inputs, *told], axis=-1)
        found = shepard_interpolation(self.task.box, self.task.periodic, values, geometry.coords, geometry.mask, query)
        ends = (frames * channels, frames * channels + geometry.inputs.shape[-1])
        moved = jnp.moveaxis(found[..., : ends[0]].reshape(batch, -1, frames, channels), 2, 1)
        there = Geometry(coords=query, mask=jnp.ones(query.shape[:2]), inputs=found[..., ends[0] : ends[1]])
        return Known(fields=moved, geometry=there, told=None if known.told is None else found[..., ends[1] :])


@dataclass(frozen=True, kw_only=True)
class Known:
    """Points: the `fields` that are seen of them, their geometry with the coordinates where the newest frame has them,
    and what their neighbours have `told` them."""

    fields: Float[Array, "b k p c"]
    geometry: Geometry
    told: Float[Array, "b p h"] | None = None


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
        columns.append(normalize_inputs(geometry.inputs, task.inputs))
        coords = physical(fields[:, -1], task) if task.moving else geometry.coords
        for axis, wraps in enumerate(task.periodic):
            if not wraps:
                columns.append(2 * (coords[..., axis : axis + 1] - task.origin[axis]) / task.box[axis] - 1)
        if task.moving:
            ratios = [task.statistics.delta_std[c] / task.statistics.std[c] for c in task.moving]
            change = jnp.asarray(ratios, fields.dtype).reshape(1, 1, -1)
            moved = fields[..., list(task.moving)]
            earlier = [moved[:, -1 - back] for back in range(1, moved.shape[1])]
            columns += [(moved[:, -1] - before) / change for before in earlier]
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
        increment = soft_clip(Dense(channels, kernel_init=nn.initializers.zeros, name="write")(seen), INCREMENT_LIMIT)
        statistics = self.task.statistics
        scale = [change / std for change, std in zip(statistics.delta_std, statistics.std, strict=True)]
        return increment * jnp.asarray(scale, increment.dtype).reshape(1, 1, -1)


def physical(frame: Float[Array, "b p c"], task: Task) -> Float[Array, "b p d"]:
    """The coordinates that the moving channels of a normalised frame stand for."""
    mean, std = (
        jnp.asarray([values[channel] for channel in task.moving], frame.dtype).reshape(1, 1, -1)
        for values in (task.statistics.mean, task.statistics.std)
    )
    return frame[..., list(task.moving)] * std + mean
