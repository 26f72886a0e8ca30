"""The weights of a trained run: averaged parameters of its best checkpoint, with what is needed to use them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ups_jax.config import Config, from_dict
from ups_jax.core.commands import command
from ups_jax.core.errors import CheckpointError, ConfigError
from ups_jax.core.task import Task
from ups_jax.runs.checkpoint import Checkpoints, tasks_of, validation_of
from ups_jax.runs.checksums import content_digest
from ups_jax.runs.directory import RunDirectory
from ups_jax.training.build import abstract_state, averaged_params
from ups_jax.training.stages import stage_spec
from ups_jax.training.state import state_scale

# Times that a run which is saving meanwhile is looked at before what is damaged counts as damaged.
_LOOKS = 5


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Averaged parameters at `step`, the configuration and the tasks that they were trained with.

    `weights` is what the functions of the stage take; `digest` names the checkpoint by its content.
    """

    params: Any
    weights: Any
    digest: str
    step: int
    config: Config
    tasks: tuple[Task, ...]
    fingerprint: str


def best_weights(path: Path, stage: str) -> Weights:
    """The best checkpoint of a stage of a run; where that is damaged the best of the others, with a warning that names
    both. CheckpointError where there is none that can be read."""
    run = RunDirectory(path)
    record = run.read()
    directory = run.checkpoints(stage)
    mend = f"train it with `{command('train')} --stage {stage} --run-dir {path}`"
    if not directory.is_dir():
        raise CheckpointError(f"{path}: has no checkpoint of {stage}; {mend}")
    steps: list[int] = []
    for _ in range(_LOOKS):
        listed = steps
        with Checkpoints(directory, read_only=True) as checkpoints:
            steps = checkpoints.steps()
            if not steps:
                raise CheckpointError(f"{directory}: holds no checkpoint; {mend}")
            found, reasons = _best_sound(checkpoints, directory, stage)
        # A run that trains at this moment takes away the step that was its best when it has saved a better one.
        if not reasons or steps == listed:
            break
    if found is None:
        raise CheckpointError(
            f"{directory}: none of the checkpoints {steps} can be read ({next(iter(reasons.values()))}); "
            "bring one back from a copy, or train in another run directory"
        )
    set_aside = record["stages"].get(stage, {}).get("set_aside")
    _tell_missed(directory, found.step, reasons, set_aside if isinstance(set_aside, dict) else {})
    return found


def _best_sound(checkpoints: Checkpoints, directory: Path, stage: str) -> tuple[Weights | None, dict[int, str]]:
    """The best checkpoint that can be read, and why those before it cannot."""
    reasons: dict[int, str] = {}
    for step in checkpoints.ranked():
        try:
            meta = checkpoints.meta(step)
            config, tasks = from_dict(meta["config"], str(directory / str(step))), tasks_of(meta)
            state = checkpoints.restore_weights(step, abstract_state(config, tasks, stage))
        except CheckpointError as error:
            reasons[step] = str(error)
            continue
        params = averaged_params(config, stage, state, meta["ema_decay"])
        found = Weights(
            params=params,
            weights=stage_spec(stage).build_weights(params, state_scale(state)),
            digest=content_digest(directory / str(step)),
            step=step,
            config=config,
            tasks=tasks,
            fingerprint=meta["fingerprint"],
        )
        return found, reasons
    return None, reasons


def _tell_missed(directory: Path, step: int, damaged: dict[int, str], set_aside: dict[str, Any]) -> None:
    """Warn of the steps in whose place another one is used: those that are damaged and those that a start of the
    training has set aside, as the run's record says."""
    own = validation_of(directory / str(step))
    better = [
        number
        for number, value in set_aside.items()
        if own is None or not isinstance(value, float | int) or value < own
    ]
    lines = [*damaged.values(), *(f"{directory}: step {number} was found damaged and set aside" for number in better)]
    if lines:
        warnings.warn(
            f"{'; '.join(lines)}: the best checkpoint of the others, step {step}, is used in its place", stacklevel=3
        )


def check_compatible(weights: Weights, like: Any) -> Any:
    """The parameters, if they have the shapes of `like`; ConfigError naming the first that differs otherwise."""
    differing = first_shape_difference(weights.params, like)
    if differing is not None:
        raise ConfigError(
            f"--init-from: that run's model differs from this configuration's: {differing}; use the same latent and "
            "operator sections and the same grid"
        )
    return weights.params


def first_shape_difference(there: Any, here: Any) -> str | None:
    """The first parameter, by name, whose shapes differ in two trees, with both; None where all are the same."""
    shapes = [
        {jax.tree_util.keystr(name): np.shape(leaf) for name, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (there, here)
    ]
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        theirs, ours = (shape.get(name, "nothing") for shape in shapes)
        if theirs != ours:
            return f"{name} is {theirs} there and {ours} here"
    return None
