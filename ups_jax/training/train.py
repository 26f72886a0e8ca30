"""One stage of one run, from its directory to its trained state: start fresh, go on, or start from other weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

from ups_jax import simulate
from ups_jax.compilation import compiling
from ups_jax.config import Config, digest, to_dict
from ups_jax.data import Dataset, batch_at, open_dataset, steps_per_epoch, training_batches
from ups_jax.determinism import require_determinism
from ups_jax.errors import CheckpointError, ConfigError, DivergedError, Stopped
from ups_jax.optim import build_optimizer, build_schedule, ema_params
from ups_jax.optim.schedules import build_plateau, patience_evaluations
from ups_jax.optim.table import parameter_table, summary
from ups_jax.tracking import check_logging, ending, training_writer
from ups_jax.training.budget import measure_seconds, measure_seconds_per_step
from ups_jax.training.build import build_model, init_state
from ups_jax.training.checkpoint import Checkpoints, checkpoint_meta
from ups_jax.training.guards import check_needs, check_resume
from ups_jax.training.loop import Stage, run_loop
from ups_jax.training.memory import fitting_step, fitting_validation
from ups_jax.training.plan import Plan, eval_steps, plan_and_record, plan_of
from ups_jax.training.progress import TrainingProgress
from ups_jax.training.reach import check_reach
from ups_jax.training.run_directory import RunDirectory, environment, newest_step, now
from ups_jax.training.signals import stop_flag
from ups_jax.training.stage_end import is_told, tell_diverged, tell_end
from ups_jax.training.stages import stage_of
from ups_jax.training.stages.spec import Validate
from ups_jax.training.state import SpikeMonitor, TrainState
from ups_jax.training.trial import trial
from ups_jax.training.weights import Weights, best_weights, fitting


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
    check_needs(run, stage_of(stage))
    # All that may be wrong with data, configuration or parent comes before the directory is made.
    with console.status("") as status:
        written = simulate.prepare(cfg, report=status.update)
    for file in written:
        console.print(f"generated   {file}", highlight=False, soft_wrap=True)
    dataset = open_dataset(cfg)
    model = build_model(cfg, dataset.task, stage)
    if getattr(cfg.stages, stage).max_seconds is None:
        plan_of(cfg, dataset, stage)
    with compiling(cfg.training.compile):
        check_reach(model, cfg, stage, batch_at(dataset, cfg, stage, 0))
    parent = None if init_from is None else best_weights(init_from, stage)
    with run.lock():
        # Again, now that no other process can begin a run here.
        check_resume(run, cfg, stage, resume)
        begun = run.exists()
        if not begun:
            run.write({"created": now(), "digests": {}, "stages": {}})
        _introduce(console, dataset)
        record = run.read()
        record |= environment() | {"status": "running", "config": to_dict(cfg)}
        record |= {"device": str(jax.devices()[0].device_kind)}
        record |= {"digests": record["digests"] | {stage: digest(cfg, stage)}}
        run.write(record)
        try:
            validate = stage_of(stage).validate(model, dataset, cfg.evaluation)
            own = record["stages"].get(stage)
            plan, planned = plan_and_record(
                cfg, dataset, stage, own or {}, lambda: _seconds_per_step(cfg, stage, dataset, model, validate, console)
            )
            _tell_plan(console, cfg, stage, plan, planned)
            if own is None:
                own = {"started": now(), "steps_before": _steps_before(run, record["stages"])}
                if parent is not None:
                    own["parent"] = {"run": str(init_from), "step": parent.step}
            own = {key: value for key, value in own.items() if key not in ("planned_steps", "budget")} | planned
            own |= {"total_steps": plan.total_steps, "finished": None}
            run.write(record | {"stages": record["stages"] | {stage: own}})
            steps_before = own.get("steps_before", 0)

            def note(**values: Any) -> None:
                own.update(values)
                written = run.read()
                run.write(written | {"stages": written["stages"] | {stage: own}})

            with compiling(cfg.training.compile):
                state, seconds_per_step = _train(
                    cfg, stage, run, dataset, model, validate, plan, steps_before, resume, parent, begun, note, console
                )
        except BaseException as error:
            run.update(status="stopped" if isinstance(error, Stopped | KeyboardInterrupt) else "failed")
            raise
        own |= {"steps": int(state.step), "finished": now(), "skipped": int(state.monitor.skipped)}
        if isinstance(state.monitor, SpikeMonitor):
            own["spikes"] = int(state.monitor.spikes.count)
        if seconds_per_step is not None:
            own["seconds_per_step"] = seconds_per_step
        record = run.read()
        run.write(record | {"status": "finished", "stages": record["stages"] | {stage: own}})
    return run


def _introduce(console: Console, dataset: Dataset) -> None:
    device = jax.devices()[0]
    console.print(
        f"device      {device.device_kind} ({device.platform}, {jax.device_count()} in use)",
        highlight=False,
        soft_wrap=True,
    )
    if device.platform == "cpu":
        console.print("            no accelerator was found: this runs on the CPU", highlight=False, soft_wrap=True)
    sizes, task = dataset.sizes, dataset.task
    given = f"dt {task.dt:g}" if task.kind == "transient" else f"steady, given {', '.join(i.name for i in task.inputs)}"
    console.print(
        f"data        {task.name}: {sizes['train']}/{sizes['val']}/{sizes['test']} trajectories, "
        f"{' x '.join(map(str, task.shape))} points, {given}, channels {', '.join(task.channels)}",
        highlight=False,
        soft_wrap=True,
    )
    for note in dataset.notes:
        console.print(f"note        {note}", highlight=False, markup=False, soft_wrap=True)


def _tell_plan(console: Console, cfg: Config, stage: str, plan: Plan, planned: dict[str, Any]) -> None:
    settings = getattr(cfg.stages, stage)
    windows = f"{settings.accum_steps} x " * (settings.accum_steps > 1) + f"{settings.batch_size}"
    budget = planned.get("budget")
    within = ""
    if budget is not None:
        within = (
            f", {budget['max_seconds']:g} s at {1e3 * budget['seconds_per_step']:.3g} ms a step with its validation"
        )
    console.print(
        f"plan        {plan.total_steps} steps of {windows} windows "
        f"({plan.total_steps / plan.steps_per_epoch:.3g} epochs{within}), {settings.optimizer.name}, "
        f"{cfg.training.precision}",
        highlight=False,
        soft_wrap=True,
    )


def _seconds_per_step(
    cfg: Config, stage: str, dataset: Dataset, model: Any, validate: Validate, console: Console
) -> float:
    """Wall time of a compiled step and its share of a validation, on states that are thrown away."""
    with (
        compiling(cfg.training.compile),
        console.status("measuring the step"),
        trial(cfg, stage, dataset, model) as tried,
    ):
        train_step = fitting_step(cfg, stage, model, tried.tx, steps_per_epoch(dataset, cfg, stage))
        step = train_step.carried_through(lambda: measure_seconds_per_step(train_step, tried.begin(), tried.batches))
        params = tried.begin().params
        validation = measure_seconds(lambda: validate(params))
    return step + validation / eval_steps(cfg, dataset, stage)


def _train(
    cfg: Config,
    stage: str,
    run: RunDirectory,
    dataset: Dataset,
    model: Any,
    validate: Validate,
    plan: Plan,
    steps_before: int,
    resume: str,
    parent: Weights | None,
    begun: bool,
    note: Callable[..., None],
    console: Console,
) -> tuple[TrainState, float | None]:
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    settings = getattr(cfg.stages, stage)
    lengths = plan.total_steps, plan.steps_per_epoch
    tx = build_optimizer(settings, *lengths)
    key = jax.random.key(cfg.seed)
    first = jax.device_put(batch_at(dataset, cfg, stage, 0))
    like = jax.eval_shape(partial(init_state, model, tx, stage=stage, cfg=cfg), first, key)
    meta = checkpoint_meta(cfg, stage, dataset)

    def same_data(saved: dict[str, Any]) -> None:
        if saved["fingerprint"] != dataset.fingerprint:
            raise ConfigError(
                f"{run.path}: was trained on other data than the configuration names; give a new --run-dir"
            )

    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(like.params))
    say(f"parameters  {count:,} (operator {cfg.operator.architecture_type})")
    say(f"optimizers  {summary(parameter_table(like.params, settings))}")
    shrunk: list[dict[str, Any]] = []
    with Checkpoints(run.checkpoints(stage), keep=cfg.checkpoint.keep) as checkpoints:

        def begin() -> TrainState:
            state = checkpoints.restore_latest(like, same_data, say)
            if state is None:
                if resume == "must":
                    raise CheckpointError(f"{run.path}: holds no checkpoint of {stage}; leave out --resume must")
                if begun:
                    say("begun       before, but stopped ahead of its first checkpoint: at step 0 again")
                state = init_state(model, tx, first, key, stage=stage, cfg=cfg)
                if parent is not None:
                    # Copies: the step takes its state's buffers, and this may have to begin once more.
                    state = replace(state, params=jax.tree.map(jnp.copy, fitting(parent, like.params)))
                    say(f"weights     of another run's {stage} stage, at its step {parent.step}")
            else:
                say(f"resumed     at step {int(state.step)} of {plan.total_steps}")
                if parent is not None:
                    say("weights     of --init-from are not used: this run has its own by now")
            return state

        def halved(rows: int, groups: int) -> None:
            say(f"memory      ran out: {groups} micro-batches of {rows} rows a step from now on, the step is the same")
            shrunk.append({"micro_batch": rows, "accum_steps": groups, "time": now()})
            note(out_of_memory=shrunk)

        def compiled(seconds: float) -> None:
            say(f"compiled    in {seconds:.3g} s")
            note(compile_seconds=seconds)

        train_step = fitting_step(cfg, stage, model, tx, plan.steps_per_epoch, halved=halved, compiled=compiled)
        averaged = jax.jit(lambda state: ema_params(state.params, state.ema, settings.ema_decay))
        schedule = build_schedule(settings.scheduler, settings.optimizer.lr, *lengths)
        loop_stage = Stage(
            name=stage,
            plan=plan,
            steps_before=steps_before,
            train_step=train_step,
            batches=lambda start: training_batches(dataset, cfg, stage, start),
            averaged=averaged,
            validate=fitting_validation(validate),
            selected_by=stage_of(stage).selected_by(cfg.evaluation),
            save=lambda state, validation: checkpoints.save(state, meta, validation=validation),
            step_of=checkpoints.step_of,
            learning_rate=lambda step: float(schedule(step)),
            patience=patience_evaluations(settings, plan.steps_per_epoch, plan.eval_steps),
            plateau=build_plateau(settings, *lengths, plan.eval_steps),
        )

        def attempt(should_stop: Callable[[], bool]) -> tuple[TrainState, float | None]:
            checkpoints.wait()
            state = begin()
            start = int(state.step)
            tracked = training_writer(
                run.path, run.metrics_path, cfg.logging, stage=stage, step=start, run_config=to_dict(cfg)
            )
            with (
                ending(tracked) as writer,
                TrainingProgress(console, stage, plan.total_steps, start, cfg.logging.every_seconds) as progress,
            ):
                writer.tags((stage, dataset.task.name))
                writer.config({f"{stage}/parameters": count, f"{stage}/total_steps": plan.total_steps})
                try:
                    state = run_loop(loop_stage, state, cfg, writer, progress, should_stop)
                except DivergedError as error:
                    tell_diverged(writer, run, stage, error)
                    raise
                checkpoints.wait()
                if not is_told(run, stage, state):
                    tell_end(writer, cfg.logging.wandb, run, stage, checkpoints, state)
            note(told=int(state.step))
            return state, progress.seconds_per_step

        with stop_flag() as should_stop:
            state, seconds_per_step = train_step.carried_through(lambda: attempt(should_stop))
    return state, seconds_per_step


def _steps_before(run: RunDirectory, stages: dict[str, Any]) -> int:
    """The steps that the stages which were begun before have done by now."""
    return sum(newest_step(run.checkpoints(name)) for name in stages)
