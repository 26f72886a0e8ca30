"""All enabled stages of a configuration in one run, each trained upon those before it and evaluated at its end."""

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
from ups_jax.runs.directory import RunDirectory, length_settings
from ups_jax.tracking import share_run
from ups_jax.trainer.parents import trained_parents
from ups_jax.trainer.preflight import check_resume, prepare_data
from ups_jax.trainer.train import train
from ups_jax.training.build import build_joint_model
from ups_jax.training.run_length import make_plan
from ups_jax.training.stages import enabled_stages


def train_all(cfg: Config, path: Path, *, resume: str = "auto", console: Console) -> RunDirectory:
    """Train and evaluate every enabled stage in the run directory `path`, but for those that are finished already.

    A stage counts as finished when its record says so for the same configuration, length and parents' checkpoints.
    Online all are one W&B run; offline, which wandb cannot go on with, each is one of the run directory's group.
    """
    stages, run = enabled_stages(cfg), RunDirectory(path)
    check_resume(run, cfg, stages[0], resume)
    data = _check_all(cfg, stages, console)
    with share_run(run.path):
        _train_each(cfg, run, stages, resume, data, console)
    return run


def _train_each(
    cfg: Config, run: RunDirectory, stages: Sequence[str], resume: str, data: Mixture, console: Console
) -> None:
    for number, stage in enumerate(stages):
        name = "test" if stage not in STAGE_NEEDS["transient"] else f"{stage}_test"
        done, models = broadcast_from_host0(is_finished(run, cfg, stage)), None
        if done:
            print_line(console, f"skipped     {stage}: is finished in this run")
        else:
            resume = resume if number == 0 else "auto"
            models = train(cfg, stage, run.path, resume=resume, data=data, console=console).model
        if cfg.evaluation.enabled and not (done and broadcast_from_host0((run.evaluation / f"{name}.json").exists())):
            on_host0(
                partial(evaluate_run, run.path, cfg, stage=stage, track=True, data=data, models=models, console=console)
            )
    if cfg.evaluation.enabled and len(stages) > 1 and stages[-1] in STAGE_NEEDS["transient"]:
        # Once more, with the correctors that there are by now as other ways to roll out.
        on_host0(partial(evaluate_run, run.path, cfg, track=True, data=data, console=console))


def is_finished(run: RunDirectory, cfg: Config, stage: str) -> bool:
    """Whether the run has the stage as this configuration makes it, on the checkpoints that its parents have now."""
    if not run.exists():
        return False
    record = run.read()
    own = record["stages"].get(stage, {})
    if not own.get("finished") or not run.checkpoints(stage).is_dir():
        return False
    same = record["digests"].get(stage) == digest(cfg, stage) and own.get("lengths") == length_settings(cfg, stage)
    now = trained_parents(run, stage, cfg.data.tasks[0].kind).checkpoints
    return same and own.get("parents", {}) == now


def _check_all(cfg: Config, stages: Sequence[str], console: Console) -> Mixture:
    """Open the data and report what is wrong with a later stage before the first one is trained."""
    prepare_data(cfg, console)
    data = open_mixture(cfg)
    for stage in stages:
        build_joint_model(cfg, data.tasks, stage)
        if getattr(cfg.stages, stage).max_seconds is None:
            make_plan(cfg, data, stage)
    return data
