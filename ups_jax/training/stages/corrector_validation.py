"""Validation of correctors: errors of predictions with and without correction, on the validation split."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from ups_jax.config import Config
from ups_jax.core.stage_names import STAGE_NEEDS
from ups_jax.core.task import Task
from ups_jax.data import Dataset
from ups_jax.data.dataset import StoredTrajectories
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
from ups_jax.training.stages.validation_groups import validation_groups

# Number of start frames in a validation trajectory, and steps of the rollout from each.
STARTS, STEPS = 4, 8
# Logged names of the metrics of rollouts.
_NAMES = {"nrmse": "rollout", "fourier_rmse_high": "fourier_high"}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ValidationSegments:
    """Short segments of validation trajectories: inputs of the predictor, and the truth that follows.

    Attributes:
        inputs: Context frames of a transient task, input fields of a steady task, in physical units.
        truth: True frames after the context, or true solutions as a single frame, in physical units.
        cond: Time step and PDE coefficients of each segment.
        key: Key of the corrector's noise, the same in every validation.
    """

    inputs: Float[Array, "b ..."]
    truth: Float[Array, "b t *s c"]
    cond: Conditions
    key: Key[Array, ""]


def validation_segments(dataset: Dataset, cfg: Config) -> Callable[[], Iterable[ValidationSegments]]:
    """Return a function that returns the segments of `evaluation.val_trajectories` validation trajectories, in groups.

    The segments of a steady task are its solutions.
    """
    task, context = dataset.task, cfg.data.context

    def read_group(trajectories: StoredTrajectories, rows: Int[np.ndarray, " b"]) -> ValidationSegments:
        fields = trajectories.fields[rows]
        frames = fields.shape[1]
        if task.kind == "steady":
            inputs, truth, repeats = trajectories.inputs[rows], fields, 1
        else:
            steps = min(STEPS, frames - context)
            starts = np.unique(np.linspace(0, frames - context - steps, STARTS).round().astype(int))
            segments = np.concatenate([fields[:, start : start + context + steps] for start in starts])
            inputs, truth, repeats = segments[:, :context], segments[:, context:], len(starts)
        batch = Batch(
            dt=np.full(repeats * len(fields), task.dt, np.float32),
            cond=np.tile(trajectories.cond[rows], (repeats, 1)),
            cond_mask=np.tile(trajectories.cond_mask[rows], (repeats, 1)).astype(np.float32),
        )
        key = jax.random.fold_in(jax.random.key(cfg.seed), len(trajectories.ids))
        return ValidationSegments(
            inputs=jnp.asarray(inputs),
            truth=jnp.asarray(truth),
            cond=conditions_of(batch),
            key=jax.random.fold_in(key, rows[0]) if rows[0] else key,
        )

    return validation_groups(dataset, cfg, read_group)


def corrected_metrics(
    model: Corrector,
    weights: CorrectorWeights,
    predictor: Simulator | SteadySimulator,
    predictor_params: PyTree,
    segments: ValidationSegments,
    sampler: Sampler = mean_error,
) -> dict[str, Float[Array, ""]]:
    """Return the errors of the corrected predictions, and with the prefix `alone/` the errors without correction.

    Transient tasks have the nRMSE of the first step (`one_step`) and of short rollouts (`rollout`), and the rollouts'
    error at high wavenumbers (`fourier_high`). Steady tasks have the nRMSE of the solutions (`steady`).

    Args:
        weights: Weights of the corrector `model`.
        sampler: Function that returns the error to add at every step, by default the mean error.
    """
    task = predictor.task
    if isinstance(predictor, SteadySimulator):
        inputs, pred = first_inputs_and_prediction(predictor, predictor_params, segments)
        solutions = {"": pred + sampler(model, weights, segments.key, inputs), "alone/": pred}
        frames = {prefix: denormalize(field, task.statistics)[:, None] for prefix, field in solutions.items()}
        return {
            f"{prefix}steady": all_metrics(field, segments.truth, task)["nrmse"].mean()
            for prefix, field in frames.items()
        }
    steps = segments.truth.shape[1]
    fixed_noise = model.diffusion.fixed_noise
    correction = Correction(corrector=step_corrector(model, weights, sampler), when=every_n(1), fixed_noise=fixed_noise)
    rollouts = {
        "": rollout(predictor, predictor_params, segments.inputs, segments.cond, steps, correction, segments.key),
        "alone/": rollout(predictor, predictor_params, segments.inputs, segments.cond, steps),
    }
    return {
        f"{prefix}{name}": value
        for prefix, frames in rollouts.items()
        for name, value in _rollout_metrics(frames, segments.truth, task).items()
    }


def first_inputs_and_prediction(
    predictor: Simulator | SteadySimulator, params: PyTree, segments: ValidationSegments
) -> tuple[CorrectorInputs, Float[Array, "b *s c"]]:
    """Return the corrector's inputs for the first prediction in each segment, and this prediction, normalised."""
    task = predictor.task
    if isinstance(predictor, SteadySimulator):
        inputs = normalize_inputs(segments.inputs, task.inputs)
        pred = steady_field(predictor, params, inputs, segments.cond)
        return solution_inputs(inputs, pred, segments.cond), pred
    window = normalize(segments.inputs, task.statistics)
    pred = step(predictor, params, window, segments.cond)
    return step_inputs(task, window, pred, segments.cond), pred


def _rollout_metrics(
    frames: Float[Array, "b t *s c"], truth: Float[Array, "b t *s c"], task: Task
) -> dict[str, Float[Array, ""]]:
    """Return the metrics of rollouts under their logged names, averaged over the rollouts."""
    values = all_metrics(frames, truth, task)
    return {
        "one_step": values["nrmse"][:, 0].mean(),
        **{name: values[metric].mean() for metric, name in _NAMES.items()},
    }


_MODELS: dict[str, Callable[[Config, Task], StageModel]] = {
    "operator": operator.STAGE.model,
    "steady_prior": steady_prior.STAGE.model,
}


def predictor_stage(task_kind: str) -> str:
    """Return the name of the stage that trains the predictor for transient or for steady tasks."""
    (name,) = STAGE_NEEDS[task_kind]["diffusion_residual"]
    return name


def predictor_model(cfg: Config, task: Task) -> Simulator | SteadySimulator:
    """Return the predictor of a task: the model whose error the corrector models."""
    return cast(Simulator | SteadySimulator, _MODELS[predictor_stage(task.kind)](cfg, task))
