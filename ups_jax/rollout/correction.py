"""Corrections of a rollout: the interface of step correctors, and rules that select the steps and samples to correct.

The correctors themselves are in `ups_jax.rollout.flow_sampler`.
"""

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

# (step number from 0, preceding frames, operator's prediction, conditions) -> mask of the samples to correct.
CorrectionRule = Callable[[Int[Array, ""], Window, Frame, Conditions], Bool[Array, " b"]]
# (preceding frames, prediction, conditions) -> a non-negative measure of doubt per sample, such as a PDE residual.
ResidualFn = Callable[[Window, Frame, Conditions], Float[Array, " b"]]


@runtime_checkable
class StepCorrector(Protocol):
    """A function that returns a better prediction of a step than the operator's prediction `pred`.

    All fields are normalised. Calls with the same `key` draw the same noise.
    """

    def __call__(
        self, key: Key[Array, ""], window: Float[Array, "b k *s c"], pred: Float[Array, "b *s c"], cond: Conditions
    ) -> Float[Array, "b *s c"]: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Correction:
    """A step corrector and the steps of a rollout at which it is applied.

    Corrections are compared by identity: a jitted function is compiled once for each object.

    Attributes:
        corrector: Corrector of a single step.
        when: Rule that selects the steps and samples to correct.
        fixed_noise: Use the same key, and so the same noise, at all steps of a rollout. The sampled errors then add up,
            as the model's errors do if they are similar at every step; with fresh noise they would average out.
    """

    corrector: StepCorrector
    when: CorrectionRule
    fixed_noise: bool = False


def every_n(steps: int) -> CorrectionRule:
    """Return the rule that corrects all samples at every `steps`-th step, first at step number `steps - 1`.

    Raises:
        ValueError: `steps` is below 1.
    """
    if steps < 1:
        raise ValueError(f"the interval between corrections must be at least 1 step, got {steps}")

    def is_selected(step_number: Int[Array, ""], window: Window, pred: Frame, cond: Conditions) -> Bool[Array, " b"]:
        return jnp.broadcast_to((step_number + 1) % steps == 0, pred.shape[:1])

    return is_selected


def above(residual: ResidualFn, threshold: float) -> CorrectionRule:
    """Return the rule that corrects the samples whose residual is above `threshold` or NaN, at any step."""

    def is_selected(step_number: Int[Array, ""], window: Window, pred: Frame, cond: Conditions) -> Bool[Array, " b"]:
        return ~(residual(window, pred, cond) <= threshold)

    return is_selected


def logical_and(first: CorrectionRule, second: CorrectionRule) -> CorrectionRule:
    """Return the rule that corrects the samples that both rules select."""

    def is_selected(step_number: Int[Array, ""], window: Window, pred: Frame, cond: Conditions) -> Bool[Array, " b"]:
        return first(step_number, window, pred, cond) & second(step_number, window, pred, cond)

    return is_selected


def apply_correction(
    correction: Correction,
    key: Key[Array, ""],
    step_number: Int[Array, ""],
    window: Float[Array, "b k *s c"],
    pred: Float[Array, "b *s c"],
    cond: Conditions,
) -> Float[Array, "b *s c"]:
    """Return the prediction of a step, corrected in the samples that the rule selects.

    The corrector does not run if no sample is selected, unless `jax.vmap` maps over an input of the rule.

    Args:
        correction: Corrector and rule.
        key: Key of the rollout; the step number is folded in unless `correction.fixed_noise`.
        step_number: Number of the step, from 0.
        window: Normalised frames before the step.
        pred: Normalised prediction of the operator.
    """
    selected = correction.when(step_number, window, pred, cond)

    def correct(pred: Frame) -> Frame:
        step_key = key if correction.fixed_noise else jax.random.fold_in(key, step_number)
        better = correction.corrector(step_key, window, pred, cond)
        return jnp.where(selected.reshape(-1, *(1,) * (pred.ndim - 1)), better, pred)

    return jax.lax.cond(selected.any(), correct, lambda pred: pred, pred)
