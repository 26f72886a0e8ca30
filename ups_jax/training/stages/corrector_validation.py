"""Validation of correctors: errors of decoded fields with and without one, on trajectories that were not trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from ups_jax.config import Config
from ups_jax.core.stage_names import STAGE_NEEDS
from ups_jax.core.task import Task
from ups_jax.data import Dataset
from ups_jax.metrics.field import all_metrics
from ups_jax.models import (
    Batch,
    Conditions,
    Simulator,
    SteadySimulator,
    conditions_of,
    denormalize,
    normalize,
    normalize_inputs,
    steady_field,
    step,
)
from ups_jax.models.corrector import Corrector, CorrectorInputs, CorrectorWeights, solution_inputs, step_inputs
from ups_jax.rollout.autoregressive import rollout
from ups_jax.rollout.correction import Correction, every
from ups_jax.rollout.flow_sampler import Sampler, corrected, expected
from ups_jax.training.stages import operator, steady_prior
from ups_jax.training.stages.spec import StageModel

# A validation trajectory is met at so many of its frames, and followed from each for so many steps.
STARTS, STEPS = 4, 8
_NAMES = {"nrmse": "rollout", "fourier_rmse_high": "fourier_high"}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Held:
    """What is predicted from, the truth in physical units, and a key for the samples, which is always the same.

    Of a transient task `seen` are the frames of the context, of a steady one the given fields; both in physical units.
    """

    seen: Float[Array, "b ..."]
    truth: Float[Array, "b t *s c"]
    cond: Conditions
    key: Key[Array, ""]


def held_out(dataset: Dataset, cfg: Config) -> Held:
    """Pieces of up to `evaluation.val_trajectories` validation trajectories, or as many solutions."""
    task, held = dataset.task, dataset.trajectories("val", limit=cfg.evaluation.val_trajectories)
    fields = np.asarray(held.fields)
    context, frames = cfg.data.context, fields.shape[1]
    if task.kind == "steady":
        seen, truth, repeats = np.asarray(held.inputs), fields, 1
    else:
        steps = min(STEPS, frames - context)
        starts = np.unique(np.linspace(0, frames - context - steps, STARTS).round().astype(int))
        pieces = np.concatenate([fields[:, start : start + context + steps] for start in starts])
        seen, truth, repeats = pieces[:, :context], pieces[:, context:], len(starts)
    rows = Batch(
        dt=np.full(repeats * len(fields), task.dt, np.float32),
        cond=np.tile(held.cond, (repeats, 1)),
        cond_mask=np.tile(held.cond_mask, (repeats, 1)).astype(np.float32),
    )
    return Held(
        seen=jnp.asarray(seen),
        truth=jnp.asarray(truth),
        cond=conditions_of(rows),
        key=jax.random.fold_in(jax.random.key(cfg.seed), len(fields)),
    )


def corrected_metrics(
    model: Corrector,
    weights: CorrectorWeights,
    base: Simulator | SteadySimulator,
    params: PyTree,
    held: Held,
    sampler: Sampler = expected,
) -> dict[str, Float[Array, ""]]:
    """`one_step` and `rollout` nRMSE and `fourier_high` of short rollouts with the expected error taken out at every
    step, or what another `sampler` says; of steady solutions `steady`. The same of the predictor alone, as `alone/...`.
    """
    if isinstance(base, SteadySimulator):
        given, pred = predictions(base, params, held)
        found = {"": pred + sampler(model, weights, held.key, given), "alone/": pred}
        frames = {kind: denormalize(field, base.task.statistics)[:, None] for kind, field in found.items()}
        return {
            f"{kind}steady": all_metrics(field, held.truth, base.task)["nrmse"].mean() for kind, field in frames.items()
        }
    steps = held.truth.shape[1]
    held_noise = model.diffusion.fixed_noise
    correction = Correction(corrector=corrected(model, weights, sampler), when=every(1), held=held_noise)
    rolled = {
        "": rollout(base, params, held.seen, held.cond, steps, correction, held.key),
        "alone/": rollout(base, params, held.seen, held.cond, steps),
    }
    return {name: value for kind, frames in rolled.items() for name, value in _named(kind, frames, held, base.task)}


def predictions(
    base: Simulator | SteadySimulator, params: PyTree, held: Held
) -> tuple[CorrectorInputs, Float[Array, "b *s c"]]:
    """What a corrector is given of the first prediction, and that, normalised."""
    if isinstance(base, SteadySimulator):
        inputs = normalize_inputs(held.seen, base.task.inputs)
        pred = steady_field(base, params, inputs, held.cond)
        return solution_inputs(inputs, pred, held.cond), pred
    window = normalize(held.seen, base.task.statistics)
    pred = step(base, params, window, held.cond)
    return step_inputs(base.task, window, pred, held.cond), pred


def _named(kind: str, frames: Float[Array, "b t *s c"], held: Held, task: Task) -> list[tuple[str, Array]]:
    values = all_metrics(frames, held.truth, task)
    return [
        (f"{kind}one_step", values["nrmse"][:, 0].mean()),
        *((f"{kind}{name}", values[metric].mean()) for metric, name in _NAMES.items()),
    ]


_MODELS: dict[str, Callable[[Config, Task], StageModel]] = {
    "operator": operator.STAGE.model,
    "steady_prior": steady_prior.STAGE.model,
}


def predictor_stage(kind: str) -> str:
    """The stage that trains it, on a kind of task."""
    (name,) = STAGE_NEEDS[kind]["diffusion_residual"]
    return name


def predictor_model(cfg: Config, task: Task) -> Simulator | SteadySimulator:
    """Its model, as its own stage builds it."""
    return cast(Simulator | SteadySimulator, _MODELS[predictor_stage(task.kind)](cfg, task))
