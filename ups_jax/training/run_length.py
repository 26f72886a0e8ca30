"""How long a stage runs: steps as given, epochs of the data, or as many steps as fit into a budget of seconds."""

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
    """How long a stage runs, in optimizer steps."""

    total_steps: int
    steps_per_epoch: int
    eval_steps: int


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a plan by `max_seconds` rests on: the seconds a step took, its share of a validation included."""

    max_seconds: float
    seconds_per_step: float


def make_plan(cfg: Config, data: Dataset | Mixture, stage: str, steps: int | None = None) -> Plan:
    """`steps` if they are given, else the stage's own `steps`, else its `epochs`; ConfigError where it has none."""
    settings = getattr(cfg.stages, stage)
    an_epoch = steps_per_epoch(data, cfg, stage)
    if steps is None and settings.max_seconds is not None:
        raise ConfigError(
            f"key `stages.{stage}.max_seconds`: only the command `{command('train')}` measures how many steps that is; "
            f"set it to null and give stages.{stage}.steps"
        )
    if steps is None:
        steps = settings.steps if settings.steps is not None else math.ceil(settings.epochs * an_epoch)
    if steps == 0:
        raise ConfigError(f"stages.{stage} is off (epochs: 0); give it epochs, steps or max_seconds")
    check_schedule(settings.scheduler, settings.optimizer.lr, steps, an_epoch, f"stages.{stage}.scheduler")
    return Plan(total_steps=steps, steps_per_epoch=an_epoch, eval_steps=eval_steps(cfg, data, stage))


def eval_steps(cfg: Config, data: Dataset | Mixture, stage: str) -> int:
    """Steps between two evaluations: `training.eval_every` epochs."""
    return max(1, round(cfg.training.eval_every * steps_per_epoch(data, cfg, stage)))


def plan_and_record(
    cfg: Config,
    data: Dataset | Mixture,
    stage: str,
    recorded: JsonObject,
    measure: Callable[[], float],
    plan: Plan | None = None,
) -> tuple[Plan, JsonObject]:
    """The plan, and what the stage's record has to say of it for a resume: nothing, or `planned_steps` and `budget`.

    With `max_seconds` the steps are planned once, with the seconds a step that `measure` finds, and kept as long as
    `max_seconds` is. Another `max_seconds` gives as many steps as those seconds a step allow, the ones already done
    counted in. Without `max_seconds` the steps or epochs of the configuration hold, `plan` where the caller has it, and
    a plan that was recorded ends.
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
    group: int = 5,
    groups: int = 21,
    enough: float = 5.0,
    steps_per_call: int = 1,
) -> float:
    """Seconds of `clock` a step, its batch included: the median over `groups` of `group` steps, or of three calls
    where each makes `at_once`, so that a pause of the machine does not count.

    `state` is used up; hand over one that nobody needs. The first `warmup` calls, which compile, are left out. Slow
    steps are measured for about `enough` seconds, in three groups at the least.
    """
    # A call is waited for while the next one is under way: of one alone nothing is hidden.
    calls = math.ceil(group / steps_per_call) if steps_per_call == 1 else max(3, math.ceil(group / steps_per_call))
    for _ in range(warmup):
        state, metrics = train_step(state, next(batches))
        jax.block_until_ready((state, metrics))
    seconds: list[float] = []
    begin = clock()
    while len(seconds) < groups and (len(seconds) < 3 or clock() - begin < enough):
        start = clock()
        for _ in range(calls):
            state, metrics = train_step(state, next(batches))
        # As in the loop, steps are dispatched one after the other and waited for later.
        jax.block_until_ready((state, metrics))
        seconds.append((clock() - start) / (calls * steps_per_call))
    return statistics.median(seconds)


def measure_seconds(call: Callable[[], PyTree], *, clock: Clock = time.perf_counter, repeats: int = 3) -> float:
    """Seconds of `clock` that a call takes: the median of `repeats` calls after one that compiles."""
    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        start = clock()
        jax.block_until_ready(call())
        seconds.append(clock() - start)
    return statistics.median(seconds)


def steps_within(seconds: float, seconds_per_step: float) -> int:
    """How many steps fit into `seconds`, one at the least."""
    return max(1, math.floor(seconds / seconds_per_step))
