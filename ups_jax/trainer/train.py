"""Training of one stage in its run directory.

The steps are: preflight checks, claim the directory, plan, build or restore the state, run the loop, finish.
"""

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
from ups_jax.core.xla import jit_context
from ups_jax.data import Mixture
from ups_jax.distributed.processes import any_host, broadcast_from_host0, is_host0, wait_for_all
from ups_jax.runs.best_weights import Weights
from ups_jax.runs.checkpoint import Checkpoints
from ups_jax.runs.directory import (
    RunDirectory,
    StageRecord,
    environment_record,
    newest_step,
    stage_length_settings,
    utc_now,
)
from ups_jax.runs.training_set import (
    TrainingSet,
    check_unseen,
    extend_training_set,
    read_training_set,
    write_training_set,
)
from ups_jax.trainer.console import print_plan, print_setup
from ups_jax.trainer.frozen_codec import describe_latents, latents_record_entry
from ups_jax.trainer.parents import TrainedParents, trained_parents
from ups_jax.trainer.preflight import Preflight, check_parent_checkpoints, check_parent_data, check_resume, preflight
from ups_jax.trainer.stage_run import (
    LoopResult,
    TrainingRun,
    make_loop,
    restore_or_init_state,
    run_with_writers,
    watch_stop_signals,
)
from ups_jax.trainer.timing import measure_stage
from ups_jax.training.build import JointModel, joint_validation
from ups_jax.training.run_length import plan_and_record_entries
from ups_jax.training.stages import stage_spec
from ups_jax.training.state import SpikeMonitor


@dataclass(frozen=True, kw_only=True)
class TrainedStage:
    """A trained stage, with its data and model for a later evaluation."""

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
    """Train a stage in a run directory, which may be new, unfinished or finished.

    Args:
        path: Run directory.
        resume: `auto` resumes if there is a checkpoint, `must` requires one, `never` requires a new run directory.
        init_from: Run from whose weights a new stage starts.
        data: The open data; by default the data of the configuration is opened.

    Raises:
        ConfigError, DataError, CheckpointError: The configuration, the data or a required checkpoint has an error; if
            possible, this is raised before the run directory is created.
        DivergedError: The training diverged, as described in `run_loop`.
        Stopped: A signal arrived; the state was saved.
    """
    run = RunDirectory(path)

    # -- preflight: report errors before the run directory is created ------------------------------------------------
    checked = preflight(cfg, stage, run, resume=resume, init_from=init_from, data=data, console=console)
    # Host 0 writes files that the other processes read.
    wait_for_all("checked")

    with run.lock():
        # -- claim the run directory ---------------------------------------------------------------------------------
        parents, training_set = _claim_run_and_load_parents(run, cfg, stage, resume, checked, console)
        print_setup(console, cfg, stage, checked.data)
        for line in describe_latents(cfg, stage, checked.data):
            print_line(console, line)
        # Without the folder of a stage, the stage is trained again. A folder without checkpoints is an error.
        deleted = broadcast_from_host0(not run.checkpoint_folder(stage).is_dir())
        recorded: dict[str, Any] | None = broadcast_from_host0(_record_start_and_read_entry(run, cfg, stage))
        with _record_failure(run):
            # -- plan: the number of steps ---------------------------------------------------------------------------
            validate = joint_validation(checked.model, stage_spec(stage), checked.data, cfg, parents.weights)
            halvings = list((recorded or {}).get("out_of_memory", ()))

            def measure_step_seconds() -> float:
                timing = measure_stage(
                    cfg, stage, checked.data, checked.model, parents.weights, validate, halvings, console
                )
                halvings.extend(timing.halvings)
                return timing.seconds_per_step

            plan, plan_entries = plan_and_record_entries(
                cfg, checked.data, stage, recorded or {}, measure_step_seconds, checked.plan
            )
            print_plan(console, cfg, stage, plan, plan_entries)
            entry = _new_stage_entry(run, checked.init_weights, init_from) if recorded is None else recorded
            outdated = ("planned_steps", "budget", *(["saved"] if deleted else []))
            entry = {key: value for key, value in entry.items() if key not in outdated} | plan_entries
            entry |= {"lengths": stage_length_settings(cfg, stage)} | latents_record_entry(checked.data)
            entry |= {"out_of_memory": halvings} if halvings else {}
            entry |= {"parents": parents.checkpoints} if parents.checkpoints else {}
            record = StageRecord(run, stage, entry | {"total_steps": plan.total_steps, "finished": None})

            # -- build or restore the state, run the loop; retry with smaller micro-batches if memory runs out --------
            training = TrainingRun(
                cfg=cfg,
                stage=stage,
                run=run,
                record=record,
                data=checked.data,
                model=checked.model,
                losses=checked.losses,
                parents=parents.weights,
                validate=validate,
                plan=plan,
                console=console,
                started_before=recorded is not None,
                resume=resume,
                init_weights=checked.init_weights,
            )
            with (
                jit_context(cfg.training.compile),
                Checkpoints(run.checkpoint_folder(stage), keep=cfg.checkpoint.keep) as checkpoints,
                watch_stop_signals() as should_stop,
            ):
                training.print_parameters()
                train_step = training.build_train_step()
                loop = make_loop(training, train_step, checkpoints)

                def restore_and_run() -> LoopResult:
                    checkpoints.wait()
                    state = restore_or_init_state(training, checkpoints)
                    # After the check that a resumed run has the same data, before the first step.
                    write_training_set(run, training_set)
                    return run_with_writers(training, loop, state, checkpoints, should_stop)

                state, seconds_per_step = train_step.run_with_retry(restore_and_run)
                # A signal after the last step: the state is saved, but the process must exit.
                if any_host(should_stop(), 0):
                    raise Stopped(
                        f"stopped and saved after the last step of stage {stage}; repeat the command to resume"
                    )

        # -- finish --------------------------------------------------------------------------------------------------
        outcome = {"steps": int(state.step), "finished": utc_now(), "skipped": int(state.monitor.skipped)}
        if isinstance(state.monitor, SpikeMonitor):
            outcome["spikes"] = int(state.monitor.spikes.count)
        if seconds_per_step is not None:
            outcome["seconds_per_step"] = seconds_per_step
        record.finish(**outcome)
        wait_for_all("finished")
    return TrainedStage(run=run, data=checked.data, model=checked.model)


def _claim_run_and_load_parents(
    run: RunDirectory, cfg: Config, stage: str, resume: str, checked: Preflight, console: Console
) -> tuple[TrainedParents, TrainingSet]:
    """Write run.json of a new run, or check that an existing run can be resumed.

    Returns:
        The stage's parents, and the training set of the run with this stage.
    """
    # Repeat this preflight check under the lock, which excludes other runs in this directory.
    if is_host0():
        check_resume(run, cfg, stage, resume)
    data = checked.data
    parents = trained_parents(run, stage, data.kind)
    check_parent_data(run, cfg, data, parents.fingerprints)
    if not newest_step(run.checkpoint_folder(stage)):
        for name, fingerprint in parents.fingerprints.items():
            for note in check_unseen(read_training_set(run, fingerprint, data), data, run, f"stage {name}"):
                print_line(console, f"note        {note}")
    if not broadcast_from_host0(run.has_record()):
        run.write_record({"created": utc_now(), "config": to_dict(cfg), "digests": {}, "stages": {}})
        run.write_split(data.split_record())
        # A run without this file counts as one of an earlier version.
        write_training_set(run, checked.init_training_set or TrainingSet())
    wait_for_all("recorded")
    check_parent_checkpoints(run, stage, parents.checkpoints)
    training_set = extend_training_set(run, data, parents.fingerprints.values(), checked.init_training_set)
    return parents, training_set


def _record_start_and_read_entry(run: RunDirectory, cfg: Config, stage: str) -> dict[str, Any] | None:
    """Record this process and its configuration in run.json; return the stage's entry there, None for a new stage."""
    record = run.read_record()
    record |= environment_record() | {"status": "running", "config": to_dict(cfg)}
    record |= {"device": str(jax.devices()[0].device_kind)}
    record |= {"digests": record["digests"] | {stage: digest(cfg, stage)}}
    run.write_record(record)
    entry: dict[str, Any] | None = record["stages"].get(stage)
    return entry


def _new_stage_entry(run: RunDirectory, init_weights: Weights | None, init_from: Path | None) -> dict[str, Any]:
    """Return the first run.json entry of a stage: start time, steps of earlier stages, and run of `init_weights`."""
    steps_before = sum(newest_step(run.checkpoint_folder(name)) for name in run.read_record()["stages"])
    parent = {} if init_weights is None else {"parent": {"run": str(init_from), "step": init_weights.step}}
    return {"started": utc_now(), "steps_before": steps_before} | parent


@contextlib.contextmanager
def _record_failure(run: RunDirectory) -> Iterator[None]:
    """Set the status of the run to `stopped` or `failed` if the context raises an exception."""
    try:
        yield
    except BaseException as error:
        # On a full disk this fails as well; `error` is the one to report.
        with contextlib.suppress(StorageError):
            run.update_record(status="stopped" if isinstance(error, Stopped | KeyboardInterrupt) else "failed")
        raise
