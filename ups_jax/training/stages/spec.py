"""The specification of a stage, which training, checkpoints and the library's functions work on."""

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
# Weights of a stage (`StageSpec.weights`) -> validation metrics by name, lower is better.
Validate = Callable[[PyTree], dict[str, float]]
# The weights of the stages that a stage needs, by name: constants for it, and arguments of its step.
Parents = Mapping[str, PyTree]


@dataclass(frozen=True, kw_only=True)
class StageSpec(Generic[M]):
    """One stage: the kinds of task it is for, its model, loss and validation. What must be trained before it is in
    `STAGE_NEEDS`. It is for sets of points, and not for grids alone, where it is `scattered`.

    `model` raises ConfigError where the configuration cannot be built. `init` gives parameters; its batch lends shapes
    and is of one row. `draw` makes what is random in the rows of a batch, for `losses` to find there when the rows are
    split; without it a row has nothing random. `selection_metric` names the validation metric that selects the best
    checkpoint, and `target` the value of it that ends the stage early.

    The `StepContext` of `losses` holds the state's `scale` where the stage is `scaled`, and the average of its own
    parameters so far as `target` where it is `uses_ema_target`. `begin` makes the first state of a fresh stage from the
    parents and the stage's own batches. `weights` is what its functions take in place of bare parameters. `weighted`
    says whether the terms of `training.lambda_*` are those of its loss, `depends_on_epoch` whether the loss depends on the
    epoch. `fault` says what is wrong with the validation metrics of a run that is half done.
    """

    name: str
    task_kinds: tuple[str, ...]
    scattered: bool = False
    model: Callable[[Config, Task], M]
    init: Callable[[M, Key[Array, ""], Batch], PyTree]
    losses: Callable[[M, Config], StageLoss]
    draw: Callable[[M, Config], Draw] = lambda _model, _cfg: lambda batch, _key: batch
    validate: Callable[[M, Dataset, Config, Parents], Validate]
    selection_metric: Callable[[Config], str]
    target: Callable[[Config], float] = lambda _cfg: 0.0
    scaled: bool = False
    uses_ema_target: bool = False
    begin: Callable[[M, Config, Parents, TrainState, Iterator[Batch]], TrainState] = (
        lambda _model, _cfg, _parents, state, _batches: state
    )
    weights: Callable[[PyTree, Float[Array, " c"] | None], PyTree] = lambda params, _scale: params
    weighted: bool = True
    depends_on_epoch: Callable[[Config], bool] = lambda cfg: has_epoch_schedule(cfg.training)
    fault: Callable[[Mapping[str, float]], str | None] = lambda _values: None

    def needs(self, kind: str) -> tuple[str, ...]:
        """The stages that have to be trained before it, on a task of a kind."""
        return STAGE_NEEDS[kind].get(self.name, ())

    def terms(self, cfg: Config) -> dict[str, float]:
        """The weights of those terms of its loss that the configuration weighs."""
        return term_weights(cfg.training) if self.weighted else {}
