"""Components of the training of one stage: state (new or restored), train step, loop, writers and signal handling.

`trainer.train` combines them.
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
from typing import Any, NamedTuple

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
from ups_jax.optim.parameter_groups import parameter_table, summarize_optimizers
from ups_jax.optim.schedules import build_plateau_rule, host_schedule, patience_evaluations
from ups_jax.runs.best_weights import Weights, check_compatible, first_shape_difference
from ups_jax.runs.checkpoint import Checkpoints, checkpoint_meta, read_validation_metric
from ups_jax.runs.directory import RunDirectory, StageRecord
from ups_jax.tracking import Tee, Writer, close_on_exit, open_training_writer
from ups_jax.trainer import oom
from ups_jax.trainer.console import TrainingProgress, is_end_logged, log_diverged, log_end, was_end_delivered
from ups_jax.trainer.loop import Loop, run_loop
from ups_jax.trainer.parents import init_from_parents
from ups_jax.training.build import JointModel, averaged_params, make_init_state, trains_on_latents
from ups_jax.training.multi_step import make_batch_transfer, steps_per_call
from ups_jax.training.run_length import Plan
from ups_jax.training.stages import stage_spec
from ups_jax.training.stages.spec import Parents, Validate
from ups_jax.training.state import TrainState, state_scale
from ups_jax.training.step import make_train_step


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """Everything that the training of one stage in a run directory needs.

    Attributes:
        record: Entry of the stage in run.json.
        losses: Loss function of each task.
        parents: Weights of the stages that this stage needs.
        validate: Function from weights to validation metrics.
        started_before: Whether run.json already has an entry of this stage from an earlier start.
        resume: `auto`, or `must` to require a checkpoint.
        init_weights: Weights of another run from which a new stage starts.
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
        """The section `stages.<stage>` of the configuration."""
        settings: StageConfig = getattr(self.cfg.stages, self.stage)
        return settings

    @property
    def total_and_epoch_steps(self) -> tuple[int, int]:
        """Total steps and steps per epoch, as the optimizer and the learning-rate schedule take them."""
        return self.plan.total_steps, self.plan.steps_per_epoch

    @cached_property
    def tx(self) -> optax.GradientTransformation:
        """The optimizer."""
        return build_optimizer(self.settings, *self.total_and_epoch_steps)

    @cached_property
    def mesh(self) -> Mesh:
        """The device mesh."""
        return make_mesh(self.cfg.parallel)

    @cached_property
    def example_batch(self) -> Batch:
        """A batch of the first task in host memory, from which shapes are derived."""
        return first_batches(self.data, self.cfg, self.stage)[0]

    @cached_property
    def steps_per_call(self) -> int:
        """The maximum number of optimizer steps in one call of the train step."""
        return steps_per_call(self.cfg, self.data, self.example_batch, self.mesh)

    @cached_property
    def abstract_state(self) -> TrainState:
        """The train state as abstract arrays with shapes, dtypes and shardings."""
        abstract: TrainState = abstract_with_sharding(
            self.mesh, jax.eval_shape(self.init_state, jax.random.key(self.cfg.seed), self.example_batch)
        )
        return abstract

    @property
    def parameter_count(self) -> int:
        """The number of trainable parameters."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.abstract_state.params))

    @cached_property
    def init_state(self) -> Callable[[Key[Array, ""], Batch], TrainState]:
        """The function from a key and a batch to the state at step 0; its shapes and its values need one trace."""
        return make_init_state(self.model, self.tx, stage=self.stage, cfg=self.cfg)

    def print_line(self, line: str) -> None:
        """Print a line to the console."""
        print_line(self.console, line)

    def print_parameters(self) -> None:
        """Print the number of parameters, in total and for each optimizer."""
        self.print_line(f"parameters  {self.parameter_count:,} (operator {self.cfg.operator.architecture_type})")
        rows = parameter_table(self.abstract_state.params, self.settings)
        self.print_line(f"optimizers  {summarize_optimizers(rows)}")

    def build_train_step(self) -> oom.OomRetryStep:
        """Return the train step; its first micro-batch size is the one that fitted into memory before (run.json).

        Compilations and further halvings of the micro-batch are printed and recorded in run.json.
        """
        cfg, stage = self.cfg, self.stage
        halvings: list[oom.HalvingRecord] = self.record.values.get("out_of_memory", [])
        micro_batches = oom.initial_micro_batches(cfg, stage, halvings)
        if micro_batches > self.settings.accum_steps:
            sizes = oom.describe_micro_batches(cfg, stage, micro_batches)
            self.print_line(f"memory      {sizes}, because run.json records that this device ran out of memory")

        def on_halved(rows: int, micro_batches: int) -> None:
            sizes = oom.describe_micro_batches(cfg, stage, micro_batches)
            self.print_line(f"memory      the device ran out of memory; from now on {sizes}, same optimizer step")
            halvings.append(oom.halving_record(cfg, rows, micro_batches))
            self.record.update(out_of_memory=halvings)

        def on_compiled(seconds: float) -> None:
            self.print_line(f"compiled    in {seconds:.3g} s")
            self.record.update(compile_seconds=seconds)

        make_step = partial(
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
        return oom.OomRetryStep(
            make_step,
            windows_per_step(cfg, stage),
            micro_batches,
            config_key=oom.batch_size_key(stage),
            ahead_of_time=cfg.training.compile,
            on_halved=on_halved,
            on_compiled=on_compiled,
        )


def restore_or_init_state(training: TrainingRun, checkpoints: Checkpoints) -> TrainState:
    """Return the state of the newest intact checkpoint, or a new state at step 0.

    A new state starts from the weights of `--init-from`, or from the values that the stage takes from its parents.

    Raises:
        ConfigError: The run was trained on other data, or the state does not fit into device memory.
        CheckpointError: The run must have a checkpoint, but none can be read.
    """
    abstract = training.abstract_state

    def check_data(saved: dict[str, Any]) -> None:
        if saved["fingerprint"] != training.data.fingerprint_like(saved["fingerprint"]):
            raise ConfigError(
                f"{training.run.path}: cannot be resumed with other data than it was trained on; give a new --run-dir"
            )

    saved = training.record.values.get("saved", 0)
    too_large = ConfigError(
        f"{training.run.path}: the state of the checkpoint does not fit into device memory; end other programs on the "
        "device, or use more devices"
    )
    with oom.raise_on_oom(too_large):
        state: TrainState | None = checkpoints.restore_latest(abstract, check_data, training.print_line)
    if state is not None:
        _record_quarantined(training, checkpoints, int(state.step))
        training.print_line(f"resumed     at step {int(state.step)} of {training.plan.total_steps}")
        if saved > int(state.step):
            training.print_line(
                f"lost        the checkpoint of step {saved} is missing or damaged; the steps up to it are repeated"
            )
        if training.init_weights is not None:
            training.print_line("weights     --init-from is ignored, because this run has a checkpoint")
        return state
    if saved > 0:
        raise CheckpointError(
            f"{checkpoints.directory}: all checkpoints are missing, the last was step {saved}; "
            "restore one from a backup, or give a new --run-dir"
        )
    if training.resume == "must":
        raise CheckpointError(
            f"{training.run.path}: holds no checkpoint of {training.stage}; give --resume auto to start this stage"
        )
    if trains_on_latents(training.cfg, training.stage) and training.init_weights is None:
        raise CheckpointError(f"{training.run.path}: holds no trained codec, which latents need; give --init-from RUN")
    if training.started_before:
        training.print_line("restarted   at step 0: the stage was started before but has no checkpoint")
    state = training.init_state(jax.random.key(training.cfg.seed), training.example_batch)
    local_state = replace(state, rng=gather_to_local(training.mesh, state.rng))
    initialised = init_from_parents(
        training.cfg, training.stage, training.model, training.data, training.parents, local_state
    )
    state = replace(initialised, rng=state.rng)
    if training.init_weights is not None:
        weights, scope = training.init_weights, ""
        differs = first_shape_difference(weights.params, abstract.params) is not None
        if trains_on_latents(training.cfg, training.stage) and differs:
            weights = replace(weights, params={**state.params, CODEC: weights.params[CODEC]})
            scope = "the codec only (the operator has other shapes and starts untrained): "
        # Copy: the step donates its state, and an out-of-memory retry needs these weights.
        state = replace(state, params=jax.tree.map(jnp.copy, check_compatible(weights, abstract.params)))
        training.print_line(f"weights     {scope}from stage {training.stage} of --init-from, step {weights.step}")
    return device_put(training.mesh, state)


def make_loop(training: TrainingRun, train_step: oom.OomRetryStep, checkpoints: Checkpoints) -> Loop:
    """Return the training loop of a stage, with the functions, data and rules that it uses."""
    cfg, stage, settings, plan = training.cfg, training.stage, training.settings, training.plan
    schedule = build_schedule(settings.scheduler, settings.optimizer.lr, *training.total_and_epoch_steps)
    meta, spec, mesh = checkpoint_meta(cfg, stage, training.data), stage_spec(stage), training.mesh

    @jax.jit
    def averaged_weights(state: TrainState) -> Any:
        return spec.build_weights(averaged_params(cfg, stage, state, settings.ema_decay), state_scale(state))

    validate = oom.with_validation_oom_error(training.validate)

    def save(state: TrainState, validation: float | None) -> None:
        checkpoints.wait()
        _record_saved_step(training, checkpoints)
        checkpoints.save(state, meta, validation=validation)

    return Loop(
        stage=stage,
        plan=plan,
        steps_before=training.record.values.get("steps_before", 0),
        train_step=train_step,
        open_batches=partial(training_batches, training.data, cfg, stage, **process_slice()),
        steps_per_call=training.steps_per_call,
        to_device=make_batch_transfer(mesh, training.steps_per_call),
        shard=partial(device_put, mesh),
        # Each process validates on the complete split; all processes use the metrics of host 0.
        averaged_weights=lambda state: gather_to_local(mesh, averaged_weights(state)),
        validate=lambda weights: broadcast_from_host0(validate(weights)),
        selection_metric=spec.selection_metric(cfg),
        target_metric=spec.target_metric(cfg),
        describe_fault=spec.check_metrics,
        save=save,
        step_with_validation=checkpoints.step_with_validation,
        learning_rate=host_schedule(schedule),
        patience=patience_evaluations(settings, plan.steps_per_epoch, plan.eval_steps),
        plateau=build_plateau_rule(settings, *training.total_and_epoch_steps, plan.eval_steps),
    )


def _record_saved_step(training: TrainingRun, checkpoints: Checkpoints) -> None:
    """Record the newest saved step in run.json, so that a later start can detect missing checkpoints."""
    steps = checkpoints.steps()
    if steps and training.record.values.get("saved") != steps[-1]:
        training.record.update(saved=steps[-1])


def _record_quarantined(training: TrainingRun, checkpoints: Checkpoints, resumed_step: int) -> None:
    """Record in run.json the validation metrics of the quarantined checkpoints of steps before the resumed step.

    One of these damaged checkpoints may have been the best one. A metric that cannot be read is recorded as None.
    """
    metrics: dict[str, float | None] = {}
    for step, folder in checkpoints.quarantined.items():
        if step >= resumed_step:
            continue
        try:
            value = read_validation_metric(folder)
        except CheckpointError:
            metrics[str(step)] = None
        else:
            metrics |= {} if value is None else {str(step): value}
    if metrics:
        training.record.update(set_aside=training.record.values.get("set_aside", {}) | metrics)


class LoopResult(NamedTuple):
    """The last state of a training loop, and the wall time per step of the loop, None if no step was timed."""

    state: TrainState
    seconds_per_step: float | None


def run_with_writers(
    training: TrainingRun, loop: Loop, state: TrainState, checkpoints: Checkpoints, should_stop: Callable[[], bool]
) -> LoopResult:
    """Run the training loop of a stage with metric writers and a progress bar.

    Args:
        state: First state; its buffers are donated.
        should_stop: Returns True after a signal to stop.
    """
    cfg, stage, run, total = training.cfg, training.stage, training.run, training.plan.total_steps
    start = int(state.step)
    open_writer: Writer = Tee(())
    if is_host0():
        open_writer = open_training_writer(
            run.path, run.metrics_path, cfg.logging, stage=stage, step=start, run_config=to_dict(cfg)
        )
    with (
        close_on_exit(open_writer, oom.is_retried) as writer,
        TrainingProgress(training.console, stage, total, start, cfg.logging.every_seconds) as progress,
    ):
        writer.tags((stage, *(task.name for task in training.data.tasks)))
        writer.config({f"{stage}/parameters": training.parameter_count, f"{stage}/total_steps": total})
        try:
            state = run_loop(loop, state, cfg, writer, progress, should_stop)
        except DivergedError as error:
            log_diverged(writer, run, stage, error)
            raise
        except Stopped:
            # Finish the save before `watch_stop_signals` restores the default handlers: a signal would interrupt it.
            checkpoints.wait()
            _record_saved_step(training, checkpoints)
            raise
        checkpoints.wait()
        _record_saved_step(training, checkpoints)
        logged_before = is_end_logged(run, stage, state)
        if not logged_before:
            log_end(writer, cfg.logging.wandb, run, stage, checkpoints, state)
    if not logged_before and was_end_delivered(writer):
        training.record.update(told=int(state.step))
    return LoopResult(state, progress.seconds_per_step)


@contextmanager
def watch_stop_signals() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns True after SIGTERM, SIGINT or SIGHUP; a second Ctrl-C raises KeyboardInterrupt."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def handle_signal(number: int, _: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    numbers = [signal.SIGTERM, signal.SIGINT, *hangup_signals()]
    previous = {number: signal.signal(number, handle_signal) for number in numbers}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
