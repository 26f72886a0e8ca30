"""The simulators of one task on a grid, of time steps and of steady solutions: linen modules on normalised fields, and
the pure functions that apply them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ups_jax.config import LatentConfig, OperatorConfig
from ups_jax.core.task import Task
from ups_jax.models import codec
from ups_jax.models.conditioning import ConditionEmbedding, Conditions, LatentState
from ups_jax.models.grid import patch_shape, patchify, unpatchify
from ups_jax.models.layers import Dense, apply_model
from ups_jax.models.operator import FieldExit, LatentOperator, build_architecture
from ups_jax.models.points.simulator import PointSimulator


class Simulator(nn.Module):
    """encode, operate, decode; calling it makes one step of the field. Untrained, a step is exactly persistence.

    `context` is the number of frames that one step sees. `dtype` is what the operator's core computes in, between
    float32 entrance and exit; with `remat` its blocks are computed again for the gradient instead of kept. `products`
    is for `ups_jax.models.layers.apply`.
    """

    task: Task
    latent: LatentConfig
    operator_config: OperatorConfig
    context: int = 1
    dtype: Any = jnp.float32
    remat: bool = False
    matmul_precision: str = "highest"

    def setup(self) -> None:
        self.features = codec.PatchFeatures(self.task, self.latent)
        self.operator = LatentOperator(self.task, self.latent, self.operator_config, self.dtype, self.remat)

    def encode(self, fields: Float[Array, "b k *s c"]) -> Float[Array, "b n d"]:
        """Tokens of the newest of `k` frames of context and of what came before it."""
        patches = codec.frame_patches(fields, self.latent)
        return codec.to_tokens(patches, self.features(patches))

    def operate(self, state: LatentState) -> LatentState:
        """One time step of the latent state; its features are those of the field that it arrives at."""
        tokens = codec.to_grid(state.z, self.task, self.latent)
        own = codec.newest_patch_width(self.task, self.latent)
        newest = self._newest(tokens, state.cond)
        patches = jnp.concatenate([newest, tokens[..., : own * (self.context - 1)]], axis=-1)
        return replace(state, z=codec.to_tokens(patches, self.features(patches)), t=state.t + state.cond.dt)

    def next_field(self, state: LatentState) -> Float[Array, "b *s c"]:
        """The field one time step later, without the features that a further step would need."""
        newest = self._newest(codec.to_grid(state.z, self.task, self.latent), state.cond)
        return self.decode(newest.reshape(newest.shape[0], -1, newest.shape[-1]))

    def _newest(self, tokens: Float[Array, "b *n d"], cond: Conditions) -> Float[Array, "b *n k"]:
        """The patches of the newest frame after a time step."""
        return tokens[..., : codec.newest_patch_width(self.task, self.latent)] + self.operator(tokens, cond)

    def decode(
        self, z: Float[Array, "b n d"], query: Float[Array, "b q axes"] | None = None
    ) -> Float[Array, "b *s c"] | Float[Array, "b q c"]:
        """The field on the grid, or at `query` points in physical coordinates."""
        if query is None:
            return codec.decode_grid(z, self.task, self.latent)
        return codec.decode_points(z, query, self.task, self.latent)

    def __call__(self, fields: Float[Array, "b k *s c"], cond: Conditions) -> Float[Array, "b *s c"]:
        """The frame after the newest."""
        state = LatentState(z=self.encode(fields), t=jnp.zeros_like(cond.dt), cond=cond)
        return self.next_field(state)


class SteadySimulator(nn.Module):
    """Tokens of the given fields, advanced once by the operator's core; the operator's exit writes the solution.

    It is written on the mean field, which is zero when normalised: untrained, every solution is exactly that. What the
    exit multiplies the tokens with are the given fields, which carry what a time step's own field would.
    """

    task: Task
    latent: LatentConfig
    operator_config: OperatorConfig
    dtype: Any = jnp.float32
    remat: bool = False
    matmul_precision: str = "highest"

    @nn.compact
    def __call__(self, inputs: Float[Array, "b *s i"], cond: Conditions) -> Float[Array, "b *s c"]:
        patch = patch_shape(self.task.shape, self.latent.patch_size)
        given = patchify(inputs, patch)
        features = codec.PatchFeatures(self.task, self.latent, name="features")(given)
        tokens = jnp.concatenate([given, features], axis=-1)
        embedding = ConditionEmbedding(self.task, name="condition")(cond)
        core, width = build_architecture(self.operator_config, self.task.periodic, self.dtype, self.remat)
        hidden = core(Dense(width, name="entrance")(tokens), embedding)
        return unpatchify(FieldExit(self.task, self.latent, name="field_exit")(hidden, given), patch)


def encode(model: Simulator, params: Any, fields: Float[Array, "b k *s c"]) -> Float[Array, "b n d"]:
    """Tokens of the newest of `k` frames of context."""
    return cast(Array, apply_model(model, params, fields, method="encode"))


def operate(model: Simulator, params: Any, state: LatentState) -> LatentState:
    """The latent state one time step later."""
    return cast(LatentState, apply_model(model, params, state, method="operate"))


def next_field(model: Simulator, params: Any, state: LatentState) -> Float[Array, "b *s c"]:
    """The field of the latent state one time step later."""
    return cast(Array, apply_model(model, params, state, method="next_field"))


def decode(
    model: Simulator, params: Any, z: Float[Array, "b n d"], query: Float[Array, "b q axes"] | None = None
) -> Float[Array, "b *s c"] | Float[Array, "b q c"]:
    """The field on the grid, or at `query` points in physical coordinates."""
    return cast(Array, apply_model(model, params, z, query, method="decode"))


def step(
    model: Simulator | PointSimulator, params: Any, fields: Float[Array, "b k *s c"], cond: Conditions
) -> Float[Array, "b *s c"]:
    """The frame after the newest: decode(operate(encode(fields)))."""
    return cast(Array, apply_model(model, params, fields, cond))


def steady_field(
    model: SteadySimulator, params: Any, inputs: Float[Array, "b *s i"], cond: Conditions
) -> Float[Array, "b *s c"]:
    """The steady field that belongs to the given fields."""
    return cast(Array, apply_model(model, params, inputs, cond))
