"""Reduction of the learning rate when the validation metric stops improving, as in torch's ReduceLROnPlateau.

The scale of the learning rate is part of the optimizer's state, so that checkpoints contain it. A train step only reads
the scale; an evaluation updates it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree


class PlateauState(NamedTuple):
    """The state of the learning-rate reduction.

    Attributes:
        scale: Factor by which the learning rate is multiplied.
        best: Lowest validation metric.
        bad: Number of evaluations without improvement since the lowest metric or the last reduction.
    """

    scale: Float[Array, ""]
    best: Float[Array, ""]
    bad: Int[Array, ""]


@dataclass(frozen=True, kw_only=True)
class PlateauRule:
    """The rule of the learning-rate reduction.

    Attributes:
        factor: Factor by which a reduction multiplies the scale.
        patience: Number of consecutive evaluations without improvement that causes a reduction.
        threshold: An improvement is a metric below (1 - threshold) times the lowest metric.
        floor: Lowest value of the scale.
    """

    factor: float
    patience: int
    threshold: float
    floor: float


def scale_by_plateau() -> optax.GradientTransformation:
    """Return the transformation that multiplies updates by the scale in its state."""

    def init(params: PyTree) -> PlateauState:
        del params
        return PlateauState(
            scale=jnp.ones((), jnp.float32), best=jnp.full((), jnp.inf, jnp.float32), bad=jnp.zeros((), jnp.int32)
        )

    def update(updates: PyTree, state: PlateauState, params: PyTree | None = None) -> tuple[PyTree, PlateauState]:
        del params
        return jax.tree.map(lambda leaf: (state.scale * leaf).astype(leaf.dtype), updates), state

    return optax.GradientTransformation(init, update)


def next_plateau_state(state: PlateauState, metric: Float[Array, ""] | float, rule: PlateauRule) -> PlateauState:
    """Return the state of the learning-rate reduction after an evaluation.

    The semantics are those of torch's ReduceLROnPlateau with mode `min`, relative threshold and no cooldown. A NaN
    metric counts as no improvement.

    Args:
        state: State before the evaluation.
        metric: Validation metric, lower is better.
        rule: Rule of the reduction.
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
    """Return the state of an optimizer, with its `PlateauState` updated after an evaluation.

    Args:
        metric: Validation metric, lower is better.
        rule: Rule of the reduction; None leaves the state unchanged.
    """
    if rule is None:
        return opt_state
    return optax.tree.set(
        opt_state, PlateauState=next_plateau_state(optax.tree.get(opt_state, "PlateauState"), metric, rule)
    )


def plateau_scale(opt_state: optax.OptState) -> float:
    """Return `PlateauState.scale` in an optimizer's state; 1 if this contains no `PlateauState`."""
    state = optax.tree.get(opt_state, "PlateauState")
    return 1.0 if state is None else float(state.scale)
