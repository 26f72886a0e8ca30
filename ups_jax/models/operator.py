"""The latent operator, which computes the change of the newest frame from tokens by an architecture and a `FieldExit`.

The change is zero at initialisation, so an untrained operator is the identity.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ups_jax.config import LatentConfig, OperatorConfig
from ups_jax.core.task import Task
from ups_jax.models.codec import newest_patch_width
from ups_jax.models.conditioning import ConditionEmbedding, Conditions
from ups_jax.models.grid import GridConv, remove_mean, soft_clip
from ups_jax.models.layers import Dense
from ups_jax.models.patches import task_patches
from ups_jax.models.pdet import PdetStack, PdetUnet
from ups_jax.models.spectral import SpectralCore

# Largest increment, in standard deviations of one-step changes. It lies above the changes of all data sets and bounds
# those of a diverging rollout.
INCREMENT_LIMIT = 30.0

ArchitectureAndWidth = tuple[nn.Module, int]


class LatentOperator(nn.Module):
    """Map from tokens to the change of the newest frame's patches over one time step.

    The tokens are those of the codec after `ups_jax.models.codec.resample_patches`.
    """

    task: Task
    latent: LatentConfig
    config: OperatorConfig
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, tokens: Float[Array, "b *n d"], cond: Conditions) -> Float[Array, "b *n k"]:
        architecture, width = build_architecture(self.config, self.task.periodic, self.dtype, self.remat)
        embedding = ConditionEmbedding(self.task, name="condition")(cond)
        hidden = architecture(Dense(width, name="entrance")(tokens), embedding)
        newest = tokens[..., : newest_patch_width(self.task, self.latent)]
        return FieldExit(self.task, self.latent, name="field_exit")(hidden, newest)


def build_architecture(
    config: OperatorConfig, periodic: tuple[bool, ...] | None, dtype: DTypeLike, remat: bool = False
) -> ArchitectureAndWidth:
    """Return the configured architecture as a module, and the width of its tokens.

    Call this inside a compact module or `setup`, where the module gets the name `core`. The module's inputs, residuals
    and outputs are float32, because a time step changes the field by little and bfloat16 has only three digits.

    Args:
        periodic: For each axis of the tokens' grid, whether it is periodic; None if the tokens have no grid.
        dtype: Type of the matrix products in the blocks.
        remat: Whether the backward pass recomputes the blocks.

    Raises:
        ValueError: If the architecture needs a grid and `periodic` is None.
    """
    pdet, spectral = config.pdet, config.spectral
    if periodic is None:
        if config.architecture_type != "pdet_stack":
            raise ValueError(
                f"operator.architecture_type: {config.architecture_type} needs tokens on a grid; set it to pdet_stack"
            )
        return PdetStack(pdet, None, dtype, remat, name="core"), pdet.hidden_dim
    factories = {
        "spectral": lambda: (SpectralCore(spectral, periodic, dtype, remat, name="core"), spectral.hidden_dim),
        "pdet_unet": lambda: (PdetUnet(pdet, periodic, dtype, remat, name="core"), pdet.hidden_dim),
        "pdet_stack": lambda: (PdetStack(pdet, periodic, dtype, remat, name="core"), pdet.hidden_dim),
    }
    return factories[config.architecture_type]()


class FieldExit(nn.Module):
    """Change of a field's patches, computed from hidden tokens and their product with features of the input patches.

    The input patches hold the newest frame of a time step, or the input fields of a steady solution. The product can
    express transport terms such as u du/dx. The last layer's output is multiplied by the standard deviation of one-step
    changes. The spatial mean of conserved channels is removed, so that their integrals change only by round-off.
    """

    task: Task
    latent: LatentConfig

    @nn.compact
    def __call__(self, hidden: Float[Array, "b *n h"], patches: Float[Array, "b *n i"]) -> Float[Array, "b *n k"]:
        width, periodic = hidden.shape[-1], self.task.periodic
        local = GridConv(width, 3, periodic, name="local")(patches)
        product = Dense(width, name="mix")(hidden) * local
        features = jnp.concatenate([product, hidden], axis=-1)
        patch_width = newest_patch_width(self.task, self.latent)
        write = GridConv(patch_width, 3, periodic, kernel_init=nn.initializers.zeros, name="write")
        grid = task_patches(self.task, self.latent)
        increment = soft_clip(grid.project(write(features)), INCREMENT_LIMIT)
        statistics = self.task.statistics
        scale = [change / std for change, std in zip(statistics.delta_std, statistics.std, strict=True)]
        increment = increment * jnp.asarray(scale, increment.dtype).reshape((1,) * (increment.ndim - 1) + (-1,))
        return grid.patchify(remove_mean(increment, self.task.conserved))
