"""The latent state of a simulation and the conditions it runs under, as pytrees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Per sample: physical time step and PDE coefficients in physical units, mask 1 where a coefficient is known."""

    dt: Float[Array, " b"]
    coefficients: Float[Array, "b p"]
    mask: Float[Array, "b p"]


def conditions_of(batch: Mapping[str, Array | np.ndarray]) -> Conditions:
    """The conditions of a batch's rows."""
    dt, coefficients, mask = (jnp.asarray(batch[name]) for name in ("dt", "cond", "cond_mask"))
    return Conditions(dt=dt, coefficients=coefficients, mask=mask)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LatentState:
    """Tokens `z` at physical time `t`. A token is its patch of the newest frame followed by learned features."""

    z: Float[Array, "b n d"]
    t: Float[Array, " b"]
    cond: Conditions
