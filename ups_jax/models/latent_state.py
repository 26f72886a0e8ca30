"""The latent state of a simulation and the conditions it runs under, as pytrees."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from jaxtyping import Array, Float


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Per sample: physical time step and PDE coefficients in physical units, mask 1 where a coefficient is known."""

    dt: Float[Array, " b"]
    coefficients: Float[Array, "b p"]
    mask: Float[Array, "b p"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LatentState:
    """Tokens `z` at physical time `t`. A token is its patch of the newest frame followed by learned features."""

    z: Float[Array, "b n d"]
    t: Float[Array, " b"]
    cond: Conditions
