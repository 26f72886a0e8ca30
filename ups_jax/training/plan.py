"""How long a stage runs: steps as given, epochs of the data, or as many steps as fit into a budget of seconds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ups_jax.config import Config
from ups_jax.data import Dataset, Mixture, steps_per_epoch
from ups_jax.errors import ConfigError
from ups_jax.optim.schedules import check_schedule
from ups_jax.training.budget import steps_within


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


def plan_of(cfg: Config, data: Dataset | Mixture, stage: str, steps: int | None = None) -> Plan:
    """`steps` if they are given, else the stage's own `steps`, else its `epochs`; ConfigError where it has none."""
    settings = getattr(cfg.stages, stage)
    an_epoch = steps_per_epoch(data, cfg, stage)
    if steps is None and settings.max_seconds is not None:
        raise ConfigError(
            f"key `stages.{stage}.max_seconds`: only scripts/train.py measures how many steps that is; "
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
    cfg: Config, data: Dataset | Mixture, stage: str, recorded: dict[str, Any], measure: Callable[[], float]
) -> tuple[Plan, dict[str, Any]]:
    """The plan, and what the stage's record has to say of it for a resume: nothing, or `planned_steps` and `budget`.

    With `max_seconds` the steps are planned once, with the seconds a step that `measure` finds, and kept as long as
    `max_seconds` is. Another `max_seconds` gives as many steps as those seconds a step allow, the ones already done
    counted in. Without `max_seconds` the steps or epochs of the configuration hold, and a plan that was recorded ends.
    """
    seconds = getattr(cfg.stages, stage).max_seconds
    if seconds is None:
        return plan_of(cfg, data, stage), {}
    if "budget" not in recorded:
        budget = Budget(max_seconds=seconds, seconds_per_step=measure())
    else:
        budget = Budget(**recorded["budget"] | {"max_seconds": seconds})
    if recorded.get("budget") == asdict(budget):
        steps = recorded["planned_steps"]
    else:
        steps = steps_within(seconds, budget.seconds_per_step)
    return plan_of(cfg, data, stage, steps), {"planned_steps": steps, "budget": asdict(budget)}
