"""The loop of every stage, to be read from top to bottom: evaluate, save, THEN next batch, then step.

That order makes the saved step the position in the data: a resumed run draws the batch that the killed one would have.
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
from ups_jax.optim.plateau import PlateauRule, observe_in, plateau_scale
from ups_jax.tracking import Writer
from ups_jax.trainer.console import TrainingProgress
from ups_jax.training.multi_step import Batches as StackedBatches
from ups_jax.training.multi_step import unstack_metrics
from ups_jax.training.run_length import Plan
from ups_jax.training.stages.spec import Validate
from ups_jax.training.state import TrainState
from ups_jax.training.step import Metrics

# The first and the last one of the steps of a call, and their metrics, still on the device.
Pending = tuple[int, int, dict[str, Any]] | None
Batches = Callable[[int], AbstractContextManager[Iterator[Batch]]]


@dataclass(frozen=True, kw_only=True)
class Loop:
    """What the loop of a stage calls: its pure functions, its batches, and where state and numbers go.

    A call of `train_step` makes up to `at_once` steps, of batches that `put_rows` brings to the devices; `place` brings
    a state that was changed on the host to where it belongs.
    `patience` counts evaluations without a better value; `learning_rate` knows no plateau, which is the state's.
    The stage ends when the value that it is selected by is `target` or less, where that is above 0. `fault` says what
    is wrong with the values of a validation in its second half.
    `steps_before` are those of the run's earlier stages; `step_of` knows the saved step of a validation value.
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
    selected_by: str
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
    """Train `state` to the end of the plan or of the patience.

    Raises `Stopped` after saving when a signal came, `DivergedError` when too many steps in a row were not finite, or
    when the second half of the stage or its end has a fault.
    """
    start = step = int(state.step)
    saved_at = time.monotonic()
    clock, pace = EpochClock(loop.plan.steps_per_epoch), CallPace(loop.steps_per_call)
    pending: Pending = None
    rate_scale = plateau_scale(state.opt_state)
    best_step = _best_step(loop, state)
    # Only an evaluation changes it: to ask the state at every step would wait for the step.
    ended = _ended(loop, state)
    with loop.batches(start) as batches:
        while True:
            # -- the step just done: evaluate, then save; its numbers are on file before its state is ----------------
            due = step > start and (step % loop.plan.eval_steps == 0 or step == loop.plan.total_steps)
            finished, stop = ended or step >= loop.plan.total_steps, any_host(should_stop(), step)
            timed = any_host(time.monotonic() - saved_at > cfg.checkpoint.every_seconds, step)
            if due or finished or stop or timed:
                validation, fault = None, None
                records = read_metrics(pending, loop, cfg, rate_scale, last=due)
                pending = None
                if due:
                    state, validation, measured, fault = _evaluate(loop, state)
                    if measured["evaluations_since_best"] == 0:
                        best_step = step
                    if best_step is not None:
                        measured["epochs_since_best"] = (step - best_step) / loop.plan.steps_per_epoch
                    rate_scale = plateau_scale(state.opt_state)
                    records[step] |= measured | clock.read(step)
                    progress.validation(validation)
                    ended = _ended(loop, state)
                    finished = finished or ended
                _tell(records, loop, cfg, writer, progress)
                if fault is not None and (finished or 2 * step >= loop.plan.total_steps):
                    raise DivergedError(f"step {step}: {fault}")
                loop.save(state, validation)
                saved_at = time.monotonic()
                pace.interrupt()
            if finished:
                return state
            if stop:
                raise Stopped(f"stopped at step {step}, which is saved; the same command goes on from there")

            # -- the next steps: their batches, their call, and meanwhile the numbers of those before ----------------
            count = pace.begin(min(loop.plan.total_steps - step, _until_evaluation(loop, step)))
            state, metrics = loop.train_step(state, loop.to_device([next(batches) for _ in range(count)]))
            _tell(read_metrics(pending, loop, cfg, rate_scale), loop, cfg, writer, progress)
            pending = step + 1, step + count, metrics
            step += count
            progress.step(step)
            clock.step(step)


def _until_evaluation(loop: Loop, step: int) -> int:
    return loop.plan.eval_steps - step % loop.plan.eval_steps


def _its_turn(step: int, cfg: Config) -> bool:
    return step % cfg.logging.every_steps == 0


def _ended(loop: Loop, state: TrainState) -> bool:
    """By its target or its patience, whatever its length."""
    if loop.target > 0 and float(state.monitor.best_metric) <= loop.target:
        return True
    return loop.patience is not None and int(state.monitor.since_best) >= loop.patience


def _best_step(loop: Loop, state: TrainState) -> int | None:
    """The step of the monitor's best value: 0 where it has none, None where its checkpoint is gone."""
    best = float(state.monitor.best_metric)
    return loop.step_of(best) if math.isfinite(best) else 0


def _evaluate(loop: Loop, state: TrainState) -> tuple[TrainState, float, dict[str, float], str | None]:
    """Measure the averaged parameters on the validation split and let the monitor and the plateau know; the value that
    selects, all of them, and the stage's fault."""
    values = loop.validate(loop.averaged_weights(state))
    chosen = values[loop.selected_by]
    better = chosen < float(state.monitor.best_metric)
    monitor = replace(
        state.monitor,
        best_metric=jnp.asarray(chosen, jnp.float32) if better else state.monitor.best_metric,
        since_best=jnp.zeros((), jnp.int32) if better else state.monitor.since_best + 1,
    )
    measured = {f"validation/{name}": value for name, value in values.items()}
    measured |= {"best_metric": float(monitor.best_metric), "evaluations_since_best": float(monitor.since_best)}
    opt_state = observe_in(state.opt_state, chosen, loop.plateau)
    state = loop.shard(replace(state, monitor=monitor, opt_state=opt_state))
    return state, chosen, measured, loop.fault(values)


def read_metrics(
    pending: Pending, loop: Loop, cfg: Config, rate_scale: float, *, last: bool = False
) -> dict[int, dict[str, float]]:
    """The numbers of a call's steps. Those whose turn it is to be told, the `last` in any case, have their place and
    learning rate with them."""
    if pending is None:
        return {}
    first, newest, metrics = pending
    records = dict(enumerate(unstack_metrics(metrics, newest - first + 1), first))
    for step, values in records.items():
        if _its_turn(step, cfg) or (last and step == newest):
            # A step that is left out moves the optimizer's schedule as little as its parameters.
            left_out = int(values["skipped"] + values.get("spikes", 0.0))
            values["lr"] = loop.learning_rate(max(step - 1 - left_out, 0)) * rate_scale
            values["epoch"] = step / loop.plan.steps_per_epoch
            values["global_step"] = loop.steps_before + step
    return records


def _check(step: int, values: dict[str, float], cfg: Config) -> None:
    """DivergedError where too many steps in a row have been left out."""
    if values["skipped_in_row"] >= cfg.training.max_skips:
        raise DivergedError(
            f"loss or gradient was not finite for {values['skipped_in_row']:.0f} steps in a row, up to step {step}; "
            "train with a lower optimizer.lr in another run directory (a checkpoint of this one is never non-finite)"
        )
    if values.get("spikes_in_row", 0) >= cfg.training.max_skips:
        raise DivergedError(
            f"the loss stood training.spike_sigma={cfg.training.spike_sigma} standard deviations above the accepted "
            f"ones for {values['spikes_in_row']:.0f} steps in a row, up to step {step}; raise that or lower "
            "optimizer.lr, in another run directory"
        )


def _tell(
    records: dict[int, dict[str, float]], loop: Loop, cfg: Config, writer: Writer, progress: TrainingProgress
) -> None:
    """Write what is to be told, up to where the run has diverged, if it has: DivergedError."""
    for step, numbers in records.items():
        _check(step, numbers, cfg)
        if "lr" in numbers:
            progress.loss(numbers["loss"])
            writer.scalars(step, numbers, loop.stage)


class EpochClock:
    """Wall seconds an epoch, from one evaluation to the next, evaluation and saves included.

    It starts after the first step, which waits for the compiler.
    """

    def __init__(self, steps_per_epoch: int) -> None:
        self._steps_per_epoch = steps_per_epoch
        self._since: tuple[int, float] | None = None

    def step(self, step: int) -> None:
        """A step was begun."""
        if self._since is None:
            self._since = step, time.monotonic()

    def read(self, step: int) -> dict[str, float]:
        """`epoch_time_sec` at a finished step, from which the next reading counts; nothing where no step was timed."""
        if self._since is None or step == self._since[0]:
            return {}
        begin, moment = self._since
        self._since = step, time.monotonic()
        return {"epoch_time_sec": (self._since[1] - moment) / (step - begin) * self._steps_per_epoch}


class CallPace:
    """How many steps a call makes: as many as take `seconds`, and `most` at the most, so that a signal and a save need
    not wait for long. A call is waited for while the next one is under way."""

    def __init__(self, most: int, seconds: float = 0.5) -> None:
        self._most, self._seconds = most, seconds
        self._steps = 1
        self._begun: float | None = None
        # Of the call that began last, and of the one before it, for which the time since then was spent.
        self._newest: int | None = None
        self._waited: int | None = None

    def begin(self, at_most: int) -> int:
        """A call begins: how many steps it makes, of those that there are until something else is to be done."""
        moment = time.monotonic()
        if self._begun is not None and self._waited is not None:
            each = max(moment - self._begun, 1e-9) / self._waited
            self._steps = min(self._most, max(1, int(self._seconds / each)))
        count = min(self._steps, at_most)
        self._begun, self._waited, self._newest = moment, self._newest, count
        return count

    def interrupt(self) -> None:
        """Something else was done since the last call, whose time tells nothing."""
        self._begun = self._newest = self._waited = None
