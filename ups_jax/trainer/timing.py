"""What a step of a stage takes before it is trained, for a plan by seconds; where memory runs out, with fewer rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console

from ups_jax.config import Config
from ups_jax.core.xla import compiling
from ups_jax.data import Dataset, Mixture, first_batches, steps_per_epoch, training_batches, windows_per_step
from ups_jax.data.mixture import as_mixture
from ups_jax.distributed.mesh import local_copy, make_mesh
from ups_jax.distributed.processes import agreed, own_share
from ups_jax.models import Batch
from ups_jax.optim import build_optimizer
from ups_jax.trainer import oom
from ups_jax.trainer.parents import untrained_parents
from ups_jax.training.build import init_state, joint
from ups_jax.training.multi_step import Batches, as_given, steps_per_call
from ups_jax.training.run_length import eval_steps, measure_seconds, measure_seconds_per_step, plan_of
from ups_jax.training.stages import stage_of
from ups_jax.training.stages.spec import Parents, Validate
from ups_jax.training.state import TrainState, scale_of
from ups_jax.training.step import TrainStep, make_train_step


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Wall time of a compiled step and its share of a validation, and the halvings that it came to."""

    seconds_per_step: float
    halvings: tuple[oom.Halving, ...]


def measure_stage(
    cfg: Config,
    stage: str,
    data: Dataset | Mixture,
    model: Any,
    parents: Parents,
    validate: Validate,
    known: Sequence[oom.Halving],
    console: Console,
) -> Measured:
    """Measure on states that are thrown away, from the `known` halvings on. ConfigError where one row, or a validation,
    does not fit into memory."""
    new: list[oom.Halving] = []
    with (
        compiling(cfg.training.compile),
        console.status("measuring the step"),
        trial(cfg, stage, data, model, parents) as tried,
    ):
        train_step = oom.FittingStep(
            tried.make,
            windows_per_step(cfg, stage),
            oom.micro_batches(cfg, stage, known),
            key=oom.batch_key(stage),
            ahead=cfg.training.compile,
            halved=lambda rows, groups: new.append(oom.halving(cfg, rows, groups)),
        )
        # The steps that compile come first, one of each task.
        warmup = tried.first + 2
        step = train_step.run_with_retry(
            lambda: measure_seconds_per_step(
                train_step, tried.begin(), tried.batches, warmup=warmup, steps_per_call=tried.at_once
            )
        )
        with oom.memory_for(oom.row_too_large(oom.batch_key(stage))):
            state = tried.begin()
            mesh = make_mesh(cfg.parallel)
            weights = local_copy(mesh, stage_of(stage).weights(state.params, scale_of(state)))
        fitting = oom.fitting_validation(validate)
        validation = measure_seconds(lambda: fitting(weights))
    seconds = agreed(step + validation / eval_steps(cfg, data, stage))
    return Measured(seconds_per_step=seconds, halvings=tuple(new))


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The step that `make(micro_batches=n)` returns uses its state up; `begin` makes another one. The batches are as it
    takes them, of `at_once` steps each; the `first` of them are one of each task."""

    make: Callable[..., TrainStep]
    begin: Callable[[], TrainState]
    batches: Iterator[Batch | Batches]
    first: int
    at_once: int

    @cached_property
    def train_step(self) -> TrainStep:
        """The step in the micro-batches of the configuration."""
        return self.make()


def known_length(cfg: Config, data: Dataset | Mixture, stage: str) -> int | None:
    """The steps that the stage is trained for; None where they are yet to be measured, or it is off."""
    settings = getattr(cfg.stages, stage)
    off = (settings.epochs if settings.steps is None else settings.steps) == 0
    return None if off or settings.max_seconds is not None else plan_of(cfg, data, stage).total_steps


@contextmanager
def trial(
    cfg: Config,
    stage: str,
    data: Dataset | Mixture,
    model: Any,
    parents: Parents | None = None,
    at_once: int | None = None,
) -> Iterator[Trial]:
    """The step of a stage as training makes it, with batches of its data until the context ends. Parents that are not
    given are untrained ones, which cost as much. A call makes as many steps as in training, or `at_once`."""
    # The length of its schedule has no part in what a step costs, but one of training's own length is the same program,
    # which is then compiled once for both.
    epoch = steps_per_epoch(data, cfg, stage)
    tx = build_optimizer(getattr(cfg.stages, stage), known_length(cfg, data, stage) or 1000, epoch)
    each = first_batches(data, cfg, stage, **own_share())
    first = each[0]
    if parents is None:
        parents = untrained_parents(cfg, joint(model).tasks[0], stage, first)
    mesh = make_mesh(cfg.parallel)
    most = at_once or steps_per_call(cfg, as_mixture(data), first, mesh)

    make = partial(make_train_step, model, tx, cfg, stage=stage, steps_per_epoch=epoch, parents=parents, steps_per_call=most)
    with training_batches(data, cfg, stage, **own_share()) as batches:
        yield Trial(
            make=make,
            begin=partial(init_state, model, tx, first, jax.random.key(cfg.seed), stage=stage, cfg=cfg),
            batches=_calls(chain(each, batches), most, mesh),
            first=len(each),
            at_once=most,
        )


def _calls(batches: Iterator[Batch], most: int, mesh: Mesh) -> Iterator[Batch | Batches]:
    """What the step takes at each call."""
    give = as_given(mesh, most)
    while True:
        yield give([next(batches) for _ in range(most)])
