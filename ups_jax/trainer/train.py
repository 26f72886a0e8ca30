"""Train one stage in its run directory, from top to bottom: preflight, claim the directory, plan, build or restore the
state, loop, finish."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from ups_jax.config import Config, digest, to_dict
from ups_jax.core.errors import Stopped, StorageError
from ups_jax.core.terminal import print_line
from ups_jax.core.xla import compiling
from ups_jax.data import Mixture
from ups_jax.distributed.processes import any_host, broadcast_from_host0, is_host0, wait_for_all
from ups_jax.runs.best_weights import Weights
from ups_jax.runs.checkpoint import Checkpoints
from ups_jax.runs.directory import RunDirectory, StageRecord, environment, lengths_of, newest_step, now
from ups_jax.trainer.console import log_plan, log_setup
from ups_jax.trainer.frozen_codec import describe_latents, latents_record
from ups_jax.trainer.parents import TrainedParents, trained_parents
from ups_jax.trainer.preflight import check_fold, check_parents, check_resume, preflight
from ups_jax.trainer.stage_run import TrainingRun, make_loop, restore_or_start, run_with_writers, stop_flag
from ups_jax.trainer.timing import measure_stage
from ups_jax.training.build import JointModel, joint_validation
from ups_jax.training.run_length import plan_and_record
from ups_jax.training.stages import stage_of
from ups_jax.training.state import SpikeMonitor, TrainState


@dataclass(frozen=True, kw_only=True)
class TrainedStage:
    """The run directory of a trained stage, and the data and model that were opened for it, for an evaluation."""

    run: RunDirectory
    data: Mixture
    model: JointModel


def train(
    cfg: Config,
    stage: str,
    path: Path,
    *,
    resume: str = "auto",
    init_from: Path | None = None,
    data: Mixture | None = None,
    console: Console,
) -> TrainedStage:
    """Train a stage in a run directory, which may be new, started or finished.

    Args:
        cfg: Configuration.
        stage: Name of the stage.
        path: Run directory.
        resume: `auto` resumes where there is something to resume, `must` insists on it, `never` refuses to.
        init_from: Run whose weights, and nothing else, a fresh start takes.
        data: The configuration's data, where the caller has opened it.
        console: Where progress is printed.

    Raises:
        ConfigError, DataError, CheckpointError: What is wrong with configuration, data or prerequisites, before the
            directory is made where possible.
        DivergedError: Too many steps in a row were not finite.
        Stopped: A signal came; the state is saved.
    """
    run = RunDirectory(path)

    # -- preflight: what may be wrong is reported before the directory is made ---------------------------------------
    ready = preflight(cfg, stage, run, resume=resume, init_from=init_from, data=data, console=console)
    # The first process writes what the others read.
    wait_for_all("checked")

    with run.lock():
        # -- claim the run directory ---------------------------------------------------------------------------------
        parents = _claim(run, cfg, stage, resume, ready.data)
        log_setup(console, cfg, stage, ready.data)
        for line in describe_latents(cfg, stage, ready.data):
            print_line(console, line)
        # A user who deletes the folder of a stage wants it trained again; a folder without checkpoints has lost them.
        deleted = broadcast_from_host0(not run.checkpoints(stage).is_dir())
        recorded: dict[str, Any] | None = broadcast_from_host0(_record_start(run, cfg, stage))
        with _failure_on_record(run):
            # -- plan: how many steps --------------------------------------------------------------------------------
            validate = joint_validation(ready.model, stage_of(stage), ready.data, cfg, parents.weights)
            halvings = list((recorded or {}).get("out_of_memory", ()))

            def measure() -> float:
                measured = measure_stage(
                    cfg, stage, ready.data, ready.model, parents.weights, validate, halvings, console
                )
                halvings.extend(measured.halvings)
                return measured.seconds_per_step

            plan, planned = plan_and_record(cfg, ready.data, stage, recorded or {}, measure, ready.plan)
            log_plan(console, cfg, stage, plan, planned)
            entry = _first_entry(run, ready.init_weights, init_from) if recorded is None else recorded
            outdated = ("planned_steps", "budget", *(["saved"] if deleted else []))
            entry = {key: value for key, value in entry.items() if key not in outdated} | planned
            entry |= {"lengths": lengths_of(cfg, stage)} | latents_record(ready.data)
            entry |= {"out_of_memory": halvings} if halvings else {}
            entry |= {"parents": parents.checkpoints} if parents.checkpoints else {}
            record = StageRecord(run, stage, entry | {"total_steps": plan.total_steps, "finished": None})

            # -- build or restore the state, loop; again with smaller micro-batches where memory runs out ------------
            training = TrainingRun(
                cfg=cfg,
                stage=stage,
                run=run,
                record=record,
                data=ready.data,
                model=ready.model,
                losses=ready.losses,
                parents=parents.weights,
                validate=validate,
                plan=plan,
                console=console,
                started_before=recorded is not None,
                resume=resume,
                init_weights=ready.init_weights,
            )
            with (
                compiling(cfg.training.compile),
                Checkpoints(run.checkpoints(stage), keep=cfg.checkpoint.keep) as checkpoints,
                stop_flag() as should_stop,
            ):
                training.log_parameters()
                train_step = training.train_step()
                loop = make_loop(training, train_step, checkpoints)

                def attempt() -> tuple[TrainState, float | None]:
                    checkpoints.wait()
                    state = restore_or_start(training, checkpoints)
                    return run_with_writers(training, loop, state, checkpoints, should_stop)

                state, seconds_per_step = train_step.run_with_retry(attempt)
                # A signal after the last step: nothing is left to save, but the process is to end.
                if any_host(should_stop(), 0):
                    raise Stopped(f"stopped at the end of {stage}, which is saved; the same command goes on from there")

        # -- finish --------------------------------------------------------------------------------------------------
        done = {"steps": int(state.step), "finished": now(), "skipped": int(state.monitor.skipped)}
        if isinstance(state.monitor, SpikeMonitor):
            done["spikes"] = int(state.monitor.spikes.count)
        if seconds_per_step is not None:
            done["seconds_per_step"] = seconds_per_step
        record.finish(**done)
        wait_for_all("finished")
    return TrainedStage(run=run, data=ready.data, model=ready.model)


def _claim(run: RunDirectory, cfg: Config, stage: str, resume: str, data: Mixture) -> TrainedParents:
    """Write the record of a new run, or check that an existing one may be continued; return the stage's parents."""
    # Again, now that no other process can start a run here.
    if is_host0():
        check_resume(run, cfg, stage, resume)
    parents = trained_parents(run, stage, data.kind)
    check_fold(run, cfg, data.fingerprint, parents.fingerprints)
    if not broadcast_from_host0(run.exists()):
        run.write({"created": now(), "config": to_dict(cfg), "digests": {}, "stages": {}})
        run.write_split(data.split_record())
    wait_for_all("recorded")
    check_parents(run, stage, parents.checkpoints)
    return parents


def _record_start(run: RunDirectory, cfg: Config, stage: str) -> dict[str, Any] | None:
    """Record this process and its configuration; return the stage's entry so far, None where it is new."""
    record = run.read()
    record |= environment() | {"status": "running", "config": to_dict(cfg)}
    record |= {"device": str(jax.devices()[0].device_kind)}
    record |= {"digests": record["digests"] | {stage: digest(cfg, stage)}}
    run.write(record)
    entry: dict[str, Any] | None = record["stages"].get(stage)
    return entry


def _first_entry(run: RunDirectory, weights: Weights | None, init_from: Path | None) -> dict[str, Any]:
    """Return what is recorded of a stage once: when it started, the steps of the run's other stages so far, and the run
    whose weights it took."""
    before = sum(newest_step(run.checkpoints(name)) for name in run.read()["stages"])
    parent = {} if weights is None else {"parent": {"run": str(init_from), "step": weights.step}}
    return {"started": now(), "steps_before": before} | parent


@contextlib.contextmanager
def _failure_on_record(run: RunDirectory) -> Iterator[None]:
    """Set the run's status to `stopped` or `failed` where the body raises."""
    try:
        yield
    except BaseException as error:
        # Where the disk is full this fails as well, and `error` is the one to report.
        with contextlib.suppress(StorageError):
            run.update(status="stopped" if isinstance(error, Stopped | KeyboardInterrupt) else "failed")
        raise
