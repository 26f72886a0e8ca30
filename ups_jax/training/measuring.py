"""What a step of a stage takes before it is trained, for a plan by seconds; where memory runs out, with fewer rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from ups_jax.compilation import compiling
from ups_jax.config import Config
from ups_jax.data import Dataset, Mixture, steps_per_epoch
from ups_jax.parallel import local_copy, make_mesh
from ups_jax.processes import agreed
from ups_jax.training.budget import measure_seconds, measure_seconds_per_step
from ups_jax.training.fitting_validation import fitting_validation
from ups_jax.training.halvings import Halving, halving, micro_batches
from ups_jax.training.memory import batch_key, fitting_step, memory_for, row_too_large
from ups_jax.training.plan import eval_steps
from ups_jax.training.stages import stage_of
from ups_jax.training.stages.spec import Parents, Validate
from ups_jax.training.state import scale_of
from ups_jax.training.trial import trial


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Wall time of a compiled step and its share of a validation, and the halvings that it came to."""

    seconds_per_step: float
    halvings: tuple[Halving, ...]


def measure_stage(
    cfg: Config,
    stage: str,
    data: Dataset | Mixture,
    model: Any,
    parents: Parents,
    validate: Validate,
    known: Sequence[Halving],
    console: Console,
) -> Measured:
    """Measure on states that are thrown away, from the `known` halvings on. ConfigError where one row, or a validation,
    does not fit into memory."""
    new: list[Halving] = []
    with (
        compiling(cfg.training.compile),
        console.status("measuring the step"),
        trial(cfg, stage, data, model, parents) as tried,
    ):
        train_step = fitting_step(
            cfg,
            stage,
            model,
            tried.tx,
            steps_per_epoch(data, cfg, stage),
            parents,
            micro_batches(cfg, stage, known),
            tried.at_once,
            halved=lambda rows, groups: new.append(halving(cfg, rows, groups)),
        )
        # The steps that compile come first, one of each task.
        warmup = tried.first + 2
        step = train_step.carried_through(
            lambda: measure_seconds_per_step(
                train_step, tried.begin(), tried.batches, warmup=warmup, at_once=tried.at_once
            )
        )
        with memory_for(row_too_large(batch_key(stage))):
            state = tried.begin()
            mesh = make_mesh(cfg.parallel)
            weights = local_copy(mesh, stage_of(stage).weights(state.params, scale_of(state)))
        fitting = fitting_validation(validate)
        validation = measure_seconds(lambda: fitting(weights))
    seconds = agreed(step + validation / eval_steps(cfg, data, stage))
    return Measured(seconds_per_step=seconds, halvings=tuple(new))
