"""The training loop of all stages: evaluate, save, THEN draw the next batch and step.

In this order, the step number in a checkpoint is also the position in the data: a resumed run draws the batch that the
interrupted run would have drawn next.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

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

# Start step -> context manager whose value iterates over the batches from that step on.
OpenBatches = Callable[[int], AbstractContextManager[Iterator[Batch]]]


class PendingCall(NamedTuple):
    """A call of the train step whose metrics are still on the device."""

    first_step: int
    last_step: int
    metrics: Metrics


class Evaluation(NamedTuple):
    """Result of a validation.

    Attributes:
        state: State with updated monitor and plateau.
        selected: Value of the metric that selects the best checkpoint.
        metrics: Metrics to log.
        fault: Result of `Loop.describe_fault`: what is wrong with the validation metrics, or None.
    """

    state: TrainState
    selected: float
    metrics: dict[str, float]
    fault: str | None


@dataclass(frozen=True, kw_only=True)
class Loop:
    """The functions, data and rules of a stage's training loop.

    Attributes:
        steps_before: Number of steps of the run's earlier stages; the metric `global_step` includes them.
        open_batches: Function from a step to a context manager of the batches from this step on.
        averaged_weights: Function from a state to its averaged weights, on which validation runs.
        to_device: Function that stacks and transfers the batches of one call of `train_step`.
        steps_per_call: Maximum number of optimizer steps in a call of `train_step`.
        shard: Function that shards a state again after the host has changed it.
        validate: Function from weights to validation metrics.
        selection_metric: Validation metric that selects the best checkpoint; lower is better.
        save: Function `(state, value of selection_metric)` that saves a checkpoint; the value is None if the state was
            not validated.
        step_with_validation: Function from a value of `selection_metric` to the step of the checkpoint with this value,
            or None if there is no such checkpoint.
        learning_rate: Function from a step to the scheduled learning rate, without plateau reductions.
        patience: Evaluations without improvement after which the stage ends; None for no limit.
        plateau: Rule that reduces the learning rate after evaluations without improvement; None for no reduction.
        target_metric: Value of `selection_metric` at or below which the stage ends; 0 for no such end.
        describe_fault: Function from validation metrics to a description of what is wrong with them, or None.
    """

    stage: str
    plan: Plan
    steps_before: int
    train_step: Callable[[TrainState, Batch | StackedBatches], tuple[TrainState, Metrics]]
    open_batches: OpenBatches
    averaged_weights: Callable[[TrainState], Any]
    to_device: Callable[[Sequence[Batch]], Batch | StackedBatches] = lambda batches: batches[0]
    steps_per_call: int = 1
    shard: Callable[[TrainState], TrainState] = lambda state: state
    validate: Validate
    selection_metric: str
    save: Callable[[TrainState, float | None], None]
    step_with_validation: Callable[[float], int | None]
    learning_rate: Callable[[int], float]
    patience: int | None
    plateau: PlateauRule | None = None
    target_metric: float = 0.0
    describe_fault: Callable[[dict[str, float]], str | None] = lambda _values: None


def run_loop(
    loop: Loop,
    state: TrainState,
    cfg: Config,
    writer: Writer,
    progress: TrainingProgress,
    should_stop: Callable[[], bool],
) -> TrainState:
    """Train until all planned steps are done, the patience is exhausted or the target is reached; return the state.

    Args:
        state: First state; its buffers are donated.
        should_stop: Returns True after a signal to stop.

    Raises:
        Stopped: A signal arrived; the state was saved.
        DivergedError: Too many consecutive steps had a non-finite loss or gradient or a loss spike, or
            `loop.describe_fault` found a fault in a validation at the end or in the second half of the stage.
    """
    start = step = int(state.step)
    saved_at = time.monotonic()
    clock, pace = EpochClock(loop.plan.steps_per_epoch), CallPace(loop.steps_per_call)
    pending_call: PendingCall | None = None
    rate_scale = plateau_scale(state.opt_state)
    best_step = _best_step(loop, state)
    # Only an evaluation changes `ended`. Reading the state after every step would block on that step.
    ended = _should_end(loop, state)
    with loop.open_batches(start) as batches:
        while True:
            # -- after a step: evaluate, then save; metrics are written to disk before the state --------------------
            evaluation_due = step > start and (step % loop.plan.eval_steps == 0 or step == loop.plan.total_steps)
            finished, stop_requested = ended or step >= loop.plan.total_steps, any_host(should_stop(), step)
            save_due = any_host(time.monotonic() - saved_at > cfg.checkpoint.every_seconds, step)
            if evaluation_due or finished or stop_requested or save_due:
                validation, fault = None, None
                records = read_metrics(pending_call, loop, cfg, rate_scale, log_last_step=evaluation_due)
                pending_call = None
                if evaluation_due:
                    state, validation, measured, fault = _evaluate(loop, state)
                    if measured["evaluations_since_best"] == 0:
                        best_step = step
                    if best_step is not None:
                        measured["epochs_since_best"] = (step - best_step) / loop.plan.steps_per_epoch
                    rate_scale = plateau_scale(state.opt_state)
                    records[step] |= measured | clock.read_and_restart(step)
                    progress.set_validation(validation)
                    ended = _should_end(loop, state)
                    finished = finished or ended
                _log_metrics(records, loop, cfg, writer, progress)
                if fault is not None and (finished or 2 * step >= loop.plan.total_steps):
                    raise DivergedError(f"step {step}: {fault}")
                loop.save(state, validation)
                saved_at = time.monotonic()
                pace.discard_timing()
            if finished:
                return state
            if stop_requested:
                raise Stopped(f"stopped and saved at step {step}; repeat the command to resume")

            # -- next call: dispatch its steps, and meanwhile log the metrics of the previous call ------------------
            count = pace.begin_call(min(loop.plan.total_steps - step, _steps_until_evaluation(loop, step)))
            state, metrics = loop.train_step(state, loop.to_device([next(batches) for _ in range(count)]))
            _log_metrics(read_metrics(pending_call, loop, cfg, rate_scale), loop, cfg, writer, progress)
            pending_call = PendingCall(step + 1, step + count, metrics)
            step += count
            progress.show_step(step)
            clock.start_once(step)


def _steps_until_evaluation(loop: Loop, step: int) -> int:
    """Return the number of steps until the next evaluation."""
    return loop.plan.eval_steps - step % loop.plan.eval_steps


def _is_logging_step(step: int, cfg: Config) -> bool:
    """Return whether the metrics of this step are logged."""
    return step % cfg.logging.every_steps == 0


def _should_end(loop: Loop, state: TrainState) -> bool:
    """Return whether the stage ends because its target metric is reached or its patience is exhausted."""
    if loop.target_metric > 0 and float(state.monitor.best_metric) <= loop.target_metric:
        return True
    return loop.patience is not None and int(state.monitor.since_best) >= loop.patience


def _best_step(loop: Loop, state: TrainState) -> int | None:
    """Return the step of the best validation so far; 0 before the first, None if this step's checkpoint is missing."""
    best = float(state.monitor.best_metric)
    return loop.step_with_validation(best) if math.isfinite(best) else 0


def _evaluate(loop: Loop, state: TrainState) -> Evaluation:
    """Validate the averaged weights, and update the state's monitor and plateau with the result."""
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
    return Evaluation(state, selected, measured, loop.describe_fault(values))


def read_metrics(
    call: PendingCall | None, loop: Loop, cfg: Config, rate_scale: float, *, log_last_step: bool = False
) -> dict[int, dict[str, float]]:
    """Return the metrics of every step of a call, keyed by step number; this waits until the device has computed them.

    Args:
        call: A call of the train step; None gives an empty result.
        rate_scale: Factor by which plateaus have reduced the learning rate.
        log_last_step: Whether to log the last step even if it is not a multiple of `logging.every_steps`.

    Returns:
        Metrics by step number. The steps to log also have the keys `lr`, `epoch` and `global_step`.
    """
    if call is None:
        return {}
    first_step, last_step, metrics = call
    records = dict(enumerate(unstack_metrics(metrics, last_step - first_step + 1), first_step))
    for step, values in records.items():
        if _is_logging_step(step, cfg) or (log_last_step and step == last_step):
            # A skipped step does not advance the optimizer's schedule.
            skipped = int(values["skipped"] + values.get("spikes", 0.0))
            values["lr"] = loop.learning_rate(max(step - 1 - skipped, 0)) * rate_scale
            values["epoch"] = step / loop.plan.steps_per_epoch
            values["global_step"] = loop.steps_before + step
    return records


def _check_skips(step: int, values: dict[str, float], cfg: Config) -> None:
    """Raise DivergedError if `training.max_skips` consecutive steps were skipped as non-finite or as loss spikes."""
    if values["skipped_in_row"] >= cfg.training.max_skips:
        raise DivergedError(
            f"loss or gradient was not finite for {values['skipped_in_row']:.0f} steps in a row, up to step {step} "
            "(the saved checkpoints are finite); lower `optimizer.lr` of the stage and train in a new run directory"
        )
    if values.get("spikes_in_row", 0) >= cfg.training.max_skips:
        raise DivergedError(
            f"the loss was a spike for {values['spikes_in_row']:.0f} steps in a row, up to step {step}: more than "
            f"{cfg.training.spike_sigma} standard deviations above the mean of recent losses; raise "
            "`training.spike_sigma` or lower `optimizer.lr` of the stage, and train in a new run directory"
        )


def _log_metrics(
    records: dict[int, dict[str, float]], loop: Loop, cfg: Config, writer: Writer, progress: TrainingProgress
) -> None:
    """Write the metrics of the steps to log; raise DivergedError at the first step where training has diverged."""
    for step, values in records.items():
        _check_skips(step, values, cfg)
        if "lr" in values:
            progress.set_loss(values["loss"])
            writer.scalars(step, values, loop.stage)


class EpochClock:
    """Clock of the wall time per epoch between two evaluations, including evaluation and saves.

    It starts after the first step, because that step includes compilation.
    """

    def __init__(self, steps_per_epoch: int) -> None:
        self._steps_per_epoch = steps_per_epoch
        self._since: tuple[int, float] | None = None

    def start_once(self, step: int) -> None:
        """Start the clock after the first dispatched step; further calls have no effect."""
        if self._since is None:
            self._since = step, time.monotonic()

    def read_and_restart(self, step: int) -> dict[str, float]:
        """Return the metric `epoch_time_sec` and restart the clock; return no metric if no step was timed."""
        if self._since is None or step == self._since[0]:
            return {}
        start_step, start_time = self._since
        self._since = step, time.monotonic()
        return {"epoch_time_sec": (self._since[1] - start_time) / (step - start_step) * self._steps_per_epoch}


class CallPace:
    """Controller of the number of optimizer steps per call, which keeps a call at about `seconds`.

    Longer calls would delay signals and saves. After the loop has dispatched a call, it waits for the previous call.
    The time between two dispatches is therefore the duration of the previous call.
    """

    def __init__(self, max_steps: int, seconds: float = 0.5) -> None:
        self._max_steps, self._seconds = max_steps, seconds
        self._steps = 1
        self._dispatched_at: float | None = None
        # Steps of the newest call, and of the call before it, which determines the time until the next dispatch.
        self._newest: int | None = None
        self._previous: int | None = None

    def begin_call(self, steps_left: int) -> int:
        """Start the timing of the next call and return its number of steps, at most `steps_left`."""
        moment = time.monotonic()
        if self._dispatched_at is not None and self._previous is not None:
            seconds_per_step = max(moment - self._dispatched_at, 1e-9) / self._previous
            self._steps = min(self._max_steps, max(1, int(self._seconds / seconds_per_step)))
        count = min(self._steps, steps_left)
        self._dispatched_at, self._previous, self._newest = moment, self._newest, count
        return count

    def discard_timing(self) -> None:
        """Discard the current timing, because it would include an evaluation or a save."""
        self._dispatched_at = self._newest = self._previous = None
