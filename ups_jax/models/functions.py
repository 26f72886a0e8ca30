"""A simulator as pure functions of its parameters, on normalised fields."""

from __future__ import annotations

from typing import Any, cast

from jaxtyping import Array, Float

from ups_jax.models.latent_state import Conditions, LatentState
from ups_jax.models.point_simulator import PointSimulator
from ups_jax.models.products import apply
from ups_jax.models.simulator import Simulator
from ups_jax.models.steady import SteadySimulator


def encode(model: Simulator, params: Any, fields: Float[Array, "b k *s c"]) -> Float[Array, "b n d"]:
    """Tokens of the newest of `k` frames of context."""
    return cast(Array, apply(model, params, fields, method="encode"))


def operate(model: Simulator, params: Any, state: LatentState) -> LatentState:
    """The latent state one time step later."""
    return cast(LatentState, apply(model, params, state, method="operate"))


def next_field(model: Simulator, params: Any, state: LatentState) -> Float[Array, "b *s c"]:
    """The field of the latent state one time step later."""
    return cast(Array, apply(model, params, state, method="next_field"))


def decode(
    model: Simulator, params: Any, z: Float[Array, "b n d"], query: Float[Array, "b q axes"] | None = None
) -> Float[Array, "b *s c"] | Float[Array, "b q c"]:
    """The field on the grid, or at `query` points in physical coordinates."""
    return cast(Array, apply(model, params, z, query, method="decode"))


def step(
    model: Simulator | PointSimulator, params: Any, fields: Float[Array, "b k *s c"], cond: Conditions
) -> Float[Array, "b *s c"]:
    """The frame after the newest: decode(operate(encode(fields)))."""
    return cast(Array, apply(model, params, fields, cond))


def steady_field(
    model: SteadySimulator, params: Any, inputs: Float[Array, "b *s i"], cond: Conditions
) -> Float[Array, "b *s c"]:
    """The steady field that belongs to the given fields."""
    return cast(Array, apply(model, params, inputs, cond))
