"""The training loop of all stages: evaluate, save, THEN draw the next batch and step.

With this order the saved step is the position in the data: a resumed run draws the batch that the interrupted run would
have drawn next.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp

from ups_jax.config import Config
from ups_jax.core.errors import DivergedError, Stopped
from ups_jax.distributed.processes import any_host
from ups_jax.models import Batch
from ups_jax.optim.plateau import PlateauRule, plateau_scale, update_plateau
from ups_jax.tracking import Writer
from ups_jax.trainer.console import TrainingProgress
from ups_jax.training.multi_step import Batches as StackedBatches
from ups_jax.training.multi_step import unstack_metrics
from ups_jax.training.run_length import Plan
from ups_jax.training.stages.spec import Validate
from ups_jax.training.state import TrainState
from ups_jax.training.step import Metrics

# First step, last step and metrics of a call of the train step; the metrics are still on the device.
Pending = tuple[int, int, dict[str, Any]] | None
# Start step -> context manager whose value iterates over the batches from that step on.
Batches = Callable[[int], AbstractContextManager[Iterator[Batch]]]


@dataclass(frozen=True, kw_only=True)
class Loop:
    """The functions, data and rules of a stage's training loop.

    Attributes:
        stage: Name of the stage.
        plan: Number of steps and interval of evaluations.
        steps_before: Steps of the earlier stages of the run, added to `global_step`.
        train_step: Function `(state, batch) -> (state, metrics)`.
        batches: Context manager of the batch iterator that starts at a step.
        averaged_weights: Function from a state to the averaged weights that are validated.
        to_device: Function that stacks and transfers the batches of a call.
        steps_per_call: Maximum number of optimizer steps in a call of `train_step`.
        shard: Function that restores the sharding of a state after a change on the host.
        validate: Function from weights to validation metrics.
        selection_metric: Validation metric that selects the best checkpoint; lower is better.
        save: Function that saves a state with its value of that metric, or None between evaluations.
        step_of: Function from a value of that metric to the step of its checkpoint, or None if there is none.
        learning_rate: Function from a step to the scheduled learning rate, without plateau reductions.
        patience: Evaluations without improvement after which the stage ends; None for no limit.
        plateau: Rule that reduces the learning rate after evaluations without improvement.
        target: Value of `selection_metric` at or below which the stage ends; 0 for none.
        fault: Function from validation metrics to a description of what is wrong with them, or None.
    """

    stage: str
    plan: Plan
    steps_before: int
    train_step: Callable[[TrainState, Batch | StackedBatches], tuple[TrainState, Metrics]]
    batches: Batches
    averaged_weights: Callable[[TrainState], Any]
    to_device: Callable[[Sequence[Batch]], Batch | StackedBatches] = lambda batches: batches[0]
    steps_per_call: int = 1
    shard: Callable[[TrainState], TrainState] = lambda state: state
    validate: Validate
    selection_metric: str
    save: Callable[[TrainState, float | None], None]
    step_of: Callable[[float], int | None]
    learning_rate: Callable[[int], float]
    patience: int | None
    plateau: PlateauRule | None = None
    target: float = 0.0
    fault: Callable[[dict[str, float]], str | None] = lambda _values: None


def run_loop(
    loop: Loop,
    state: TrainState,
    cfg: Config,
    writer: Writer,
    progress: TrainingProgress,
    should_stop: Callable[[], bool],
) -> TrainState:
    """Train a state until the plan, the patience or the target ends the stage, and return the last state.

    Args:
        loop: Functions and rules of the stage.
        state: First state; its buffers are donated.
        cfg: Configuration.
        writer: Receives metrics.
        progress: Displays progress.
        should_stop: Returns True after a signal to stop.

    Raises:
        Stopped: A signal arrived; the state was saved.
        DivergedError: Too many consecutive steps were not finite or were loss spikes, or the validation metrics of the
            second half of the stage have a fault.
    """
    start = step = int(state.step)
    saved_at = time.monotonic()
    clock, pace = EpochClock(loop.plan.steps_per_epoch), CallPace(loop.steps_per_call)
    pending: Pending = None
    rate_scale = plateau_scale(state.opt_state)
    best_step = _best_step(loop, state)
    # Only an evaluation changes `ended`. Reading the state after every step would block on that step.
    ended = _is_ended(loop, state)
    with loop.batches(start) as batches:
        while True:
            # -- after a step: evaluate, then save; metrics are written to disk before the state --------------------
            evaluation_due = step > start and (step % loop.plan.eval_steps == 0 or step == loop.plan.total_steps)
            finished, stop_requested = ended or step >= loop.plan.total_steps, any_host(should_stop(), step)
            save_due = any_host(time.monotonic() - saved_at > cfg.checkpoint.every_seconds, step)
            if evaluation_due or finished or stop_requested or save_due:
                validation, fault = None, None
                records = read_metrics(pending, loop, cfg, rate_scale, last=evaluation_due)
                pending = None
                if evaluation_due:
                    state, validation, measured, fault = _evaluate(loop, state)
                    if measured["evaluations_since_best"] == 0:
                        best_step = step
                    if best_step is not None:
                        measured["epochs_since_best"] = (step - best_step) / loop.plan.steps_per_epoch
                    rate_scale = plateau_scale(state.opt_state)
                    records[step] |= measured | clock.read(step)
                    progress.validation(validation)
                    ended = _is_ended(loop, state)
                    finished = finished or ended
                _log(records, loop, cfg, writer, progress)
                if fault is not None and (finished or 2 * step >= loop.plan.total_steps):
                    raise DivergedError(f"step {step}: {fault}")
                loop.save(state, validation)
                saved_at = time.monotonic()
                pace.interrupt()
            if finished:
                return state
            if stop_requested:
                raise Stopped(f"stopped and saved at step {step}; repeat the command to resume")

            # -- next call: dispatch its steps, and meanwhile log the metrics of the previous call ------------------
            count = pace.begin(min(loop.plan.total_steps - step, _until_evaluation(loop, step)))
            state, metrics = loop.train_step(state, loop.to_device([next(batches) for _ in range(count)]))
            _log(read_metrics(pending, loop, cfg, rate_scale), loop, cfg, writer, progress)
            pending = step + 1, step + count, metrics
            step += count
            progress.step(step)
            clock.step(step)


def _until_evaluation(loop: Loop, step: int) -> int:
    """Return the number of steps until the next evaluation."""
    return loop.plan.eval_steps - step % loop.plan.eval_steps


def _is_logging_step(step: int, cfg: Config) -> bool:
    """Return whether the metrics of this step are logged."""
    return step % cfg.logging.every_steps == 0


def _is_ended(loop: Loop, state: TrainState) -> bool:
    """Return whether the target is reached or the patience is exhausted."""
    if loop.target > 0 and float(state.monitor.best_metric) <= loop.target:
        return True
    return loop.patience is not None and int(state.monitor.since_best) >= loop.patience


def _best_step(loop: Loop, state: TrainState) -> int | None:
    """Return the step of the best validation so far: 0 before the first, None if its checkpoint is missing."""
    best = float(state.monitor.best_metric)
    return loop.step_of(best) if math.isfinite(best) else 0


def _evaluate(loop: Loop, state: TrainState) -> tuple[TrainState, float, dict[str, float], str | None]:
    """Validate the averaged weights and update the state's monitor and plateau.

    Returns:
        The new state, the metric that selects checkpoints, all metrics to log, and the fault of the metrics or None.
    """
    values = loop.validate(loop.averaged_weights(state))
    selected = values[loop.selection_metric]
    better = selected < float(state.monitor.best_metric)
    monitor = replace(
        state.monitor,
        best_metric=jnp.asarray(selected, jnp.float32) if better else state.monitor.best_metric,
        since_best=jnp.zeros((), jnp.int32) if better else state.monitor.since_best + 1,
    )
    measured = {f"validation/{name}": value for name, value in values.items()}
    measured |= {"best_metric": float(monitor.best_metric), "evaluations_since_best": float(monitor.since_best)}
    opt_state = update_plateau(state.opt_state, selected, loop.plateau)
    state = loop.shard(replace(state, monitor=monitor, opt_state=opt_state))
    return state, selected, measured, loop.fault(values)


def read_metrics(
    pending: Pending, loop: Loop, cfg: Config, rate_scale: float, *, last: bool = False
) -> dict[int, dict[str, float]]:
    """Return the metrics of each step of a call, by step; waits until the device has computed them.

    Args:
        pending: The call, or None for no call.
        loop: Functions and rules of the stage.
        cfg: Configuration, with the interval of logging.
        rate_scale: Factor of the plateau rule on the learning rate.
        last: Whether to log the last step even if it is no logging step.

    Returns:
        Metrics by step. Steps to log also have the keys `lr`, `epoch` and `global_step`.
    """
    if pending is None:
        return {}
    first_step, last_step, metrics = pending
    records = dict(enumerate(unstack_metrics(metrics, last_step - first_step + 1), first_step))
    for step, values in records.items():
        if _is_logging_step(step, cfg) or (last and step == last_step):
            # A skipped step does not advance the optimizer's schedule.
            skipped = int(values["skipped"] + values.get("spikes", 0.0))
            values["lr"] = loop.learning_rate(max(step - 1 - skipped, 0)) * rate_scale
            values["epoch"] = step / loop.plan.steps_per_epoch
            values["global_step"] = loop.steps_before + step
    return records


def _check(step: int, values: dict[str, float], cfg: Config) -> None:
    """Raise DivergedError if too many consecutive steps were skipped."""
    if values["skipped_in_row"] >= cfg.training.max_skips:
        raise DivergedError(
            f"loss or gradient was not finite for {values['skipped_in_row']:.0f} steps in a row, up to step {step}; "
            "lower optimizer.lr and train in another run directory (the checkpoints of this one are finite)"
        )
    if values.get("spikes_in_row", 0) >= cfg.training.max_skips:
        raise DivergedError(
            f"the loss was more than training.spike_sigma={cfg.training.spike_sigma} standard deviations above the "
            f"accepted losses for {values['spikes_in_row']:.0f} steps in a row, up to step {step}; raise "
            "training.spike_sigma or lower optimizer.lr, and train in another run directory"
        )


def _log(
    records: dict[int, dict[str, float]], loop: Loop, cfg: Config, writer: Writer, progress: TrainingProgress
) -> None:
    """Write the metrics of the steps to log. Raise DivergedError at the first step where training has diverged."""
    for step, values in records.items():
        _check(step, values, cfg)
        if "lr" in values:
            progress.loss(values["loss"])
            writer.scalars(step, values, loop.stage)


class EpochClock:
    """Clock of the wall time per epoch, from one evaluation to the next, including evaluation and saves.

    The clock starts after the first step, which includes compilation.

    Args:
        steps_per_epoch: Optimizer steps in an epoch.
    """

    def __init__(self, steps_per_epoch: int) -> None:
        self._steps_per_epoch = steps_per_epoch
        self._since: tuple[int, float] | None = None

    def step(self, step: int) -> None:
        """Start the clock if this is the first dispatched step."""
        if self._since is None:
            self._since = step, time.monotonic()

    def read(self, step: int) -> dict[str, float]:
        """Return `epoch_time_sec` at a finished step and restart the clock; the dict is empty if no step was timed."""
        if self._since is None or step == self._since[0]:
            return {}
        start_step, start_time = self._since
        self._since = step, time.monotonic()
        return {"epoch_time_sec": (self._since[1] - start_time) / (step - start_step) * self._steps_per_epoch}


class CallPace:
    """Controller of the number of optimizer steps per call, which keeps a call at about `seconds`.

    Longer calls would delay signals and saves. The loop waits for a call while the next call already runs, so the time
    between two calls is the duration of the call before them.

    Args:
        most: Maximum number of steps per call.
        seconds: Target duration of a call.
    """

    def __init__(self, most: int, seconds: float = 0.5) -> None:
        self._most, self._seconds = most, seconds
        self._steps = 1
        self._dispatched_at: float | None = None
        # Steps of the newest call, and of the call before it, which determines the time until the next dispatch.
        self._newest: int | None = None
        self._previous: int | None = None

    def begin(self, at_most: int) -> int:
        """Start a call and return its number of steps, at most `at_most`."""
        moment = time.monotonic()
        if self._dispatched_at is not None and self._previous is not None:
            seconds_per_step = max(moment - self._dispatched_at, 1e-9) / self._previous
            self._steps = min(self._most, max(1, int(self._seconds / seconds_per_step)))
        count = min(self._steps, at_most)
        self._dispatched_at, self._previous, self._newest = moment, self._newest, count
        return count

    def interrupt(self) -> None:
        """Discard the current timing, because an evaluation or a save followed the last call."""
        self._dispatched_at = self._newest = self._previous = None
