"""What a simulation is conditioned on, embedded once and felt by every block (after AdaLN-zero, Peebles & Xie 2023)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ups_jax.models.latent_state import Conditions
from ups_jax.task import Coefficient, Task


class ConditionEmbedding(nn.Module):
    """Time step and coefficients -> one vector a sample. An unknown coefficient is zero with its mask zero."""

    task: Task
    features: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, cond: Conditions) -> Float[Array, "b features"]:
        known = cond.mask.astype(jnp.float32)
        columns = [jnp.log(cond.dt / self.task.dt)]
        for index, coefficient in enumerate(self.task.coefficients):
            columns.append(standardize(cond.coefficients[:, index], coefficient) * known[:, index])
            columns.append(known[:, index])
        x = jnp.stack(columns, axis=-1)
        return nn.silu(nn.Dense(self.features, dtype=self.dtype)(x))


def modulation(
    x: Float[Array, "b *s c"], embedding: Float[Array, "b e"], *, dtype: Any = jnp.float32
) -> tuple[Float[Array, "b *s c"], Float[Array, "b *s c"]]:
    """Scaled and shifted x, and the gate of its residual branch; the identity and 1 at initialisation.

    Call it inside a compact module: it makes one Dense layer named `modulation`.
    """
    width = x.shape[-1]
    values = nn.Dense(3 * width, kernel_init=nn.initializers.zeros, dtype=dtype, name="modulation")(embedding)
    values = values.reshape(values.shape[0], *(1,) * (x.ndim - 2), 3 * width)
    scale, shift, gate = jnp.split(values, 3, axis=-1)
    return x * (1 + scale) + shift, 1 + gate


def standardize(values: Float[Array, " b"], coefficient: Coefficient) -> Float[Array, " b"]:
    """A coefficient on its scale, with the train split's mean 0 and std 1."""
    if coefficient.scale == "log10":
        # A masked entry may be 0; its value is multiplied away, so it only has to stay finite.
        values = jnp.log10(jnp.maximum(values, jnp.finfo(jnp.float32).tiny))
    return (values - coefficient.mean) / coefficient.std
