"""The specification of a stage, from which training, checkpoints and inference build its model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from jaxtyping import Array, Float, Key, PyTree

from ups_jax.config import Config
from ups_jax.core.stage_names import STAGE_NEEDS
from ups_jax.core.task import Task
from ups_jax.data import Dataset
from ups_jax.losses import Draw, StageLoss, has_epoch_schedule
from ups_jax.losses.weights import term_weights
from ups_jax.models import Batch, PointSimulator, Simulator, SteadySimulator
from ups_jax.models.corrector import Corrector
from ups_jax.training.state import TrainState

# The model of one task, in any stage.
StageModel = Simulator | PointSimulator | SteadySimulator | Corrector
M = TypeVar("M", bound=StageModel)
# Weights of a stage (from `StageSpec.build_weights`) -> validation metrics by name, lower is better.
Validate = Callable[[PyTree], dict[str, float]]
# Weights of the stages that a stage needs, by stage name; they are constant during its training.
Parents = Mapping[str, PyTree]


@dataclass(frozen=True, kw_only=True)
class StageSpec(Generic[M]):
    """The specification of a stage.

    Attributes:
        name: Name of the stage.
        task_kinds: Kinds of task that the stage supports, `transient` or `steady`.
        supports_points: Whether the stage supports scattered points as well as grids.
        model: (cfg, task) -> model; raises ConfigError if the configuration is inconsistent.
        init: (model, key, batch of one row) -> initial parameters; only the shapes of the batch matter.
        losses: (model, cfg) -> loss of the stage.
        draw: (model, cfg) -> function (batch, key) -> batch that adds the random numbers of the rows, before the rows
            are split into micro-batches. By default nothing is added.
        validate: (model, dataset, cfg, parents) -> validation function.
        selection_metric: cfg -> name of the validation metric that selects the best checkpoint.
        target_metric: cfg -> value of the selection metric at which the stage ends early; 0 for no such end.
        has_scale: Whether the train state is a `ScaledState`, whose scale the loss receives in its `StepContext`.
        uses_ema_target: Whether the loss receives the averaged parameters of the stage as `StepContext.target`.
        init_from_parents: (model, cfg, parents, state, batches) -> initial state with values from the parents.
        build_weights: (params, scale) -> weights in the form that `validate` and later stages take.
        uses_term_weights: Whether the loss consists of the terms with weights `training.lambda_*`.
        depends_on_epoch: cfg -> whether the loss depends on the epoch.
        check_metrics: Validation metrics -> description of what is wrong with them, or None.
    """

    name: str
    task_kinds: tuple[str, ...]
    supports_points: bool = False
    model: Callable[[Config, Task], M]
    init: Callable[[M, Key[Array, ""], Batch], PyTree]
    losses: Callable[[M, Config], StageLoss]
    draw: Callable[[M, Config], Draw] = lambda _model, _cfg: lambda batch, _key: batch
    validate: Callable[[M, Dataset, Config, Parents], Validate]
    selection_metric: Callable[[Config], str]
    target_metric: Callable[[Config], float] = lambda _cfg: 0.0
    has_scale: bool = False
    uses_ema_target: bool = False
    init_from_parents: Callable[[M, Config, Parents, TrainState, Iterator[Batch]], TrainState] = (
        lambda _model, _cfg, _parents, state, _batches: state
    )
    build_weights: Callable[[PyTree, Float[Array, " c"] | None], PyTree] = lambda params, _scale: params
    uses_term_weights: bool = True
    depends_on_epoch: Callable[[Config], bool] = lambda cfg: has_epoch_schedule(cfg.training)
    check_metrics: Callable[[Mapping[str, float]], str | None] = lambda _values: None

    def required_stages(self, task_kind: str) -> tuple[str, ...]:
        """Return the names of the stages that must be trained before this stage on a transient or a steady task."""
        return STAGE_NEEDS[task_kind].get(self.name, ())

    def loss_term_weights(self, cfg: Config) -> dict[str, float]:
        """Return the weights of the loss terms by name; empty if the stage does not use `training.lambda_*`."""
        return term_weights(cfg.training) if self.uses_term_weights else {}
