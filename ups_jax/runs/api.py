"""Saving and restoring a run by hand, for programs that have their own training loop."""

from __future__ import annotations

from pathlib import Path

from ups_jax.config import Config, digest, to_dict
from ups_jax.core.errors import CheckpointError, ConfigError
from ups_jax.data import Dataset, Mixture
from ups_jax.runs.checkpoint import Checkpoints, checkpoint_meta
from ups_jax.runs.directory import RunDirectory, environment, now
from ups_jax.training.state import TrainState


def save(
    path: str | Path,
    state: TrainState,
    cfg: Config,
    dataset: Dataset | Mixture,
    *,
    validation: float | None = None,
    stage: str = "operator",
) -> None:
    """Write `state` as a checkpoint of the run directory `path`, which is made where it is missing.

    `ups-jax train --run-dir` goes on from it, and `load_run` reads it. `validation`, lower is better, decides which
    checkpoint of several is the best. ConfigError where the directory holds another configuration's run or this step.
    """
    run = RunDirectory(Path(path))
    with run.lock():
        if not run.exists():
            record = {"status": "saved", "config": to_dict(cfg), "stages": {}, "created": now()}
            run.write(record | {"digests": {stage: digest(cfg, stage)}} | environment())
        digests = run.read()["digests"]
        if digests.get(stage, digest(cfg, stage)) != digest(cfg, stage):
            raise ConfigError(f"{path}: holds a run of another configuration; save to another directory")
        run.update(digests=digests | {stage: digest(cfg, stage)})
        with Checkpoints(run.checkpoints(stage), keep=cfg.checkpoint.keep) as checkpoints:
            if int(state.step) in checkpoints.steps():
                raise ConfigError(
                    f"{path}: holds a checkpoint of step {int(state.step)} already; save to another directory"
                )
            checkpoints.save(state, checkpoint_meta(cfg, stage, dataset), validation=validation)


def restore(path: str | Path, like: TrainState, *, stage: str = "operator") -> TrainState:
    """The newest state of a run directory; `like` (from `init_state`) lends structure and placement."""
    run = RunDirectory(Path(path))
    if run.exists():
        # Raises where a later version wrote the run in a format of its own.
        run.read()
    directory = run.checkpoints(stage)
    if not directory.is_dir():
        raise CheckpointError(f"{run.path}: holds no checkpoint; save one first")
    with Checkpoints(directory, read_only=True) as checkpoints:
        steps = checkpoints.steps()
        if not steps:
            raise CheckpointError(f"{directory}: holds no checkpoint; save one first")
        return checkpoints.restore(steps[-1], like)
