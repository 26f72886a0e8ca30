"""The weights of a trained stage: the averaged parameters of its best checkpoint, with its configuration and tasks."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from ups_jax.config import Config, from_dict
from ups_jax.core.commands import command
from ups_jax.core.errors import CheckpointError, ConfigError
from ups_jax.core.stage_names import STAGES
from ups_jax.core.task import Task
from ups_jax.runs.checkpoint import Checkpoints, read_validation_metric, recorded_tasks, tasks_from_meta
from ups_jax.runs.checksums import content_digest
from ups_jax.runs.directory import RunDirectory
from ups_jax.training.build import abstract_state, averaged_params
from ups_jax.training.stages import stage_spec
from ups_jax.training.state import state_scale

# Attempts to read the checkpoints of a run that may be training and replacing them meanwhile.
_MAX_ATTEMPTS = 5


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The trained weights of a stage.

    Attributes:
        params: Averaged parameters of the model.
        weights: Argument of the model's functions, from `StageSpec.build_weights`: `params`, for a corrector together
            with the scale of its errors.
        digest: Digest of the checkpoint's files.
        step: Step of the checkpoint.
        config: Configuration of the training.
        tasks: Tasks of the training.
        fingerprint: Fingerprint of the training data.
    """

    params: PyTree
    weights: PyTree
    digest: str
    step: int
    config: Config
    tasks: tuple[Task, ...]
    fingerprint: str


def best_weights(path: Path, stage: str) -> Weights:
    """Return the weights of a stage from the best checkpoint of a run.

    If this checkpoint is damaged, a warning is emitted and the best readable checkpoint is used.

    Raises:
        CheckpointError: `path` holds no run, or no readable checkpoint of the stage.
    """
    run = RunDirectory(path)
    record = run.read_record()
    directory = run.checkpoint_folder(stage)
    hint = f"train the stage with `{command('train')} --stage {stage} --run-dir {path}`"
    if not directory.is_dir():
        raise CheckpointError(f"{path}: holds no checkpoint of stage {stage}; {hint}")
    steps: list[int] = []
    for _ in range(_MAX_ATTEMPTS):
        previous_steps = steps
        with Checkpoints(directory, read_only=True) as checkpoints:
            steps = checkpoints.steps()
            if not steps:
                raise CheckpointError(f"{directory}: holds no checkpoint; {hint}")
            best, reasons = _best_weights_and_read_errors(checkpoints, directory, stage)
        # A run that is training deletes its former best checkpoint when it has saved a better one.
        if not reasons or steps == previous_steps:
            break
    if best is None:
        raise CheckpointError(
            f"{directory}: none of the checkpoints {steps} can be read ({next(iter(reasons.values()))}); "
            "restore one from a copy, or train in another run directory"
        )
    quarantined = record["stages"].get(stage, {}).get("set_aside")
    _warn_of_better_checkpoints(directory, best.step, reasons, quarantined if isinstance(quarantined, dict) else {})
    return best


def tasks_of_run(run: RunDirectory) -> tuple[Task, ...]:
    """Return the tasks that the newest readable checkpoint of a run records; none if there is no such checkpoint."""
    folders = map(run.checkpoint_folder, STAGES) if run.has_record() else ()
    return next(filter(None, map(recorded_tasks, folders)), ())


def _best_weights_and_read_errors(
    checkpoints: Checkpoints, directory: Path, stage: str
) -> tuple[Weights | None, dict[int, str]]:
    """Return the weights of the best readable checkpoint, if any, and the read errors of all better ones by step."""
    reasons: dict[int, str] = {}
    for step in checkpoints.ranked_steps():
        try:
            meta = checkpoints.meta(step)
            config, tasks = from_dict(meta["config"], str(directory / str(step))), tasks_from_meta(meta)
            state = checkpoints.restore_weights(step, abstract_state(config, tasks, stage))
        except CheckpointError as error:
            reasons[step] = str(error)
            continue
        params = averaged_params(config, stage, state, meta["ema_decay"])
        weights = Weights(
            params=params,
            weights=stage_spec(stage).build_weights(params, state_scale(state)),
            digest=content_digest(directory / str(step)),
            step=step,
            config=config,
            tasks=tasks,
            fingerprint=meta["fingerprint"],
        )
        return weights, reasons
    return None, reasons


def _warn_of_better_checkpoints(
    directory: Path, step: int, errors: dict[int, str], quarantined_metrics: dict[str, Any]
) -> None:
    """Warn if checkpoints are damaged that were better than the checkpoint of `step`, which is used instead.

    Args:
        directory: Folder of the stage's checkpoints.
        errors: Errors of unreadable checkpoints by step.
        quarantined_metrics: Validation metrics of quarantined checkpoints by step, from the run's record.
    """
    validation = read_validation_metric(directory / str(step))
    better = [
        number
        for number, value in quarantined_metrics.items()
        if validation is None or not isinstance(value, float | int) or value < validation
    ]
    lines = [*errors.values(), *(f"{directory}: step {number} is damaged and was quarantined" for number in better)]
    if lines:
        warnings.warn(
            f"{'; '.join(lines)}; step {step}, the best of the other checkpoints, is used instead", stacklevel=3
        )


def check_compatible(weights: Weights, expected: PyTree) -> PyTree:
    """Return the parameters of `weights` after checking that a model can be initialised with them.

    Args:
        weights: Weights of the run that `--init-from` names.
        expected: Parameters of the model, or their abstract shapes.

    Raises:
        ConfigError: A parameter has another name or shape in `expected`; the message names the first.
    """
    differing = first_shape_difference(weights.params, expected)
    if differing is not None:
        raise ConfigError(
            f"--init-from: the model of the other run differs from this configuration: {differing}; use the same "
            "`latent` and `operator` sections and the same grid"
        )
    return weights.params


def first_shape_difference(loaded: PyTree, expected: PyTree) -> str | None:
    """Return a text about the first parameter, by name, whose shape differs between two trees; None if none differs."""
    loaded_shapes, expected_shapes = (
        {jax.tree_util.keystr(name): np.shape(leaf) for name, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (loaded, expected)
    )
    for name in sorted(loaded_shapes.keys() | expected_shapes.keys()):
        if name not in loaded_shapes:
            return f"{name} is missing"
        if name not in expected_shapes:
            return f"{name} is not a parameter of this model"
        if loaded_shapes[name] != expected_shapes[name]:
            return f"{name} has shape {loaded_shapes[name]} instead of {expected_shapes[name]}"
    return None
