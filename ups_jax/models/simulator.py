"""Simulators of a task on a grid, for time steps and for steady solutions, and the pure functions that apply them.

All their inputs and outputs are normalised fields.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ups_jax.config import LatentConfig, OperatorConfig
from ups_jax.core.task import Task
from ups_jax.models import codec
from ups_jax.models.conditioning import ConditionEmbedding, Conditions, LatentState
from ups_jax.models.layers import Dense, apply_model
from ups_jax.models.operator import FieldExit, LatentOperator, build_architecture
from ups_jax.models.patches import task_patches
from ups_jax.models.points.simulator import PointSimulator


class Simulator(nn.Module):
    """Simulator of one time step on a grid: encode, operate, decode.

    Calling the module predicts the frame after the newest one. At initialisation the prediction is exactly the newest
    frame.

    Attributes:
        latent: Patch size and number of features.
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
        self.features = codec.PatchFeatures(self.task, self.latent)
        self.operator = LatentOperator(self.task, self.latent, self.operator_config, self.dtype, self.remat)

    def encode(self, fields: Float[Array, "b k *s c"]) -> Float[Array, "b n d"]:
        """Return the tokens of `k` input frames, oldest first."""
        return self._tokens(codec.frame_patches(fields, self.task, self.latent))

    def operate(self, state: LatentState) -> LatentState:
        """Return the latent state one time step later, which equals the encoding of the predicted frame."""
        tokens = codec.to_grid(state.z, self.task, self.latent)
        patch_width = codec.newest_patch_width(self.task, self.latent)
        newest = self._advance_newest(tokens, state.cond)
        patches = jnp.concatenate([newest, tokens[..., : patch_width * (self.context - 1)]], axis=-1)
        return replace(state, z=self._tokens(patches), t=state.t + state.cond.dt)

    def next_field(self, state: LatentState) -> Float[Array, "b *s c"]:
        """Return the field one time step later, but no latent state for a further step, which `operate` returns."""
        newest = self._advance_newest(codec.to_grid(state.z, self.task, self.latent), state.cond)
        return self.decode(newest.reshape(newest.shape[0], -1, newest.shape[-1]))

    def _advance_newest(self, tokens: Float[Array, "b *n d"], cond: Conditions) -> Float[Array, "b *n k"]:
        """Return the patches of the newest frame in `tokens`, advanced by one time step."""
        patch_width = codec.newest_patch_width(self.task, self.latent)
        inputs = tokens
        if task_patches(self.task, self.latent).resampled_axes:
            frames, features = jnp.split(tokens, [patch_width * self.context], axis=-1)
            inputs = jnp.concatenate([codec.resample_patches(frames, self.task, self.latent), features], axis=-1)
        return tokens[..., :patch_width] + self.operator(inputs, cond)

    def _tokens(self, patches: Float[Array, "b *n k"]) -> Float[Array, "b n d"]:
        """Return the tokens of input frames whose patches are given."""
        return codec.to_tokens(patches, self.features(codec.resample_patches(patches, self.task, self.latent)))

    def decode(
        self, z: Float[Array, "b n d"], query: Float[Array, "b q axes"] | None = None
    ) -> Float[Array, "b *s c"] | Float[Array, "b q c"]:
        """Return the newest frame held by the tokens `z`, on the grid or at `query` points in physical coordinates."""
        if query is None:
            return codec.decode_grid(z, self.task, self.latent)
        return codec.decode_points(z, query, self.task, self.latent)

    def __call__(self, fields: Float[Array, "b k *s c"], cond: Conditions) -> Float[Array, "b *s c"]:
        """Return the frame one time step after the newest input frame."""
        state = LatentState(z=self.encode(fields), t=jnp.zeros_like(cond.dt), cond=cond)
        return self.next_field(state)


class SteadySimulator(nn.Module):
    """Simulator of steady solutions, which maps input fields to the solution in one pass through the architecture.

    The last layer, `FieldExit`, computes the difference from the mean solution, which is 0 in normalised fields. This
    difference is zero at initialisation, so every solution is then exactly the mean.

    Attributes:
        latent: Patch size and number of features.
        dtype: Type in which the architecture's blocks compute; their inputs and outputs are float32.
        remat: Whether the backward pass recomputes the blocks.
        matmul_precision: Precision of float32 matrix products, see `ups_jax.models.layers.apply_model`.
    """

    task: Task
    latent: LatentConfig
    operator_config: OperatorConfig
    dtype: Any = jnp.float32
    remat: bool = False
    matmul_precision: str = "highest"

    @nn.compact
    def __call__(self, inputs: Float[Array, "b *s i"], cond: Conditions) -> Float[Array, "b *s c"]:
        grid = task_patches(self.task, self.latent)
        patches = grid.resample(grid.patchify(inputs))
        features = codec.PatchFeatures(self.task, self.latent, name="features")(patches)
        tokens = jnp.concatenate([patches, features], axis=-1)
        embedding = ConditionEmbedding(self.task, name="condition")(cond)
        architecture, width = build_architecture(self.operator_config, self.task.periodic, self.dtype, self.remat)
        hidden = architecture(Dense(width, name="entrance")(tokens), embedding)
        return grid.unpatchify(FieldExit(self.task, self.latent, name="field_exit")(hidden, patches))


def encode(model: Simulator, params: PyTree, fields: Float[Array, "b k *s c"]) -> Float[Array, "b n d"]:
    """Return the tokens of `k` input frames, normalised, oldest first."""
    return cast(Array, apply_model(model, params, fields, method="encode"))


def operate(model: Simulator, params: PyTree, state: LatentState) -> LatentState:
    """Return the latent state one time step later."""
    return cast(LatentState, apply_model(model, params, state, method="operate"))


def next_field(model: Simulator, params: PyTree, state: LatentState) -> Float[Array, "b *s c"]:
    """Return the normalised field one time step after the latent state."""
    return cast(Array, apply_model(model, params, state, method="next_field"))


def decode(
    model: Simulator, params: PyTree, z: Float[Array, "b n d"], query: Float[Array, "b q axes"] | None = None
) -> Float[Array, "b *s c"] | Float[Array, "b q c"]:
    """Return the newest frame held by the tokens `z`, on the grid or at `query` points in physical coordinates."""
    return cast(Array, apply_model(model, params, z, query, method="decode"))


def step(
    model: Simulator | PointSimulator, params: PyTree, fields: Float[Array, "b k *s c"], cond: Conditions
) -> Float[Array, "b *s c"]:
    """Return the normalised frame one time step after the newest input frame.

    On a grid the result equals decode(operate(encode(fields))).

    Args:
        fields: `k` input frames, normalised, oldest first.
    """
    return cast(Array, apply_model(model, params, fields, cond))


def steady_field(
    model: SteadySimulator, params: PyTree, inputs: Float[Array, "b *s i"], cond: Conditions
) -> Float[Array, "b *s c"]:
    """Return the normalised steady solution for normalised input fields."""
    return cast(Array, apply_model(model, params, inputs, cond))
