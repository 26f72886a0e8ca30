"""One stage of one run, from its directory to its trained state: start fresh, go on, or start from other weights."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from ups_jax import simulate
from ups_jax.config import Config, digest, to_dict
from ups_jax.core.errors import Stopped, StorageError
from ups_jax.core.xla import compiling, require_determinism
from ups_jax.data import first_batches, open_mixture, windows_per_step
from ups_jax.distributed.mesh import check_rows, make_mesh
from ups_jax.distributed.processes import agreed, first_does, is_first, wait_for_all
from ups_jax.runs.best_weights import Weights, best_weights
from ups_jax.runs.directory import RunDirectory, StageRecord, environment, lengths_of, newest_step, now
from ups_jax.tracking import check_logging
from ups_jax.trainer.console import introduce, say, tell_plan
from ups_jax.trainer.frozen_codec import check_source, lines_of, on_fields, record_of, with_latents
from ups_jax.trainer.oom import batch_key
from ups_jax.trainer.parents import trained_parents
from ups_jax.trainer.preflight import (
    check_fold,
    check_init_fold,
    check_needs,
    check_parents,
    check_reach_of_all,
    check_resume,
)
from ups_jax.trainer.stage_run import StageRun, train_stage
from ups_jax.trainer.timing import measure_stage
from ups_jax.training.build import build_joint, joint_validation
from ups_jax.training.run_length import plan_and_record, plan_of
from ups_jax.training.stages import stage_of
from ups_jax.training.state import SpikeMonitor


def train(
    cfg: Config, stage: str, path: Path, *, resume: str = "auto", init_from: Path | None = None, console: Console
) -> RunDirectory:
    """Train `stage` in the run directory `path`, which may be new, begun, or finished.

    `resume`: `auto` goes on where there is something to go on from, `must` insists on it, `never` refuses to.
    `init_from` takes the weights, and nothing else, of another run when this one starts fresh.
    """
    require_determinism(cfg.deterministic)
    check_logging(cfg.logging)
    run = RunDirectory(path)
    check_resume(run, cfg, stage, resume)
    check_needs(run, stage_of(stage), cfg.data.tasks[0].kind)
    check_source(cfg, stage)
    # All that may be wrong with data, configuration or parent comes before the directory is made.
    with console.status("") as status:
        written = first_does(lambda: simulate.prepare(cfg, report=status.update))
    for file in written or ():
        say(console, f"generated   {file}")
    check_rows(make_mesh(cfg.parallel), windows_per_step(cfg, stage), batch_key(stage))
    data = open_mixture(cfg)
    model = build_joint(cfg, data.tasks, stage)
    if getattr(cfg.stages, stage).max_seconds is None:
        plan_of(cfg, data, stage)
    # What latents cannot give is told before a term is looked at, on fields, for the parameters that it reaches.
    model.losses(stage_of(stage), cfg)
    with compiling(cfg.training.compile):
        check_reach_of_all(model, on_fields(cfg), stage, first_batches(data, cfg, stage))
    weights = None if init_from is None else best_weights(init_from, stage)
    if weights is not None:
        check_init_fold(cfg, data.fingerprint, weights)
    data = with_latents(cfg, stage, data, run, weights, init_from)
    # The first process writes what the others read.
    wait_for_all("checked")
    with run.lock():
        # Again, now that no other process can begin a run here.
        if is_first():
            check_resume(run, cfg, stage, resume)
        parents = trained_parents(run, stage, data.kind)
        check_fold(run, cfg, data.fingerprint, parents.fingerprints)
        begun = agreed(run.exists())
        if not begun:
            run.write({"created": now(), "config": to_dict(cfg), "digests": {}, "stages": {}})
            run.write_split(data.split())
        wait_for_all("recorded")
        check_parents(run, stage, parents.checkpoints)
        introduce(console, cfg, stage, data)
        for line in lines_of(cfg, stage, data):
            say(console, line)
        # Who deletes the folder of a stage wants it trained again; one whose checkpoints are gone has lost them.
        deleted = agreed(not run.checkpoints(stage).is_dir())
        recorded = agreed(_record_start(run, cfg, stage))
        try:
            validate = joint_validation(model, stage_of(stage), data, cfg, parents.weights)
            known = list((recorded or {}).get("out_of_memory", ()))

            def measure() -> float:
                measured = measure_stage(cfg, stage, data, model, parents.weights, validate, known, console)
                known.extend(measured.halvings)
                return measured.seconds_per_step

            plan, planned = plan_and_record(cfg, data, stage, recorded or {}, measure)
            tell_plan(console, cfg, stage, plan, planned)
            own = _first_entry(run, weights, init_from) if recorded is None else recorded
            left = ("planned_steps", "budget", *(["saved"] if deleted else []))
            own = {key: value for key, value in own.items() if key not in left} | planned
            own |= {"lengths": lengths_of(cfg, stage)} | record_of(data)
            own |= {"out_of_memory": known} if known else {}
            own |= {"parents": parents.checkpoints} if parents.checkpoints else {}
            record = StageRecord(run, stage, own | {"total_steps": plan.total_steps, "finished": None})
            work = StageRun(
                cfg=cfg,
                stage=stage,
                run=run,
                record=record,
                data=data,
                model=model,
                parents=parents.weights,
                validate=validate,
                plan=plan,
                console=console,
                begun=recorded is not None,
                resume=resume,
                weights=weights,
            )
            with compiling(cfg.training.compile):
                state, seconds_per_step = train_stage(work)
        except BaseException as error:
            # Where the disk is full this fails as well, and `error` is the one to be told.
            with contextlib.suppress(StorageError):
                run.update(status="stopped" if isinstance(error, Stopped | KeyboardInterrupt) else "failed")
            raise
        done = {"steps": int(state.step), "finished": now(), "skipped": int(state.monitor.skipped)}
        if isinstance(state.monitor, SpikeMonitor):
            done["spikes"] = int(state.monitor.spikes.count)
        if seconds_per_step is not None:
            done["seconds_per_step"] = seconds_per_step
        record.finish(**done)
        wait_for_all("finished")
    return run


def _record_start(run: RunDirectory, cfg: Config, stage: str) -> dict[str, Any] | None:
    """Write what this process is and trains; what the record says of the stage so far, None where it is new."""
    record = run.read()
    record |= environment() | {"status": "running", "config": to_dict(cfg)}
    record |= {"device": str(jax.devices()[0].device_kind)}
    record |= {"digests": record["digests"] | {stage: digest(cfg, stage)}}
    run.write(record)
    own: dict[str, Any] | None = record["stages"].get(stage)
    return own


def _first_entry(run: RunDirectory, weights: Weights | None, init_from: Path | None) -> dict[str, Any]:
    """What is recorded of a stage once: when it was begun, the steps that the run's other stages have done by now, and
    whose weights it took."""
    before = sum(newest_step(run.checkpoints(name)) for name in run.read()["stages"])
    parent = {} if weights is None else {"parent": {"run": str(init_from), "step": weights.step}}
    return {"started": now(), "steps_before": before} | parent
