"""The simulator of a task on a point set (mesh or particles).

Points are pooled to latent tokens, the architecture advances the tokens, and each point computes its increment from the
tokens around it. Optionally, neighbouring points exchange messages before the pooling. A point's values bypass the
tokens, so no information is lost, and at initialisation a step is exactly the identity. All poolings are means: the
order of the points does not matter, and padding points have no effect.
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
    """Simulator of one time step on a point set, with the methods encode, operate and decode of `Simulator`.

    Every method takes conditions that contain the geometry of the points. If the points move, their coordinates are
    taken from the newest frame instead.

    Attributes:
        latent: Pooling, neighbours and number of features.
        context: Number of input frames of a step.
        dtype: Type in which the architecture's blocks compute; their inputs and outputs are float32.
        remat: Whether the backward pass recomputes the blocks.
        matmul_precision: Precision of float32 matrix products, see `ups_jax.models.layers.apply_model`.
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
        periodic = {"nodes": self.task.periodic, "queries": None}[self.latent.pooling]
        self.core, self.width = build_architecture(self.operator_config, periodic, self.dtype, self.remat)
        factories = {
            "nodes": lambda: NodePooling(self.task, self.latent),
            "queries": lambda: QueryPooling(self.task, self.latent, self.width, self.operator_config.pdet.num_heads),
        }
        self.pooling = factories[self.latent.pooling]()
        self.entrance = Dense(self.width)
        self.field_exit = PointExit(self.task, self.width)

    def encode(self, fields: Float[Array, "b k p c"], cond: Conditions) -> Float[Array, "b n d"]:
        """Return the tokens of `k` input frames, oldest first."""
        return self._pool(self._point_state(fields, cond))

    def operate(self, state: LatentState) -> LatentState:
        """Return the latent state one time step later; its tokens are the input of `decode`."""
        tokens = self.pooling.to_architecture_layout(state.z)
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
        """Return the values one time step after the newest frame.

        Args:
            z: Advanced tokens, from `operate`.
            fields: Input frames, normalised.
            cond: Conditions with the geometry of the points.
            query: Physical coordinates of other points, to which the input frames are interpolated; None for the
                points of `fields`.

        Raises:
            ValueError: If `query` is given and the points move: the values belong to particles and define no field.
        """
        points = self._point_state(fields, cond)
        if query is not None:
            points = self._interpolate(query, points)
        return self._predict(z, points)

    def __call__(self, fields: Float[Array, "b k p c"], cond: Conditions) -> Float[Array, "b p c"]:
        """Return the frame one time step after the newest input frame."""
        # Computed once for the encoder and the decoder, because the search of neighbours is expensive.
        points = self._point_state(fields, cond)
        state = LatentState(z=self._pool(points), t=jnp.zeros_like(cond.dt), cond=cond)
        return self._predict(self.operate(state).z, points)

    def _point_state(self, fields: Float[Array, "b k p c"], cond: Conditions) -> PointState:
        """Return the input frames with the points' current geometry and the messages between them."""
        if cond.geometry is None:
            raise ValueError(f"task {self.task.name} is on points; pass conditions with a `geometry`")
        geometry, task, latent = cond.geometry, self.task, self.latent
        if task.moving:
            geometry = replace(geometry, coords=moving_coordinates(fields[:, -1], task))
        points = PointState(fields=fields, geometry=geometry)
        if self.messages is None:
            return points
        count, radius = latent.neighbours, latent.radius
        neighbours = nearest_neighbours(geometry.coords, geometry.mask, count, task.box, task.periodic, radius)
        return replace(points, messages=self.messages(self._point_features(points), neighbours))

    def _point_features(self, points: PointState) -> Float[Array, "b p h"]:
        """Return the learned features of each point plus the messages that it receives."""
        features = self.features(points.fields, points.geometry)
        return features if points.messages is None else features + points.messages

    def _pool(self, points: PointState) -> Float[Array, "b n d"]:
        """Return the latent tokens that the points are pooled to."""
        return self.pooling.pool(self._point_features(points), points.geometry.coords, points.geometry.mask)

    def _predict(self, z: Float[Array, "b n d"], points: PointState) -> Float[Array, "b p c"]:
        """Return the newest frame plus the change of each point's values over one time step."""
        around = self.pooling.read(z, points.geometry.coords, points.geometry.mask)
        increment = self.field_exit(around, self._point_features(points))
        return points.fields[:, -1] + increment * points.geometry.mask[..., None]

    def _interpolate(self, query: Float[Array, "b q axes"], points: PointState) -> PointState:
        """Return the state at the points `query`, interpolated from the fields, inputs and messages of `points`."""
        if self.task.moving:
            raise ValueError(
                f"task {self.task.name} has moving points, so its fields have no values at other points; omit `query`"
            )
        fields, geometry = points.fields, points.geometry
        batch, frames, count, channels = fields.shape
        flat = jnp.moveaxis(fields, 1, 2).reshape(batch, count, frames * channels)
        messages = [] if points.messages is None else [points.messages]
        values = jnp.concatenate([flat, geometry.inputs, *messages], axis=-1)
        task = self.task
        interpolated = shepard_interpolation(task.box, task.periodic, values, geometry.coords, geometry.mask, query)
        ends = (frames * channels, frames * channels + geometry.inputs.shape[-1])
        query_fields = jnp.moveaxis(interpolated[..., : ends[0]].reshape(batch, -1, frames, channels), 2, 1)
        query_geometry = Geometry(
            coords=query, mask=jnp.ones(query.shape[:2]), inputs=interpolated[..., ends[0] : ends[1]]
        )
        query_messages = None if points.messages is None else interpolated[..., ends[1] :]
        return PointState(fields=query_fields, geometry=query_geometry, messages=query_messages)


@dataclass(frozen=True, kw_only=True)
class PointState:
    """Input frames of a point set and the messages between its points.

    Attributes:
        fields: Input frames, normalised.
        geometry: Geometry with the coordinates in the newest frame.
        messages: Messages that each point receives from its neighbours; None if the model has no message passing.
    """

    fields: Float[Array, "b k p c"]
    geometry: Geometry
    messages: Float[Array, "b p h"] | None = None


class PointFeatures(nn.Module):
    """The `dim` learned features of each point, from its values, input fields and coordinates.

    The values are those of all input frames, newest first. The coordinates are in [-1, 1], along the axes that are not
    periodic. For moving points, displacements since earlier frames replace the values of the coordinate channels.
    """

    task: Task
    dim: int

    @nn.compact
    def __call__(self, fields: Float[Array, "b k p c"], geometry: Geometry) -> Float[Array, "b p dim"]:
        task = self.task
        value_channels = [channel for channel in range(len(task.channels)) if channel not in task.moving]
        columns = [fields[:, -1 - back][..., value_channels] for back in range(fields.shape[1])]
        columns.append(normalize_inputs(geometry.inputs, task.inputs))
        coords = moving_coordinates(fields[:, -1], task) if task.moving else geometry.coords
        for axis, wraps in enumerate(task.periodic):
            if not wraps:
                columns.append(2 * (coords[..., axis : axis + 1] - task.origin[axis]) / task.box[axis] - 1)
        if task.moving:
            ratios = [task.statistics.delta_std[c] / task.statistics.std[c] for c in task.moving]
            change = jnp.asarray(ratios, fields.dtype).reshape(1, 1, -1)
            positions = fields[..., list(task.moving)]
            earlier = [positions[:, -1 - back] for back in range(1, positions.shape[1])]
            columns += [(positions[:, -1] - previous) / change for previous in earlier]
        x = jnp.concatenate(columns, axis=-1) * geometry.mask[..., None]
        return nn.silu(Dense(self.dim, name="own")(x)) * geometry.mask[..., None]


class PointExit(nn.Module):
    """Change of each point's values over one time step, from nearby tokens, the point's features, and their product.

    The last layer's output is multiplied by the standard deviation of one-step changes, as in `FieldExit`.
    """

    task: Task
    width: int

    @nn.compact
    def __call__(self, around: Float[Array, "b p k"], features: Float[Array, "b p d"]) -> Float[Array, "b p c"]:
        mixed = Dense(self.width, name="mix")(around)
        product = mixed * Dense(self.width, name="local")(features)
        hidden = nn.silu(Dense(self.width, name="hidden")(jnp.concatenate([product, mixed, features], axis=-1)))
        x = jnp.concatenate([hidden, product, mixed, features], axis=-1)
        channels = len(self.task.channels)
        increment = soft_clip(Dense(channels, kernel_init=nn.initializers.zeros, name="write")(x), INCREMENT_LIMIT)
        statistics = self.task.statistics
        scale = [change / std for change, std in zip(statistics.delta_std, statistics.std, strict=True)]
        return increment * jnp.asarray(scale, increment.dtype).reshape(1, 1, -1)


def moving_coordinates(frame: Float[Array, "b p c"], task: Task) -> Float[Array, "b p d"]:
    """Return the physical coordinates of moving points, which are channels of the normalised `frame`."""
    mean, std = (
        jnp.asarray([values[channel] for channel in task.moving], frame.dtype).reshape(1, 1, -1)
        for values in (task.statistics.mean, task.statistics.std)
    )
    return frame[..., list(task.moving)] * std + mean
