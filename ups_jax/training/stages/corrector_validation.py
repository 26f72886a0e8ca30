"""Validation of correctors: errors of the fields with and without correction, on the validation split."""

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
from ups_jax.rollout.correction import Correction, every_n
from ups_jax.rollout.flow_sampler import Sampler, mean_error, step_corrector
from ups_jax.training.stages import operator, steady_prior
from ups_jax.training.stages.spec import StageModel

# Number of start frames in a validation trajectory, and steps of the rollout from each.
STARTS, STEPS = 4, 8
# Logged names of the metrics of rollouts.
_NAMES = {"nrmse": "rollout", "fourier_rmse_high": "fourier_high"}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ValidationPieces:
    """The starts of short validation rollouts with the truth.

    Attributes:
        inputs: Context frames of a transient task, input fields of a steady task, in physical units.
        truth: True frames after the context, or true solutions as a single frame, in physical units.
        cond: Conditions of the samples.
        key: Key of the corrector's noise, the same in every validation.
    """

    inputs: Float[Array, "b ..."]
    truth: Float[Array, "b t *s c"]
    cond: Conditions
    key: Key[Array, ""]


def validation_pieces(dataset: Dataset, cfg: Config) -> ValidationPieces:
    """Return pieces of up to `evaluation.val_trajectories` validation trajectories, or that number of solutions."""
    task, trajectories = dataset.task, dataset.trajectories("val", limit=cfg.evaluation.val_trajectories)
    fields = np.asarray(trajectories.fields)
    context, frames = cfg.data.context, fields.shape[1]
    if task.kind == "steady":
        inputs, truth, repeats = np.asarray(trajectories.inputs), fields, 1
    else:
        steps = min(STEPS, frames - context)
        starts = np.unique(np.linspace(0, frames - context - steps, STARTS).round().astype(int))
        pieces = np.concatenate([fields[:, start : start + context + steps] for start in starts])
        inputs, truth, repeats = pieces[:, :context], pieces[:, context:], len(starts)
    rows = Batch(
        dt=np.full(repeats * len(fields), task.dt, np.float32),
        cond=np.tile(trajectories.cond, (repeats, 1)),
        cond_mask=np.tile(trajectories.cond_mask, (repeats, 1)).astype(np.float32),
    )
    return ValidationPieces(
        inputs=jnp.asarray(inputs),
        truth=jnp.asarray(truth),
        cond=conditions_of(rows),
        key=jax.random.fold_in(jax.random.key(cfg.seed), len(fields)),
    )


def corrected_metrics(
    model: Corrector,
    weights: CorrectorWeights,
    base: Simulator | SteadySimulator,
    params: PyTree,
    pieces: ValidationPieces,
    sampler: Sampler = mean_error,
) -> dict[str, Float[Array, ""]]:
    """Return the errors of the corrected predictions, and those of the predictor alone with the prefix `alone/`.

    Transient tasks have the nRMSE of the first step (`one_step`) and of short rollouts (`rollout`), and the rollouts'
    error at high wavenumbers (`fourier_high`). Steady tasks have the nRMSE of the solutions (`steady`).

    Args:
        model: Corrector.
        weights: Its weights.
        base: Predictor.
        params: Parameters of the predictor.
        pieces: Starts and truth.
        sampler: Error to add at every step, by default the mean error.
    """
    if isinstance(base, SteadySimulator):
        inputs, pred = first_prediction(base, params, pieces)
        solutions = {"": pred + sampler(model, weights, pieces.key, inputs), "alone/": pred}
        frames = {prefix: denormalize(field, base.task.statistics)[:, None] for prefix, field in solutions.items()}
        return {
            f"{prefix}steady": all_metrics(field, pieces.truth, base.task)["nrmse"].mean()
            for prefix, field in frames.items()
        }
    steps = pieces.truth.shape[1]
    fixed_noise = model.diffusion.fixed_noise
    correction = Correction(corrector=step_corrector(model, weights, sampler), when=every_n(1), fixed_noise=fixed_noise)
    rollouts = {
        "": rollout(base, params, pieces.inputs, pieces.cond, steps, correction, pieces.key),
        "alone/": rollout(base, params, pieces.inputs, pieces.cond, steps),
    }
    return {
        name: value
        for prefix, frames in rollouts.items()
        for name, value in _rollout_metrics(prefix, frames, pieces, base.task)
    }


def first_prediction(
    base: Simulator | SteadySimulator, params: PyTree, pieces: ValidationPieces
) -> tuple[CorrectorInputs, Float[Array, "b *s c"]]:
    """Return the inputs of the corrector for the first prediction, and that prediction, normalised."""
    if isinstance(base, SteadySimulator):
        inputs = normalize_inputs(pieces.inputs, base.task.inputs)
        pred = steady_field(base, params, inputs, pieces.cond)
        return solution_inputs(inputs, pred, pieces.cond), pred
    window = normalize(pieces.inputs, base.task.statistics)
    pred = step(base, params, window, pieces.cond)
    return step_inputs(base.task, window, pred, pieces.cond), pred


def _rollout_metrics(
    prefix: str, frames: Float[Array, "b t *s c"], pieces: ValidationPieces, task: Task
) -> list[tuple[str, Array]]:
    """Return the mean metrics of rollouts by name, with a prefix."""
    values = all_metrics(frames, pieces.truth, task)
    return [
        (f"{prefix}one_step", values["nrmse"][:, 0].mean()),
        *((f"{prefix}{name}", values[metric].mean()) for metric, name in _NAMES.items()),
    ]


_MODELS: dict[str, Callable[[Config, Task], StageModel]] = {
    "operator": operator.STAGE.model,
    "steady_prior": steady_prior.STAGE.model,
}


def predictor_stage(kind: str) -> str:
    """Return the name of the stage that trains the predictor for a kind of task."""
    (name,) = STAGE_NEEDS[kind]["diffusion_residual"]
    return name


def predictor_model(cfg: Config, task: Task) -> Simulator | SteadySimulator:
    """Return the model of the predictor of a task."""
    return cast(Simulator | SteadySimulator, _MODELS[predictor_stage(task.kind)](cfg, task))
