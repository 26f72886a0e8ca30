"""What a simulation is conditioned on, embedded once and felt by every block (after AdaLN-zero, Peebles & Xie 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ups_jax.core.task import Coefficient, Task
from ups_jax.models.batch import Batch
from ups_jax.models.layers import layer_dtype


class ConditionEmbedding(nn.Module):
    """Time step and coefficients -> one vector a sample. An unknown coefficient counts as its training mean.

    Time step and absence start without effect: where training never varies them, they never get one. Of several tasks
    each adds what marks it: its place among them and its boundaries, constants of the program that is its own.
    """

    task: Task
    features: int = 32

    @nn.compact
    def __call__(self, cond: Conditions) -> Float[Array, "b features"]:
        dtype = layer_dtype(jnp.float32, cond.dt)
        known = cond.mask.astype(dtype)
        values = [
            standardize(cond.coefficients[:, index], coefficient) * known[:, index]
            for index, coefficient in enumerate(self.task.coefficients)
        ]
        others = [jnp.log(cond.dt / (self.task.dt_unit or self.task.dt)), *(1 - known).T]
        x = nn.Dense(self.features, kernel_init=nn.initializers.zeros, dtype=dtype, name="others")(
            jnp.stack(others, axis=-1)
        )
        if values:
            x = x + nn.Dense(self.features, use_bias=False, dtype=dtype, name="values")(jnp.stack(values, axis=-1))
        if self.task.task_embedding:
            marks = jnp.asarray(self.task.task_embedding, dtype)[None]
            x = x + nn.Dense(self.features, use_bias=False, dtype=dtype, name="marks")(marks)
        return nn.silu(x)


class NoiseEmbedding(nn.Module):
    """The time of a flow, 0 noise and 1 data -> one vector a sample, of waves in the logarithm of signal over noise."""

    features: int = 32

    @nn.compact
    def __call__(self, time: Float[Array, " b"]) -> Float[Array, "b features"]:
        # Beyond a ratio of 1000 either way all times are as good as their end.
        ratio = jnp.log((time + 1e-3) / (1 - time + 1e-3))
        phases = ratio[:, None] * jnp.asarray([[0.25, 0.5, 1.0, 2.0]], jnp.float32)
        waves = jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=-1)
        return nn.silu(nn.Dense(self.features, dtype=jnp.float32, name="waves")(waves))


def modulation(
    x: Float[Array, "b *s c"], embedding: Float[Array, "b e"], *, dtype: Any = jnp.float32
) -> tuple[Float[Array, "b *s c"], Float[Array, "b *ones c"]]:
    """Scaled and shifted x and the gate of its residual branch, in the type of x; the identity and 1 at initialisation.

    Call it inside a compact module: it makes one Dense layer named `modulation`.
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
    """A coefficient on its scale, with the train split's mean 0 and std 1."""
    if coefficient.scale == "log10":
        # A masked entry may be 0; its value is multiplied away, so it only has to stay finite.
        values = jnp.log10(jnp.maximum(values, jnp.finfo(jnp.float32).tiny))
    return (values - coefficient.mean) / coefficient.std


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Where the points of a set lie, physical, with D = 0 where they move (their coordinates are channels then); 1 for
    those that are there; and the given fields at them, in their own units."""

    coords: Float[Array, "b p d"]
    mask: Float[Array, "b p"]
    inputs: Float[Array, "b p i"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Per sample: physical time step and PDE coefficients in physical units, mask 1 where a coefficient is known. Of a
    set of points its geometry as well."""

    dt: Float[Array, " b"]
    coefficients: Float[Array, "b p"]
    mask: Float[Array, "b p"]
    geometry: Geometry | None = None

    @property
    def points(self) -> Float[Array, "b p"] | None:
        """The mask of the points of a set; None of a grid, all of whose points count."""
        return None if self.geometry is None else self.geometry.mask


def conditions_of(batch: Batch) -> Conditions:
    """The conditions of a batch's rows."""
    dt, coefficients, mask = (jnp.asarray(values) for values in (batch.dt, batch.cond, batch.cond_mask))
    return Conditions(dt=dt, coefficients=coefficients, mask=mask, geometry=geometry_of(batch.arrays))


def geometry_of(batch: Mapping[str, Array | np.ndarray]) -> Geometry | None:
    """The geometry of a batch of points, None of one of grids."""
    if "point_mask" not in batch:
        return None
    coords, mask, given = (jnp.asarray(batch[name]) for name in ("coords", "point_mask", "inputs"))
    return Geometry(coords=coords, mask=mask, inputs=given)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LatentState:
    """Tokens `z` at physical time `t`. A token is its patch of the newest frame followed by learned features."""

    z: Float[Array, "b n d"]
    t: Float[Array, " b"]
    cond: Conditions
