"""Training of all enabled stages of a configuration in one run, with an evaluation after each stage."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from ups_jax.config import Config, digest
from ups_jax.core.stage_names import STAGE_NEEDS
from ups_jax.core.terminal import print_line
from ups_jax.data import Mixture, open_mixture
from ups_jax.distributed.processes import broadcast_from_host0, on_host0
from ups_jax.evaluation.evaluate_run import evaluate_run
from ups_jax.runs.directory import RunDirectory, stage_length_settings
from ups_jax.tracking import share_wandb_run
from ups_jax.trainer.parents import trained_parents
from ups_jax.trainer.preflight import check_resume, generate_missing_data
from ups_jax.trainer.train import train
from ups_jax.training.build import build_joint_model
from ups_jax.training.run_length import make_plan
from ups_jax.training.stages import enabled_stages


def train_all(cfg: Config, path: Path, *, resume: str = "auto", console: Console) -> RunDirectory:
    """Train and evaluate all enabled stages in one run directory, and return this directory.

    Finished stages are skipped. Online, all stages are logged to one W&B run. Offline, each process start is a W&B run
    in the group of the run directory.

    Args:
        path: Run directory.
        resume: Value of --resume, applied to the first stage; later stages use `auto`.
    """
    stages, run = enabled_stages(cfg), RunDirectory(path)
    check_resume(run, cfg, stages[0], resume)
    data = _check_stages_and_open_data(cfg, stages, console)
    with share_wandb_run(run.path):
        _train_and_evaluate_stages(cfg, run, stages, resume, data, console)
    return run


def _train_and_evaluate_stages(
    cfg: Config, run: RunDirectory, stages: Sequence[str], resume: str, data: Mixture, console: Console
) -> None:
    """Train and evaluate the stages in order; finished trainings and existing evaluations are skipped."""
    for number, stage in enumerate(stages):
        name = "test" if stage not in STAGE_NEEDS["transient"] else f"{stage}_test"
        done, models = broadcast_from_host0(is_finished(run, cfg, stage)), None
        if done:
            print_line(console, f"skipped     {stage}: already finished in this run")
        else:
            resume = resume if number == 0 else "auto"
            models = train(cfg, stage, run.path, resume=resume, data=data, console=console).model
        if cfg.evaluation.enabled and not (
            done and broadcast_from_host0((run.evaluation_folder / f"{name}.json").exists())
        ):
            on_host0(
                partial(evaluate_run, run.path, cfg, stage=stage, track=True, data=data, models=models, console=console)
            )
    if cfg.evaluation.enabled and len(stages) > 1 and stages[-1] in STAGE_NEEDS["transient"]:
        # Evaluate again: the trained correctors give additional rollout variants.
        on_host0(partial(evaluate_run, run.path, cfg, track=True, data=data, console=console))


def is_finished(run: RunDirectory, cfg: Config, stage: str) -> bool:
    """Return whether a stage is finished with this configuration, its length, and the current parent checkpoints."""
    if not run.has_record():
        return False
    record = run.read_record()
    entry = record["stages"].get(stage, {})
    if not entry.get("finished") or not run.checkpoint_folder(stage).is_dir():
        return False
    has_same_config = record["digests"].get(stage) == digest(cfg, stage)
    has_same_length = entry.get("lengths") == stage_length_settings(cfg, stage)
    parents = trained_parents(run, stage, cfg.data.tasks[0].kind).checkpoints
    return has_same_config and has_same_length and entry.get("parents", {}) == parents


def _check_stages_and_open_data(cfg: Config, stages: Sequence[str], console: Console) -> Mixture:
    """Open the data, and build the model and length plan of each stage, so that all errors appear before training."""
    generate_missing_data(cfg, console)
    data = open_mixture(cfg)
    for stage in stages:
        build_joint_model(cfg, data.tasks, stage)
        if getattr(cfg.stages, stage).max_seconds is None:
            make_plan(cfg, data, stage)
    return data
