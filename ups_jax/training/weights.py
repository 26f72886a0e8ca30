"""The weights of a trained run: averaged parameters of its best checkpoint, with what is needed to use them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from ups_jax.config import Config, from_dict
from ups_jax.errors import CheckpointError, ConfigError
from ups_jax.optim import ema_params
from ups_jax.task import Task
from ups_jax.training.build import abstract_state
from ups_jax.training.checkpoint import Checkpoints
from ups_jax.training.checksums import content_digest
from ups_jax.training.run_directory import RunDirectory
from ups_jax.training.stages import stage_of
from ups_jax.training.state import scale_of


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Averaged parameters at `step`, the configuration and the task that they were trained with.

    `weights` is what the functions of the stage take; `digest` names the checkpoint by its content.
    """

    params: Any
    weights: Any
    digest: str
    step: int
    config: Config
    task: Task
    fingerprint: str


def best_weights(path: Path, stage: str) -> Weights:
    """The best checkpoint of a stage of a run; CheckpointError where there is none that can be read."""
    run = RunDirectory(path)
    run.read()
    directory = run.checkpoints(stage)
    mend = f"train it with scripts/train.py --stage {stage} --run-dir {path}"
    if not directory.is_dir():
        raise CheckpointError(f"{path}: has no checkpoint of {stage}; {mend}")
    with Checkpoints(directory, read_only=True) as checkpoints:
        step = checkpoints.best_step()
        if step is None:
            raise CheckpointError(f"{directory}: holds no checkpoint; {mend}")
        meta = checkpoints.meta(step)
        config, task = from_dict(meta["config"], str(directory / str(step))), Task.from_dict(meta["task"])
        state = checkpoints.restore(step, abstract_state(config, task, stage))
    params = ema_params(state.params, state.ema, meta["ema_decay"])
    return Weights(
        params=params,
        weights=stage_of(stage).weights(params, scale_of(state)),
        digest=content_digest(directory / str(step)),
        step=step,
        config=config,
        task=task,
        fingerprint=meta["fingerprint"],
    )


def fitting(weights: Weights, like: Any) -> Any:
    """The parameters, if they have the shapes of `like`; ConfigError naming the first that differs otherwise."""
    shapes = [
        {jax.tree_util.keystr(name): leaf.shape for name, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (weights.params, like)
    ]
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        theirs, ours = (shape.get(name, "nothing") for shape in shapes)
        if theirs != ours:
            raise ConfigError(
                f"--init-from: that run's model differs from this configuration's: {name} is {theirs} there and {ours} "
                "here; use the same latent and operator sections and the same grid"
            )
    return weights.params
