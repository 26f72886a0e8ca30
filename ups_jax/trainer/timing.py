"""Measurement of a stage's time per step before training, which converts a length in seconds to steps.

If memory runs out, the micro-batch is halved as in training.
"""

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
from ups_jax.core.xla import jit_context
from ups_jax.data import Dataset, Mixture, first_batches, steps_per_epoch, training_batches, windows_per_step
from ups_jax.data.mixture import as_mixture
from ups_jax.distributed.mesh import gather_to_local, make_mesh
from ups_jax.distributed.processes import broadcast_from_host0, process_slice
from ups_jax.models import Batch
from ups_jax.optim import build_optimizer
from ups_jax.trainer import oom
from ups_jax.trainer.parents import untrained_parents
from ups_jax.training import multi_step
from ups_jax.training.build import as_joint_model, init_state
from ups_jax.training.multi_step import Batches, make_batch_transfer
from ups_jax.training.run_length import evaluation_interval, make_plan, measure_seconds, measure_seconds_per_step
from ups_jax.training.stages import stage_spec
from ups_jax.training.stages.spec import Parents, Validate
from ups_jax.training.state import TrainState, state_scale
from ups_jax.training.step import TrainStep, make_train_step


@dataclass(frozen=True, kw_only=True)
class StageTiming:
    """The measured time per step of a stage.

    Attributes:
        seconds_per_step: Wall time of a compiled step, plus its share of the time of a validation.
        halvings: Records of the micro-batch halvings during the measurement.
    """

    seconds_per_step: float
    halvings: tuple[oom.HalvingRecord, ...]


def measure_stage(
    cfg: Config,
    stage: str,
    data: Dataset | Mixture,
    model: Any,
    parents: Parents,
    validate: Validate,
    halvings: Sequence[oom.HalvingRecord],
    console: Console,
) -> StageTiming:
    """Return the time per step of a stage, measured on temporary states.

    Args:
        parents: Weights of the stages that this stage needs.
        halvings: Micro-batch halvings of earlier starts, from run.json.

    Raises:
        ConfigError: A step with micro-batches of one row, or a validation, does not fit into memory.
    """
    new_halvings: list[oom.HalvingRecord] = []
    with (
        jit_context(cfg.training.compile),
        console.status("measuring the time per step"),
        open_step_trial(cfg, stage, data, model, parents) as step_trial,
    ):
        train_step = oom.OomRetryStep(
            step_trial.make_step,
            windows_per_step(cfg, stage),
            oom.initial_micro_batches(cfg, stage, halvings),
            config_key=oom.batch_size_key(stage),
            ahead_of_time=cfg.training.compile,
            on_halved=lambda rows, micro_batches: new_halvings.append(oom.halving_record(cfg, rows, micro_batches)),
        )
        # The first batch of each task compiles a program.
        warmup = step_trial.task_count + 2
        step_seconds = train_step.run_with_retry(
            lambda: measure_seconds_per_step(
                train_step,
                step_trial.new_state(),
                step_trial.batches,
                warmup=warmup,
                steps_per_call=step_trial.steps_per_call,
            )
        )
        with oom.raise_on_oom(oom.row_too_large_error(oom.batch_size_key(stage))):
            state = step_trial.new_state()
            mesh = make_mesh(cfg.parallel)
            weights = gather_to_local(mesh, stage_spec(stage).build_weights(state.params, state_scale(state)))
        checked_validate = oom.with_validation_oom_error(validate)
        validation_seconds = measure_seconds(lambda: checked_validate(weights))
    seconds = broadcast_from_host0(step_seconds + validation_seconds / evaluation_interval(cfg, data, stage))
    return StageTiming(seconds_per_step=seconds, halvings=tuple(new_halvings))


@dataclass(frozen=True, kw_only=True)
class StepTrial:
    """The train step of a stage, with states and batches for a measurement of its time.

    Attributes:
        make_step: Function `make_step(micro_batches=n)` that returns the train step; the step donates its state.
        new_state: Function that returns a new state at step 0.
        batches: Batch arguments of successive calls of the step; the first `task_count` are of different tasks.
        steps_per_call: Optimizer steps in one call of the step.
    """

    make_step: Callable[..., TrainStep]
    new_state: Callable[[], TrainState]
    batches: Iterator[Batch | Batches]
    task_count: int
    steps_per_call: int

    @cached_property
    def train_step(self) -> TrainStep:
        """The train step with `accum_steps` micro-batches."""
        return self.make_step()


def configured_steps(cfg: Config, data: Dataset | Mixture, stage: str) -> int | None:
    """Return the configured number of steps of a stage; None if it is disabled or its length is given in seconds."""
    settings = getattr(cfg.stages, stage)
    disabled = (settings.epochs if settings.steps is None else settings.steps) == 0
    return None if disabled or settings.max_seconds is not None else make_plan(cfg, data, stage).total_steps


@contextmanager
def open_step_trial(
    cfg: Config,
    stage: str,
    data: Dataset | Mixture,
    model: Any,
    parents: Parents | None = None,
    steps_per_call: int | None = None,
) -> Iterator[StepTrial]:
    """Yield the train step of a stage, with states and batches for a measurement of its time.

    Args:
        parents: Weights of the stages that this stage needs; None for untrained weights, which have the same cost.
        steps_per_call: Optimizer steps in one call; None for the number that training uses.
    """
    # The schedule's length does not affect the time per step. With the length of the training the program is the same,
    # so it is compiled once for both.
    epoch = steps_per_epoch(data, cfg, stage)
    tx = build_optimizer(getattr(cfg.stages, stage), configured_steps(cfg, data, stage) or 1000, epoch)
    task_batches = first_batches(data, cfg, stage, **process_slice())
    first = task_batches[0]
    if parents is None:
        parents = untrained_parents(cfg, as_joint_model(model).tasks[0], stage, first)
    mesh = make_mesh(cfg.parallel)
    steps = steps_per_call or multi_step.steps_per_call(cfg, as_mixture(data), first, mesh)

    make_step = partial(
        make_train_step, model, tx, cfg, stage=stage, steps_per_epoch=epoch, parents=parents, steps_per_call=steps
    )
    with training_batches(data, cfg, stage, **process_slice()) as batches:
        yield StepTrial(
            make_step=make_step,
            new_state=partial(init_state, model, tx, first, jax.random.key(cfg.seed), stage=stage, cfg=cfg),
            batches=_call_batches(chain(task_batches, batches), steps, mesh),
            task_count=len(task_batches),
            steps_per_call=steps,
        )


def _call_batches(batches: Iterator[Batch], steps_per_call: int, mesh: Mesh) -> Iterator[Batch | Batches]:
    """Yield the batch arguments of successive calls of a train step; each has the batches of `steps_per_call` steps."""
    to_device = make_batch_transfer(mesh, steps_per_call)
    while True:
        yield to_device([next(batches) for _ in range(steps_per_call)])
