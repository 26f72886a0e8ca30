"""The length of a stage in optimizer steps, from its `steps`, `epochs` or `max_seconds`."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TypeVar

import jax
from jaxtyping import PyTree

from ups_jax.config import Config
from ups_jax.core.commands import command
from ups_jax.core.errors import ConfigError
from ups_jax.core.files import JsonObject
from ups_jax.data import Dataset, Mixture, steps_per_epoch
from ups_jax.optim.schedules import check_schedule


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The lengths of a stage, of an epoch and of the interval between two evaluations, in optimizer steps."""

    total_steps: int
    steps_per_epoch: int
    eval_steps: int


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The time limit of a stage and the measured time per step, from which the number of steps is computed.

    Attributes:
        max_seconds: Time limit of the stage, in seconds.
        seconds_per_step: Measured time of a step, plus its share of the time of a validation.
    """

    max_seconds: float
    seconds_per_step: float


def make_plan(cfg: Config, data: Dataset | Mixture, stage: str, steps: int | None = None) -> Plan:
    """Return the length of a stage in steps; `max_seconds` is not converted here.

    Args:
        steps: Total steps; None for `steps` or `epochs` of the stage's configuration.

    Raises:
        ConfigError: The stage has no length or only `max_seconds`, or its learning-rate schedule is inconsistent.
    """
    settings = getattr(cfg.stages, stage)
    epoch_steps = steps_per_epoch(data, cfg, stage)
    if steps is None and settings.max_seconds is not None:
        raise ConfigError(
            f"key `stages.{stage}.max_seconds`: only the command `{command('train')}` can convert seconds to steps; "
            f"set stages.{stage}.max_seconds to null and set stages.{stage}.steps"
        )
    if steps is None:
        steps = settings.steps if settings.steps is not None else math.ceil(settings.epochs * epoch_steps)
    if steps == 0:
        raise ConfigError(f"stages.{stage} is disabled (epochs: 0); set its epochs, steps or max_seconds")
    check_schedule(settings.scheduler, settings.optimizer.lr, steps, epoch_steps, f"stages.{stage}.scheduler")
    return Plan(total_steps=steps, steps_per_epoch=epoch_steps, eval_steps=evaluation_interval(cfg, data, stage))


def evaluation_interval(cfg: Config, data: Dataset | Mixture, stage: str) -> int:
    """Return the number of steps between two evaluations, converted from `training.eval_every`, a number of epochs."""
    return max(1, round(cfg.training.eval_every * steps_per_epoch(data, cfg, stage)))


def plan_and_record_entries(
    cfg: Config,
    data: Dataset | Mixture,
    stage: str,
    recorded: JsonObject,
    measure: Callable[[], float],
    plan: Plan | None = None,
) -> tuple[Plan, JsonObject]:
    """Return the length of a stage, and the entries to add to the stage's record in run.json.

    Without `max_seconds`, the configuration determines the length and nothing is recorded. With `max_seconds`, the time
    of a step is measured once and recorded. A resume with the same `max_seconds` keeps the recorded number of steps; a
    resume with another value computes a new total from the recorded time of a step.

    Args:
        recorded: Record of the stage in run.json.
        measure: Function that measures the seconds per step.
        plan: Result of `make_plan`, if the caller has called it already.

    Returns:
        The length, and the entries `planned_steps` and `budget`; without `max_seconds`, no entries.
    """
    seconds = getattr(cfg.stages, stage).max_seconds
    if seconds is None:
        return plan or make_plan(cfg, data, stage), {}
    if "budget" not in recorded:
        budget = Budget(max_seconds=seconds, seconds_per_step=measure())
    else:
        budget = Budget(**recorded["budget"] | {"max_seconds": seconds})
    if recorded.get("budget") == asdict(budget):
        steps = recorded["planned_steps"]
    else:
        steps = steps_within(seconds, budget.seconds_per_step)
    return make_plan(cfg, data, stage, steps), {"planned_steps": steps, "budget": asdict(budget)}


Clock = Callable[[], float]
State = TypeVar("State")
Rows = TypeVar("Rows")


def measure_seconds_per_step(
    train_step: Callable[[State, Rows], tuple[State, PyTree]],
    state: State,
    batches: Iterator[Rows],
    *,
    clock: Clock = time.perf_counter,
    warmup: int = 3,
    steps_per_group: int = 5,
    groups: int = 21,
    max_seconds: float = 5.0,
    steps_per_call: int = 1,
) -> float:
    """Return the wall seconds per train step, including the time to get its batch.

    The result is the median over groups of calls, so that a pause of the machine has no effect. Slow steps are measured
    in fewer groups, but at least three.

    Args:
        train_step: Function (state, batch) -> (state, metrics) that makes `steps_per_call` steps.
        state: State to start from; its buffers are donated.
        warmup: Number of calls before the measurement, which include compilation.
        steps_per_group: Steps between two readings of the clock.
        groups: Maximum number of groups.
        max_seconds: Time after which no further group starts, in seconds.
        steps_per_call: Steps of a call; with more than 1, a group has at least three calls.
    """
    calls = math.ceil(steps_per_group / steps_per_call)
    if steps_per_call > 1:
        # The host prepares a call while the previous one runs; a group of one call would not show this overlap.
        calls = max(3, calls)
    for _ in range(warmup):
        state, metrics = train_step(state, next(batches))
        jax.block_until_ready((state, metrics))
    seconds: list[float] = []
    measurement_start = clock()
    while len(seconds) < groups and (len(seconds) < 3 or clock() - measurement_start < max_seconds):
        start = clock()
        for _ in range(calls):
            state, metrics = train_step(state, next(batches))
        # As in the training loop, the host blocks only after it has dispatched all calls of the group.
        jax.block_until_ready((state, metrics))
        seconds.append((clock() - start) / (calls * steps_per_call))
    return statistics.median(seconds)


def measure_seconds(call: Callable[[], PyTree], *, clock: Clock = time.perf_counter, repeats: int = 3) -> float:
    """Return the median duration of `repeats` calls in seconds, after one untimed call that compiles."""
    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        start = clock()
        jax.block_until_ready(call())
        seconds.append(clock() - start)
    return statistics.median(seconds)


def steps_within(seconds: float, seconds_per_step: float) -> int:
    """Return how many steps fit into a time limit of `seconds`, at least 1."""
    return max(1, math.floor(seconds / seconds_per_step))
