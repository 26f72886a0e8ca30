"""A corrector in a rollout: what it is given and at which steps it acts. Pure; the correctors are a stage's matter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ups_jax.models import Conditions

Window = Float[Array, "b k *s c"]
Frame = Float[Array, "b *s c"]

# Number of the step from 0, frames before it, the operator's prediction -> which samples are corrected.
When = Callable[[Int[Array, ""], Window, Frame, Conditions], Bool[Array, " b"]]
# What is left of an equation, or any other doubt about a prediction, one number a sample.
Residual = Callable[[Window, Frame, Conditions], Float[Array, " b"]]


@runtime_checkable
class Corrector(Protocol):
    """A better frame for the operator's, all in normalised units; random in `key` alone."""

    def __call__(
        self, key: Key[Array, ""], window: Float[Array, "b k *s c"], pred: Float[Array, "b *s c"], cond: Conditions
    ) -> Float[Array, "b *s c"]: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Correction:
    """A corrector and the steps at which it acts. Compared by identity: two of them are two compilations.

    With `held` it is given the same key at all steps of a rollout, so that what it draws is drawn once: errors of a
    model that is wrong in the same way at every step add up, and fresh noise would average out.
    """

    corrector: Corrector
    when: When
    held: bool = False


def every(steps: int) -> When:
    """At each `steps`-th step, the first time after `steps` of them. ValueError below 1."""
    if steps < 1:
        raise ValueError(f"a correction every {steps} steps; give 1 or more")

    def due(number: Int[Array, ""], window: Window, pred: Frame, cond: Conditions) -> Bool[Array, " b"]:
        return jnp.broadcast_to((number + 1) % steps == 0, pred.shape[:1])

    return due


def beyond(residual: Residual, threshold: float) -> When:
    """Where the residual of a sample is above `threshold`, or is not a number."""

    def due(number: Int[Array, ""], window: Window, pred: Frame, cond: Conditions) -> Bool[Array, " b"]:
        return ~(residual(window, pred, cond) <= threshold)

    return due


def both(one: When, other: When) -> When:
    """Where both say so."""

    def due(number: Int[Array, ""], window: Window, pred: Frame, cond: Conditions) -> Bool[Array, " b"]:
        return one(number, window, pred, cond) & other(number, window, pred, cond)

    return due


def corrected(
    correction: Correction,
    key: Key[Array, ""],
    number: Int[Array, ""],
    window: Float[Array, "b k *s c"],
    pred: Float[Array, "b *s c"],
    cond: Conditions,
) -> Float[Array, "b *s c"]:
    """The prediction of step `number`, corrected for the samples that are due; unless it is held the step's own key is
    folded from `key`.

    Where no sample is due the corrector is not run, unless `when` differs between the members of a vmapped ensemble.
    """
    due = correction.when(number, window, pred, cond)

    def act(pred: Frame) -> Frame:
        own = key if correction.held else jax.random.fold_in(key, number)
        better = correction.corrector(own, window, pred, cond)
        return jnp.where(due.reshape(-1, *(1,) * (pred.ndim - 1)), better, pred)

    return jax.lax.cond(due.any(), act, lambda pred: pred, pred)
