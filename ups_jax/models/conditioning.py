"""Conditions of a simulation (time step, coefficients, geometry), their embedding, and modulation by this embedding.

The modulation follows AdaLN-zero (Peebles & Xie 2023).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ups_jax.core.task import Coefficient, Task
from ups_jax.models.batch import Batch
from ups_jax.models.layers import layer_dtype


class ConditionEmbedding(nn.Module):
    """Embedding vector of the time step and the PDE coefficients of each sample.

    A missing coefficient is replaced by its mean over the training split. The weights of the time step and of the
    indicators of missing coefficients are initially zero, so these have no effect if training never varies them. A
    model of several tasks also adds an embedding of the task.
    """

    task: Task
    features: int = 32

    @nn.compact
    def __call__(self, cond: Conditions) -> Float[Array, "b features"]:
        dtype = layer_dtype(jnp.float32, cond.dt)
        is_present = cond.mask.astype(dtype)
        values = [
            standardize(cond.coefficients[:, index], coefficient) * is_present[:, index]
            for index, coefficient in enumerate(self.task.coefficients)
        ]
        step_and_missing = [jnp.log(cond.dt / (self.task.dt_unit or self.task.dt)), *(1 - is_present).T]
        x = nn.Dense(self.features, kernel_init=nn.initializers.zeros, dtype=dtype, name="others")(
            jnp.stack(step_and_missing, axis=-1)
        )
        if values:
            x = x + nn.Dense(self.features, use_bias=False, dtype=dtype, name="values")(jnp.stack(values, axis=-1))
        if self.task.task_embedding:
            task_embedding = jnp.asarray(self.task.task_embedding, dtype)[None]
            x = x + nn.Dense(self.features, use_bias=False, dtype=dtype, name="marks")(task_embedding)
        return nn.silu(x)


class NoiseEmbedding(nn.Module):
    """Embedding of the time of a flow (0 is noise, 1 is data): sines and cosines of the log signal-to-noise ratio."""

    features: int = 32

    @nn.compact
    def __call__(self, time: Float[Array, " b"]) -> Float[Array, "b features"]:
        # The offsets limit the ratio to 1/1000..1000; more extreme times do not differ in practice.
        ratio = jnp.log((time + 1e-3) / (1 - time + 1e-3))
        phases = ratio[:, None] * jnp.asarray([[0.25, 0.5, 1.0, 2.0]], jnp.float32)
        waves = jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=-1)
        return nn.silu(nn.Dense(self.features, dtype=jnp.float32, name="waves")(waves))


def modulate_and_gate(
    x: Float[Array, "b *s c"], embedding: Float[Array, "b e"], *, dtype: DTypeLike = jnp.float32
) -> tuple[Float[Array, "b *s c"], Float[Array, "b *ones c"]]:
    """Return `x`, scaled and shifted by functions of the embedding, and a gate to multiply the residual branch by.

    Initially `x` is unchanged and the gate is 1. Call this in a compact module; a Dense layer `modulation` is added.

    Args:
        x: Input of a residual branch.
        dtype: Type in which the Dense layer computes; both results have the type of `x`.
    """
    width = x.shape[-1]
    dense = nn.Dense(
        3 * width, kernel_init=nn.initializers.zeros, dtype=layer_dtype(dtype, embedding), name="modulation"
    )
    values = dense(embedding)
    values = values.reshape(values.shape[0], *(1,) * (x.ndim - 2), 3 * width).astype(x.dtype)
    scale, shift, gate = jnp.split(values, 3, axis=-1)
    return x * (1 + scale) + shift, 1 + gate


def standardize(values: Float[Array, " b"], coefficient: Coefficient) -> Float[Array, " b"]:
    """Return coefficient values (or their log10), shifted and scaled to mean 0 and std 1 on the training split.

    The result does not depend on the unit of the coefficient: values are scaled before the logarithm or the difference,
    so that neither the rounding of a large logarithm nor a difference below the range of float32 enters it.
    """
    if coefficient.scale == "log10":
        ratio = values * 10.0**-coefficient.mean
        # A missing coefficient may be 0. It is multiplied by 0 afterwards, so it only has to be finite here.
        return jnp.log10(jnp.maximum(ratio, jnp.finfo(jnp.float32).tiny)) / coefficient.std
    # A power of two, near the square root of 1 / std: nothing is rounded or leaves the range of float32.
    unit = 2.0 ** (-math.frexp(coefficient.std)[1] // 2)
    return (values * unit - coefficient.mean * unit) / (coefficient.std * unit)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Points of a batch of point sets, which are padded to the same number of points.

    Attributes:
        coords: Physical coordinates of the points. If the points move, their coordinates are channels of the fields and
            d is 0.
        mask: 1 for each point that is present, 0 for padding.
        inputs: Input fields at the points, in physical units.
    """

    coords: Float[Array, "b p d"]
    mask: Float[Array, "b p"]
    inputs: Float[Array, "b p i"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Time step, PDE coefficients and, for point sets, geometry of each sample of a batch.

    Attributes:
        dt: Physical time step.
        coefficients: PDE coefficients in physical units.
        mask: 1 for each coefficient that is present, 0 for missing ones.
        geometry: Geometry of the points; None on a grid.
    """

    dt: Float[Array, " b"]
    coefficients: Float[Array, "b p"]
    mask: Float[Array, "b p"]
    geometry: Geometry | None = None

    @property
    def point_mask(self) -> Float[Array, "b p"] | None:
        """Return the mask of a point set, 1 for present points and 0 for padding, or None on a grid."""
        return None if self.geometry is None else self.geometry.mask


def conditions_of(batch: Batch) -> Conditions:
    """Return the time step, coefficients and geometry of each row of a batch."""
    dt, coefficients, mask = (jnp.asarray(values) for values in (batch.dt, batch.cond, batch.cond_mask))
    return Conditions(dt=dt, coefficients=coefficients, mask=mask, geometry=geometry_of(batch.arrays))


def geometry_of(arrays: Mapping[str, Array | np.ndarray]) -> Geometry | None:
    """Return the geometry of a batch of point sets, or None if the batch is on a grid.

    Args:
        arrays: Arrays of the batch by name; point sets have `coords`, `point_mask` and `inputs`.
    """
    if "point_mask" not in arrays:
        return None
    coords, mask, inputs = (jnp.asarray(arrays[name]) for name in ("coords", "point_mask", "inputs"))
    return Geometry(coords=coords, mask=mask, inputs=inputs)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LatentState:
    """Latent state of a simulation: tokens, physical time and conditions.

    Attributes:
        z: Tokens; on a grid a token holds patches of the input frames, newest first, followed by learned features.
    """

    z: Float[Array, "b n d"]
    t: Float[Array, " b"]
    cond: Conditions
