"""A stage's step on a state that nobody keeps: to measure how long it takes, or to see where its time goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import jax
import optax

from ups_jax.config import Config
from ups_jax.data import Dataset, Mixture, first_batches, steps_per_epoch, training_batches
from ups_jax.losses import Batch
from ups_jax.optim import build_optimizer
from ups_jax.parallel import make_mesh, put_rows
from ups_jax.processes import own_share
from ups_jax.training.build import init_state
from ups_jax.training.joint import joint
from ups_jax.training.parents import untrained_parents
from ups_jax.training.plan import plan_of
from ups_jax.training.stages.spec import Parents
from ups_jax.training.state import TrainState
from ups_jax.training.step import TrainStep, make_train_step


@dataclass(frozen=True, kw_only=True)
class Trial:
    """`train_step` uses its state up; `begin` makes another one. The batches are on the device, the `first` of them one
    of each task."""

    tx: optax.GradientTransformation
    train_step: TrainStep
    begin: Callable[[], TrainState]
    batches: Iterator[Any]
    first: int


def known_length(cfg: Config, data: Dataset | Mixture, stage: str) -> int | None:
    """The steps that the stage is trained for; None where they are yet to be measured, or it is off."""
    settings = getattr(cfg.stages, stage)
    off = (settings.epochs if settings.steps is None else settings.steps) == 0
    return None if off or settings.max_seconds is not None else plan_of(cfg, data, stage).total_steps


@contextmanager
def trial(
    cfg: Config, stage: str, data: Dataset | Mixture, model: Any, parents: Parents | None = None
) -> Iterator[Trial]:
    """The step of a stage as training makes it, with batches of its data until the context ends. Parents that are not
    given are untrained ones, which cost as much."""
    # The length of its schedule has no part in what a step costs, but one of training's own length is the same program,
    # which is then compiled once for both.
    epoch = steps_per_epoch(data, cfg, stage)
    tx = build_optimizer(getattr(cfg.stages, stage), known_length(cfg, data, stage) or 1000, epoch)
    each = first_batches(data, cfg, stage, **own_share())
    first: Batch = {**each[0]}
    if parents is None:
        parents = untrained_parents(cfg, joint(model).tasks[0], stage, first)
    mesh = make_mesh(cfg.parallel)
    with training_batches(data, cfg, stage, **own_share()) as batches:
        yield Trial(
            tx=tx,
            train_step=make_train_step(model, tx, cfg, stage=stage, steps_per_epoch=epoch, parents=parents),
            begin=partial(init_state, model, tx, first, jax.random.key(cfg.seed), stage=stage, cfg=cfg),
            batches=map(partial(put_rows, mesh), chain(each, batches)),
            first=len(each),
        )
