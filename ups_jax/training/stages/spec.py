"""What every stage says of itself; training, checkpoints and the library's functions work on this alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Array, Key

from ups_jax.config import Config, EvaluationConfig, TrainingConfig
from ups_jax.data import Dataset
from ups_jax.losses import Batch, LossBundle
from ups_jax.task import Task
from ups_jax.training.accumulate import Draw

# Parameters -> validation metrics by name, lower is better.
Validate = Callable[[Any], dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """One stage: the tasks it is for, what must be trained before it, its model, loss and validation.

    `model` raises ConfigError where the configuration cannot be built. `init` gives parameters; its batch lends shapes
    and is of one row. `draw` makes what is random in the rows of a batch, for `losses` to find there when the rows are
    split; without it a row has nothing random. `selected_by` names the validation metric that selects the best
    checkpoint.
    """

    name: str
    task_kind: Literal["transient", "steady"]
    needs: tuple[str, ...] = ()
    model: Callable[[Config, Task], Any]
    init: Callable[[Any, Key[Array, ""], Batch], Any]
    losses: Callable[[Any, TrainingConfig], LossBundle]
    draw: Callable[[Any, TrainingConfig], Draw] = lambda _model, _config: lambda batch, _key: batch
    validate: Callable[[Any, Dataset, EvaluationConfig], Validate]
    selected_by: Callable[[EvaluationConfig], str]
