"""Reduce on plateau: a scale of the learning rate that falls when the validation metric stops getting better.

The scale stands last in the optimizer's chain and its numbers are a part of the optimizer's state, so that they are
saved with it and a run without this schedule has none. A step only reads them; an evaluation moves them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


class PlateauState(NamedTuple):
    """The scale of the learning rate, the best metric, and the evaluations since then or since the last reduction."""

    scale: Float[Array, ""]
    best: Float[Array, ""]
    bad: Int[Array, ""]


@dataclass(frozen=True, kw_only=True)
class PlateauRule:
    """`bad` evaluations not below (1 - `threshold`) * best in a row multiply the scale by `factor`, down to `floor`."""

    factor: float
    patience: int
    threshold: float
    floor: float


def scale_by_plateau() -> optax.GradientTransformation:
    """Updates times the scale that `observe` has left in the state."""

    def init(params: Any) -> PlateauState:
        del params
        return PlateauState(
            scale=jnp.ones((), jnp.float32), best=jnp.full((), jnp.inf, jnp.float32), bad=jnp.zeros((), jnp.int32)
        )

    def update(updates: Any, state: PlateauState, params: Any = None) -> tuple[Any, PlateauState]:
        del params
        return jax.tree.map(lambda leaf: (state.scale * leaf).astype(leaf.dtype), updates), state

    return optax.GradientTransformation(init, update)


def updated_plateau(state: PlateauState, metric: Float[Array, ""] | float, rule: PlateauRule) -> PlateauState:
    """The state after an evaluation, as torch's ReduceLROnPlateau has it (mode min, relative threshold, no cooldown).

    A metric that is not finite is no better than the best.
    """
    better = jnp.asarray(metric, jnp.float32) < state.best * (1 - rule.threshold)
    bad = jnp.where(better, 0, state.bad + 1)
    reduce = bad >= rule.patience
    return PlateauState(
        scale=jnp.where(reduce, jnp.maximum(state.scale * rule.factor, min(rule.floor, 1.0)), state.scale),
        best=jnp.where(better, jnp.asarray(metric, jnp.float32), state.best),
        bad=jnp.where(reduce, 0, bad).astype(jnp.int32),
    )


def update_plateau(opt_state: optax.OptState, metric: float, rule: PlateauRule | None) -> optax.OptState:
    """`observe` on the plateau of an optimizer's state; the state as it is where no such schedule is on."""
    if rule is None:
        return opt_state
    return optax.tree.set(opt_state, PlateauState=updated_plateau(optax.tree.get(opt_state, "PlateauState"), metric, rule))


def plateau_scale(opt_state: optax.OptState) -> float:
    """The scale of the learning rate in an optimizer's state, 1 where no such schedule is on."""
    state = optax.tree.get(opt_state, "PlateauState")
    return 1.0 if state is None else float(state.scale)
