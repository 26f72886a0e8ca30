"""The latent operator: a core works on the tokens, an exit writes the increment of the field that they carry.

The exit starts at zero, so an untrained operator is the identity; no norm is laid on the increment.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ups_jax.config import LatentConfig, OperatorConfig
from ups_jax.core.task import Task
from ups_jax.models.codec import newest_patch_width
from ups_jax.models.conditioning import ConditionEmbedding, Conditions
from ups_jax.models.grid import GridConv, patch_shape, patchify, remove_mean, soft_clip, unpatchify
from ups_jax.models.layers import Dense
from ups_jax.models.pdet import PdetStack, PdetUnet
from ups_jax.models.spectral import SpectralCore

# In standard deviations of a frame's change: no frame of any data set changes by as much, no rollout gone astray may.
INCREMENT_LIMIT = 30.0


class LatentOperator(nn.Module):
    """Tokens -> increment of their patches of the newest frame over the time step of the conditions."""

    task: Task
    latent: LatentConfig
    config: OperatorConfig
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, tokens: Float[Array, "b *n d"], cond: Conditions) -> Float[Array, "b *n k"]:
        core, width = build_architecture(self.config, self.task.periodic, self.dtype, self.remat)
        embedding = ConditionEmbedding(self.task, name="condition")(cond)
        hidden = core(Dense(width, name="entrance")(tokens), embedding)
        newest = tokens[..., : newest_patch_width(self.task, self.latent)]
        return FieldExit(self.task, self.latent, name="field_exit")(hidden, newest)


def build_architecture(
    config: OperatorConfig, periodic: tuple[bool, ...] | None, dtype: Any, remat: bool = False
) -> tuple[nn.Module, int]:
    """The core that advances tokens on their grid, and its width; without a grid `periodic` is None, and ValueError is
    raised for a core that needs one.

    Products are in `dtype`; what comes in, the residuals and what goes out are float32, because a step changes the
    field by little and bfloat16 knows three digits. With `remat` its blocks are computed again for the gradient.
    Call it inside a compact module: it makes one module named `core`.
    """
    pdet, spectral = config.pdet, config.spectral
    if periodic is None:
        if config.architecture_type != "pdet_stack":
            raise ValueError(f"{config.architecture_type} needs a grid, and the tokens have none")
        return PdetStack(pdet, None, dtype, remat, name="core"), pdet.hidden_dim
    make = {
        "spectral": lambda: (SpectralCore(spectral, periodic, dtype, remat, name="core"), spectral.hidden_dim),
        "pdet_unet": lambda: (PdetUnet(pdet, periodic, dtype, remat, name="core"), pdet.hidden_dim),
        "pdet_stack": lambda: (PdetStack(pdet, periodic, dtype, remat, name="core"), pdet.hidden_dim),
    }
    return make[config.architecture_type]()


class FieldExit(nn.Module):
    """Increment of the carried field, from the hidden tokens times features of the patches `seen`, and its neighbours.

    A time step sees the carried field: the product lets it transport what the core has found, the way u du/dx does.
    Written in units of one-step differences; the spatial mean of conserved channels is taken out, which keeps their
    integral to round-off.
    """

    task: Task
    latent: LatentConfig

    @nn.compact
    def __call__(self, hidden: Float[Array, "b *n h"], seen: Float[Array, "b *n i"]) -> Float[Array, "b *n k"]:
        width, periodic = hidden.shape[-1], self.task.periodic
        local = GridConv(width, 3, periodic, name="local")(seen)
        product = Dense(width, name="mix")(hidden) * local
        both = jnp.concatenate([product, hidden], axis=-1)
        carried = newest_patch_width(self.task, self.latent)
        write = GridConv(carried, 3, periodic, kernel_init=nn.initializers.zeros, name="write")
        patch = patch_shape(self.task.shape, self.latent.patch_size)
        increment = soft_clip(unpatchify(write(both), patch), INCREMENT_LIMIT)
        statistics = self.task.statistics
        scale = [change / std for change, std in zip(statistics.delta_std, statistics.std, strict=True)]
        increment = increment * jnp.asarray(scale, increment.dtype).reshape((1,) * (increment.ndim - 1) + (-1,))
        return patchify(remove_mean(increment, self.task.conserved), patch)
