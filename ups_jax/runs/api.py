"""Functions that save and restore the train state of a run, for programs with their own training loop."""

from __future__ import annotations

from pathlib import Path

from ups_jax.config import Config, digest, to_dict
from ups_jax.core.errors import CheckpointError, ConfigError
from ups_jax.data import Dataset, Mixture, as_mixture
from ups_jax.runs.checkpoint import Checkpoints, checkpoint_meta
from ups_jax.runs.directory import RunDirectory, environment_record, utc_now
from ups_jax.runs.training_set import extend_training_set, write_training_set
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
    """Write a train state as a checkpoint to a run directory.

    `ups-jax train --run-dir` can resume from the checkpoint, and `load_run` can load it.

    Args:
        path: Run directory, which is created if it is missing.
        dataset: Training data.
        validation: Validation metric of this state; the checkpoint with the lowest one is the best.

    Raises:
        ConfigError: The directory already holds a run of another configuration, or a checkpoint of this step.
    """
    run = RunDirectory(Path(path))
    with run.lock():
        if not run.has_record():
            record = {"status": "saved", "config": to_dict(cfg), "stages": {}, "created": utc_now()}
            run.write_record(record | {"digests": {stage: digest(cfg, stage)}} | environment_record())
        digests = run.read_record()["digests"]
        if digests.get(stage, digest(cfg, stage)) != digest(cfg, stage):
            raise ConfigError(f"{path}: holds a run of another configuration; choose another directory")
        run.update_record(digests=digests | {stage: digest(cfg, stage)})
        with Checkpoints(run.checkpoint_folder(stage), keep=cfg.checkpoint.keep) as checkpoints:
            if int(state.step) in checkpoints.steps():
                raise ConfigError(
                    f"{path}: already holds a checkpoint of step {int(state.step)}; choose another directory"
                )
            write_training_set(run, extend_training_set(run, as_mixture(dataset)))
            checkpoints.save(state, checkpoint_meta(cfg, stage, dataset), validation=validation)


def restore(path: str | Path, like: TrainState, *, stage: str = "operator") -> TrainState:
    """Return the train state of the latest checkpoint of a run directory.

    Args:
        path: Run directory.
        like: State from `init_state`; the result has the same structure and sharding.

    Raises:
        CheckpointError: The directory holds no checkpoint of the stage, or the checkpoint is damaged.
    """
    run = RunDirectory(Path(path))
    if run.has_record():
        # This raises an error if a later version of ups_jax wrote the run in a newer format.
        run.read_record()
    directory = run.checkpoint_folder(stage)
    if not directory.is_dir():
        raise CheckpointError(f"{run.path}: holds no checkpoint of stage {stage}; call `save` first")
    with Checkpoints(directory, read_only=True) as checkpoints:
        steps = checkpoints.steps()
        if not steps:
            raise CheckpointError(f"{directory}: holds no checkpoint; call `save` first")
        return checkpoints.restore(steps[-1], like)
