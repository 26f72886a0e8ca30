"""The parts of one stage's training: its state, built or restored, its train step, its loop, and its writers.

`train` puts them together.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Key
from rich.console import Console

from ups_jax.config import Config, StageConfig, to_dict
from ups_jax.core.errors import CheckpointError, ConfigError, DivergedError, Stopped
from ups_jax.core.terminal import hangup_signals, print_line
from ups_jax.data import Mixture, first_batches, training_batches, windows_per_step
from ups_jax.distributed.mesh import abstract_with_sharding, device_put, gather_to_local, make_mesh
from ups_jax.distributed.processes import broadcast_from_host0, is_host0, process_slice
from ups_jax.losses import StageLoss
from ups_jax.models import Batch
from ups_jax.models.codec import CODEC
from ups_jax.optim import build_optimizer, build_schedule
from ups_jax.optim.parameter_groups import parameter_table, summary
from ups_jax.optim.schedules import build_plateau, patience_evaluations, told_rates
from ups_jax.runs.best_weights import Weights, difference, fitting
from ups_jax.runs.checkpoint import Checkpoints, checkpoint_meta, validation_of
from ups_jax.runs.directory import RunDirectory, StageRecord
from ups_jax.tracking import Tee, Writer, ending, training_writer
from ups_jax.trainer import oom
from ups_jax.trainer.console import TrainingProgress, is_logged, log_diverged, log_end, was_delivered
from ups_jax.trainer.loop import Loop, run_loop
from ups_jax.trainer.parents import init_from_parents
from ups_jax.training.build import JointModel, averaged, holds_codec, init_state
from ups_jax.training.multi_step import as_given, steps_per_call
from ups_jax.training.run_length import Plan
from ups_jax.training.stages import stage_of
from ups_jax.training.stages.spec import Parents, Validate
from ups_jax.training.state import TrainState, scale_of
from ups_jax.training.step import make_train_step


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What the training of one stage in a run directory works on.

    Attributes:
        record: The stage's entry in run.json.
        losses: The loss of each task's model.
        parents: Weights of the stages that this stage needs.
        started_before: Whether the run directory held this stage before.
        resume: `must` insists on a checkpoint to resume.
        weights: Weights of another run that a fresh start takes.
    """

    cfg: Config
    stage: str
    run: RunDirectory
    record: StageRecord
    data: Mixture
    model: JointModel
    losses: Sequence[StageLoss]
    parents: Parents
    validate: Validate
    plan: Plan
    console: Console
    started_before: bool = False
    resume: str = "auto"
    init_weights: Weights | None = None

    @property
    def settings(self) -> StageConfig:
        """The stage's section of the configuration."""
        settings: StageConfig = getattr(self.cfg.stages, self.stage)
        return settings

    @property
    def lengths(self) -> tuple[int, int]:
        """Steps in all and steps of an epoch, as optimizer and schedule take them."""
        return self.plan.total_steps, self.plan.steps_per_epoch

    @cached_property
    def tx(self) -> optax.GradientTransformation:
        return build_optimizer(self.settings, *self.lengths)

    @cached_property
    def mesh(self) -> Mesh:
        return make_mesh(self.cfg.parallel)

    @cached_property
    def example_batch(self) -> Batch:
        """A batch of the first task on the host, for its shapes."""
        return first_batches(self.data, self.cfg, self.stage)[0]

    @cached_property
    def steps_per_call(self) -> int:
        """The most steps that a call of the train step makes."""
        return steps_per_call(self.cfg, self.data, self.example_batch, self.mesh)

    @cached_property
    def abstract_state(self) -> TrainState:
        """Shapes and shardings of the state."""
        abstract: TrainState = abstract_with_sharding(
            self.mesh, jax.eval_shape(self.initial_state, jax.random.key(self.cfg.seed))
        )
        return abstract

    @property
    def parameter_count(self) -> int:
        """The number of parameters."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.abstract_state.params))

    def initial_state(self, key: Key[Array, ""]) -> TrainState:
        """Return a state at step 0."""
        return init_state(self.model, self.tx, self.example_batch, key, stage=self.stage, cfg=self.cfg)

    def print_line(self, line: str) -> None:
        print_line(self.console, line)

    def log_parameters(self) -> None:
        """Print the number of parameters and the optimizer of each."""
        self.print_line(f"parameters  {self.parameter_count:,} (operator {self.cfg.operator.architecture_type})")
        self.print_line(f"optimizers  {summary(parameter_table(self.abstract_state.params, self.settings))}")

    def train_step(self) -> oom.OomRetryStep:
        """Return the train step, in as many micro-batches as memory has needed so far. Compilations and further
        halvings are printed and recorded."""
        cfg, stage = self.cfg, self.stage
        known: list[oom.HalvingRecord] = self.record.values.get("out_of_memory", [])
        groups = oom.initial_micro_batches(cfg, stage, known)
        if groups > self.settings.accum_steps:
            self.print_line(
                f"memory      ran out on this device before: {oom.describe_micro_batches(cfg, stage, groups)}, as run.json has it"
            )

        def halved(rows: int, groups: int) -> None:
            self.print_line(
                f"memory      ran out: {oom.describe_micro_batches(cfg, stage, groups)} from now on, the step is the same"
            )
            known.append(oom.halving_record(cfg, rows, groups))
            self.record.note(out_of_memory=known)

        def compiled(seconds: float) -> None:
            self.print_line(f"compiled    in {seconds:.3g} s")
            self.record.note(compile_seconds=seconds)

        make = partial(
            make_train_step,
            self.model,
            self.tx,
            cfg,
            stage=stage,
            steps_per_epoch=self.plan.steps_per_epoch,
            parents=self.parents,
            losses=self.losses,
            steps_per_call=self.steps_per_call,
        )
        rows, ahead = windows_per_step(cfg, stage), cfg.training.compile
        return oom.OomRetryStep(
            make,
            rows,
            groups,
            config_key=oom.batch_size_key(stage),
            ahead_of_time=ahead,
            on_halved=halved,
            on_compiled=compiled,
        )


def restore_or_start(work: TrainingRun, checkpoints: Checkpoints) -> TrainState:
    """Return the state of the newest sound checkpoint, or a fresh one with the weights of `--init-from`."""
    like = work.abstract_state

    def same_data(saved: dict[str, Any]) -> None:
        if saved["fingerprint"] != work.data.fingerprint:
            raise ConfigError(
                f"{work.run.path}: was trained on other data than the configuration names; give a new --run-dir"
            )

    saved = work.record.values.get("saved", 0)
    full = ConfigError(
        f"{work.run.path}: the device's memory does not hold the state of a checkpoint; free it, or use more"
    )
    with oom.raise_on_oom(full):
        state: TrainState | None = checkpoints.restore_latest(like, same_data, work.print_line)
    if state is not None:
        _note_set_aside(work, checkpoints, int(state.step))
        work.print_line(f"resumed     at step {int(state.step)} of {work.plan.total_steps}")
        if saved > int(state.step):
            work.print_line(
                f"lost        step {saved}, which was saved and is not there or damaged by now: it is done again"
            )
        if work.init_weights is not None:
            work.print_line("weights     of --init-from are not used: this run has its own by now")
        return state
    if saved > 0:
        raise CheckpointError(
            f"{checkpoints.directory}: the checkpoints are gone, of which step {saved} was the last; "
            "bring one back from a copy, or train in another run directory"
        )
    if work.resume == "must":
        raise CheckpointError(f"{work.run.path}: holds no checkpoint of {work.stage}; leave out --resume must")
    if holds_codec(work.cfg, work.stage) and work.init_weights is None:
        raise CheckpointError(f"{work.run.path}: has no checkpoint whose codec could be held; give --init-from RUN")
    if work.started_before:
        work.print_line("begun       before, but there is no checkpoint of it: at step 0 again")
    state = work.initial_state(jax.random.key(work.cfg.seed))
    own = replace(state, rng=gather_to_local(work.mesh, state.rng))
    state = replace(init_from_parents(work.cfg, work.stage, work.model, work.data, work.parents, own), rng=state.rng)
    if work.init_weights is not None:
        weights, told = work.init_weights, "weights     "
        if holds_codec(work.cfg, work.stage) and difference(weights.params, like.params) is not None:
            weights = replace(weights, params={**state.params, CODEC: weights.params[CODEC]})
            told += "of the codec alone (this operator has other shapes and starts fresh), "
        # Copies: the step takes its state's buffers, and this may have to begin once more.
        state = replace(state, params=jax.tree.map(jnp.copy, fitting(weights, like.params)))
        work.print_line(f"{told}of another run's {work.stage} stage, at its step {weights.step}")
    return device_put(work.mesh, state)


def make_loop(work: TrainingRun, train_step: oom.OomRetryStep, checkpoints: Checkpoints) -> Loop:
    """Return the loop of a stage: its functions, its data and where its state goes."""
    cfg, stage, settings, plan = work.cfg, work.stage, work.settings, work.plan
    schedule = build_schedule(settings.scheduler, settings.optimizer.lr, *work.lengths)
    meta, spec, mesh = checkpoint_meta(cfg, stage, work.data), stage_of(stage), work.mesh

    @jax.jit
    def averaged_weights(state: TrainState) -> Any:
        return spec.weights(averaged(cfg, stage, state, settings.ema_decay), scale_of(state))

    validate = oom.with_oom_error(work.validate)

    def save(state: TrainState, validation: float | None) -> None:
        checkpoints.wait()
        _note_saved(work, checkpoints)
        checkpoints.save(state, meta, validation=validation)

    return Loop(
        stage=stage,
        plan=plan,
        steps_before=work.record.values.get("steps_before", 0),
        train_step=train_step,
        batches=partial(training_batches, work.data, cfg, stage, **process_slice()),
        steps_per_call=work.steps_per_call,
        to_device=as_given(mesh, work.steps_per_call),
        shard=partial(device_put, mesh),
        # Every process measures all of it by itself; the first one's numbers decide.
        averaged_weights=lambda state: gather_to_local(mesh, averaged_weights(state)),
        validate=lambda weights: broadcast_from_host0(validate(weights)),
        selected_by=spec.selected_by(cfg),
        target=spec.target(cfg),
        fault=spec.fault,
        save=save,
        step_of=checkpoints.step_of,
        learning_rate=told_rates(schedule),
        patience=patience_evaluations(settings, plan.steps_per_epoch, plan.eval_steps),
        plateau=build_plateau(settings, *work.lengths, plan.eval_steps),
    )


def _note_saved(work: TrainingRun, checkpoints: Checkpoints) -> None:
    """Keep in the record which step is on disk, so that a start knows when its checkpoints have been lost."""
    steps = checkpoints.steps()
    if steps and work.record.values.get("saved") != steps[-1]:
        work.record.note(saved=steps[-1])


def _note_set_aside(work: TrainingRun, checkpoints: Checkpoints, resumed: int) -> None:
    """Keep in the record which steps were found damaged that are not done again, and what they were validated with
    (None where that is damaged as well): one of them may have been the best."""
    found: dict[str, float | None] = {}
    for step, folder in checkpoints.set_aside.items():
        if step >= resumed:
            continue
        try:
            value = validation_of(folder)
        except CheckpointError:
            found[str(step)] = None
        else:
            found |= {} if value is None else {str(step): value}
    if found:
        work.record.note(set_aside=work.record.values.get("set_aside", {}) | found)


def run_with_writers(
    work: TrainingRun, loop: Loop, state: TrainState, checkpoints: Checkpoints, should_stop: Callable[[], bool]
) -> tuple[TrainState, float | None]:
    """Run the loop from `state` on, with writers and a progress bar.

    Returns:
        The state at the end, and the seconds per step, None where no step was made.
    """
    cfg, stage, run, total = work.cfg, work.stage, work.run, work.plan.total_steps
    start = int(state.step)
    tracked: Writer = Tee(())
    if is_host0():
        about = to_dict(cfg)
        tracked = training_writer(run.path, run.metrics_path, cfg.logging, stage=stage, step=start, run_config=about)
    with (
        ending(tracked, oom.is_retried) as writer,
        TrainingProgress(work.console, stage, total, start, cfg.logging.every_seconds) as progress,
    ):
        writer.tags((stage, *(task.name for task in work.data.tasks)))
        writer.config({f"{stage}/parameters": work.parameter_count, f"{stage}/total_steps": total})
        try:
            state = run_loop(loop, state, cfg, writer, progress, should_stop)
        except DivergedError as error:
            log_diverged(writer, run, stage, error)
            raise
        except Stopped:
            # On the disk before the next signal can come, as long as signals only raise a flag.
            checkpoints.wait()
            _note_saved(work, checkpoints)
            raise
        checkpoints.wait()
        _note_saved(work, checkpoints)
        known = is_logged(run, stage, state)
        if not known:
            log_end(writer, cfg.logging.wandb, run, stage, checkpoints, state)
    if not known and was_delivered(writer):
        work.record.note(told=int(state.step))
    return state, progress.seconds_per_step


@contextmanager
def stop_flag() -> Iterator[Callable[[], bool]]:
    """A function that answers whether to stop; a second Ctrl-C interrupts at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def remember(number: int, _: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    numbers = [signal.SIGTERM, signal.SIGINT, *hangup_signals()]
    previous = {number: signal.signal(number, remember) for number in numbers}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
