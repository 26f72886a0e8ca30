"""The latent operator: a core advances the tokens, an exit writes the increment of field and features.

The exit starts at zero, so an untrained operator is the identity; no norm is laid on the increment.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ups_jax.config import LatentConfig, OperatorConfig
from ups_jax.models.codec import carried_width, decode_grid, to_grid
from ups_jax.models.conditioning import ConditionEmbedding
from ups_jax.models.grid import GridConv, patch_of, patchify, unpatchify
from ups_jax.models.latent_state import Conditions
from ups_jax.models.pdet import PdetStack, PdetUnet
from ups_jax.models.spectral import SpectralCore
from ups_jax.task import Task


class LatentOperator(nn.Module):
    """z -> z + increment over the time step of the conditions."""

    task: Task
    latent: LatentConfig
    config: OperatorConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Float[Array, "b n d"], cond: Conditions) -> Float[Array, "b n d"]:
        core, width = self._core()
        embedding = ConditionEmbedding(self.task, width, dtype=self.dtype, name="condition")(cond)
        tokens = to_grid(z, self.task, self.latent).astype(self.dtype)
        hidden = core(nn.Dense(width, dtype=self.dtype, name="entrance")(tokens), embedding)
        field = FieldExit(self.task, self.latent, self.dtype, name="field_exit")(
            hidden, decode_grid(z, self.task, self.latent)
        )
        features = nn.Dense(self.latent.dim, kernel_init=nn.initializers.zeros, name="feature_exit")(
            hidden.astype(jnp.float32)
        )
        increment = jnp.concatenate([patchify(field, patch_of(self.task.shape, self.latent.patch_size)), features], -1)
        return z + increment.reshape(z.shape)

    def _core(self) -> tuple[nn.Module, int]:
        pdet, spectral = self.config.pdet, self.config.spectral
        make = {
            "spectral": lambda: (
                SpectralCore(spectral, self.task.periodic, self.dtype, name="core"),
                spectral.hidden_dim,
            ),
            "pdet_unet": lambda: (PdetUnet(pdet, self.task.periodic, self.dtype, name="core"), pdet.hidden_dim),
            "pdet_stack": lambda: (PdetStack(pdet, self.task.periodic, self.dtype, name="core"), pdet.hidden_dim),
        }
        return make[self.config.architecture_type]()


class FieldExit(nn.Module):
    """Increment of the field at full resolution, from the upsampled tokens and the field itself.

    In units of one-step differences; the spatial mean of conserved channels is taken out, which keeps their integral
    to round-off.
    """

    task: Task
    latent: LatentConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, hidden: Float[Array, "b *n h"], field: Float[Array, "b *s c"]) -> Float[Array, "b *s c"]:
        patch = patch_of(self.task.shape, self.latent.patch_size)
        width = self.latent.head_width
        wide = nn.Dense(width * carried_width(self.task, self.latent) // field.shape[-1], dtype=self.dtype)(hidden)
        x = jnp.concatenate([unpatchify(wide, patch), field.astype(self.dtype)], axis=-1)
        x = nn.gelu(GridConv(width, 5, self.task.periodic, dtype=self.dtype)(x))
        increment = GridConv(field.shape[-1], 5, self.task.periodic, kernel_init=nn.initializers.zeros)(
            x.astype(jnp.float32)
        )
        statistics = self.task.statistics
        scale = [change / std for change, std in zip(statistics.delta_std, statistics.std, strict=True)]
        increment = increment * jnp.asarray(scale, jnp.float32).reshape((1,) * (increment.ndim - 1) + (-1,))
        axes = tuple(range(1, increment.ndim - 1))
        kept = jnp.asarray([channel in self.task.conserved for channel in range(increment.shape[-1])])
        return increment - jnp.where(kept, increment.mean(axes, keepdims=True), 0.0)
