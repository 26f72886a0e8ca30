"""The steady simulator: given fields of a steady task to its solution, as one linen module on normalised fields."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ups_jax.config import LatentConfig, OperatorConfig
from ups_jax.core.task import Task
from ups_jax.models.codec import PatchFeatures
from ups_jax.models.conditioning import ConditionEmbedding, Conditions
from ups_jax.models.grid import patch_of, patchify, unpatchify
from ups_jax.models.layers import Dense
from ups_jax.models.operator import FieldExit, core_of


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
    products: str = "highest"

    @nn.compact
    def __call__(self, inputs: Float[Array, "b *s i"], cond: Conditions) -> Float[Array, "b *s c"]:
        patch = patch_of(self.task.shape, self.latent.patch_size)
        given = patchify(inputs, patch)
        features = PatchFeatures(self.task, self.latent, name="features")(given)
        tokens = jnp.concatenate([given, features], axis=-1)
        embedding = ConditionEmbedding(self.task, name="condition")(cond)
        core, width = core_of(self.operator_config, self.task.periodic, self.dtype, self.remat)
        hidden = core(Dense(width, name="entrance")(tokens), embedding)
        return unpatchify(FieldExit(self.task, self.latent, name="field_exit")(hidden, given), patch)
