"""From configuration and data to a stage's model, its optimizer and a fresh state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, Key, PyTree

from ups_jax import simulate
from ups_jax.config import Config, ParallelConfig
from ups_jax.core.errors import ConfigError
from ups_jax.core.rng import stream
from ups_jax.core.stage_names import STAGES
from ups_jax.core.task import Task
from ups_jax.core.xla import require_determinism
from ups_jax.data import Dataset, Mixture, as_mixture, open_mixture
from ups_jax.distributed.mesh import make_mesh, with_sharding
from ups_jax.losses import StageLoss, StepContext, Terms
from ups_jax.models import Batch, first_row
from ups_jax.models.codec import CODEC
from ups_jax.models.parameter_sharing import ParameterSubset, Sharing, plan_sharing
from ups_jax.optim import build_optimizer, ema_params
from ups_jax.training.run_length import make_plan
from ups_jax.training.stages import stage_spec
from ups_jax.training.stages.spec import Parents, StageModel, StageSpec, Validate
from ups_jax.training.state import TrainState, state_of


class ModelAndOptimizer(NamedTuple):
    """What a stage trains with: `model`, of several tasks a `JointModel`, and `tx`, its optimizer."""

    model: StageModel | JointModel
    tx: optax.GradientTransformation


def build(cfg: Config, dataset: Dataset | Mixture | None = None, *, stage: str = "operator") -> ModelAndOptimizer:
    """Return the model and the optimizer of a stage; without `dataset` the data of the configuration is opened.

    Raises:
        ConfigError: The stage is not for the data, or widths do not fit.
        DataError: The data cannot be opened.
    """
    require_determinism(cfg.deterministic)
    if dataset is None:
        simulate.prepare(cfg)
        data: Dataset | Mixture = open_mixture(cfg)
    else:
        data = dataset
    model = build_joint_model(cfg, as_mixture(data).tasks, stage)
    plan = make_plan(cfg, data, stage)
    tx = build_optimizer(getattr(cfg.stages, stage), plan.total_steps, plan.steps_per_epoch)
    return ModelAndOptimizer(model.models[0] if len(model.models) == 1 else model, tx)


def build_model(cfg: Config, task: Task, stage: str) -> StageModel:
    """The model that a stage trains on a task; ConfigError where the stage is not for it or widths do not divide."""
    spec = stage_spec(stage)
    if task.kind not in spec.task_kinds:
        others = " or ".join(f"--stage {name}" for name in STAGES if task.kind in stage_spec(name).task_kinds)
        kinds = " and ".join(spec.task_kinds)
        raise ConfigError(f"task {task.name} is {task.kind}, stage {stage} is for {kinds} tasks; use {others}")
    if task.scattered and not spec.scattered:
        raise ConfigError(f"task {task.name} is of points, stage {stage} is for grids; use --stage operator")
    return spec.model(cfg, task)


def build_joint_model(cfg: Config, tasks: Sequence[Task], stage: str) -> JointModel:
    """The models that a stage trains on all tasks; ConfigError where the stage takes one task only."""
    models = tuple(build_model(cfg, task, stage) for task in tasks)
    if len(models) == 1:
        # Alone it shares with nobody: no shapes have to be looked at.
        return JointModel(models)
    spec = stage_spec(stage)
    if spec.scaled or spec.uses_ema_target:
        names = ", ".join(task.name for task in tasks)
        raise ConfigError(
            f"stage {stage} is trained on one task, data.tasks has {len(tasks)} ({names}); set stages.{stage}.epochs "
            "to 0, or train a run on one of them for it"
        )
    examples = tuple(example(task, min_frames(cfg, task)) for task in tasks)
    key = jax.random.key(0)
    trees = [jax.eval_shape(partial(spec.init, model), key, row) for model, row in zip(models, examples, strict=True)]
    return JointModel(models, plan_sharing([task.name for task in tasks], trees), examples)


def min_frames(cfg: Config, task: Task) -> int:
    """Frames of the shortest window that a stage can be begun with."""
    return 1 if task.kind == "steady" else cfg.data.context + 1


def init_state(
    model: StageModel | JointModel,
    tx: optax.GradientTransformation,
    batch: Batch,
    key: Key[Array, ""],
    *,
    stage: str = "operator",
    cfg: Config | None = None,
) -> TrainState:
    """A fresh state; `batch`, of several tasks one of the first, lends its shapes. Deterministic in `key`.

    A configuration that looks for loss spikes has to be given: their window is a part of the state. With one, the state
    is made with its sharding (`ups_jax.distributed.mesh`), never whole on one of several devices. The state of a stage
    with parents is then to be begun by them (`trainer.parents.begun`).
    """
    spec, whole = stage_spec(stage), joint(model)

    def fresh(key: Key[Array, ""], batch: Batch) -> TrainState:
        params = whole.init(spec, stream(key, "init"), first_row(batch))
        return state_of(params, tx, key, cfg, scaled=len(whole.task.channels) if spec.scaled else None)

    if cfg is None:
        return jax.jit(fresh)(key, batch)
    mesh = make_mesh(cfg.parallel)
    return jax.jit(lambda key, batch: with_sharding(mesh, fresh(key, batch)))(key, batch)


def abstract_state(config: Config, task: Task | Sequence[Task], stage: str) -> TrainState:
    """Shapes of the train state that the configuration makes for a task or several, on whatever devices."""
    tasks = (task,) if isinstance(task, Task) else tuple(task)
    config = replace(config, parallel=ParallelConfig(data=1))
    # The lengths of a schedule shape no state.
    tx = build_optimizer(getattr(config.stages, stage), 1, 1)
    fresh = partial(init_state, build_joint_model(config, tasks, stage), tx, stage=stage, cfg=config)
    return jax.eval_shape(fresh, example(tasks[0], min_frames(config, tasks[0])), jax.random.key(0))


@dataclass(frozen=True)
class JointModel:
    """A model for each task. `examples` lend the shapes of a row of each; of a model that is alone there are none, its
    shapes are lent by whoever makes its parameters."""

    models: tuple[StageModel, ...]
    sharing: Sharing = field(default_factory=Sharing)
    examples: tuple[Batch, ...] = ()

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Their tasks."""
        return tuple(model.task for model in self.models)

    @property
    def task(self) -> Task:
        """The task of a model that is alone."""
        (only,) = self.tasks
        return only

    def init(self, spec: StageSpec, key: Key[Array, ""], first: Batch) -> PyTree:
        """Fresh parameters; `first` is a row of the first task."""
        rows = [first, *self.examples[1:]]
        return self.sharing.joint_params(
            [spec.init(model, key, row) for model, row in zip(self.models, rows, strict=True)]
        )

    def losses(self, spec: StageSpec, cfg: Config) -> list[StageLoss]:
        """Each task's loss, of the joint parameters."""
        return [self._viewed(spec.losses(model, cfg), number) for number, model in enumerate(self.models)]

    def parts(self) -> list[ParameterSubset]:
        """Which parameters each task's model has."""
        return [self.sharing.subset(number) for number in range(len(self.models))]

    def _viewed(self, losses: StageLoss, number: int) -> StageLoss:
        def of_task(
            params: PyTree, batch: Batch, key: Key[Array, ""], context: StepContext
        ) -> tuple[Float[Array, ""], Terms]:
            return losses(self.sharing.task_params(params, number), batch, key, context)

        return of_task


def joint(model: StageModel | JointModel) -> JointModel:
    """A joint model, also of one model."""
    return model if isinstance(model, JointModel) else JointModel((model,))


def joint_validation(
    model: JointModel, spec: StageSpec, data: Dataset | Mixture, cfg: Config, parents: Parents
) -> Validate:
    """Weights -> the mean over the tasks of every validation metric, and where there are several tasks each one's own
    as `{task}/{metric}`."""
    each = [
        spec.validate(own, dataset, cfg, parents)
        for own, dataset in zip(model.models, as_mixture(data).datasets, strict=True)
    ]

    def validate(weights: PyTree) -> dict[str, float]:
        found = [own(model.sharing.task_params(weights, number)) for number, own in enumerate(each)]
        means = {name: float(np.mean([values[name] for values in found])) for name in found[0]}
        return means | metrics_by_task(model.tasks, found)

    return each[0] if len(each) == 1 else validate


def metrics_by_task(tasks: Sequence[Task], found: Sequence[dict[str, float]]) -> dict[str, float]:
    """`{task}/{metric}` of each task."""
    return {f"{task.name}/{name}": value for task, own in zip(tasks, found, strict=True) for name, value in own.items()}


def example(task: Task, frames: int) -> Batch:
    """A row of a task's batch, for its shapes."""
    width = len(task.coefficients)
    places: dict[str, Any] = {}
    if task.scattered:
        axes = 0 if task.moving else len(task.axes)
        places = {"coords": jnp.zeros((1, task.points, axes)), "point_mask": jnp.ones((1, task.points))}
    return Batch(
        fields=jnp.zeros((1, frames, *task.shape, len(task.channels))),
        inputs=jnp.zeros((1, *task.shape, len(task.inputs))),
        dt=jnp.ones(1),
        cond=jnp.zeros((1, width)),
        cond_mask=jnp.zeros((1, width)),
        **places,
    )


def trains_on_latents(cfg: Config, stage: str) -> bool:
    """Whether a stage is trained on latents."""
    return stage == "operator" and cfg.data.source == "latents"


def frozen_codec_subset(spec: StageSpec, model: StageModel, cfg: Config) -> ParameterSubset:
    """The parameters that training on latents moves, as a part of the whole; the codec's are foreign to it."""
    first = example(model.task, min_frames(cfg, model.task))
    paths = frozenset(flatten_dict(jax.eval_shape(partial(spec.init, model), jax.random.key(0), first)))
    codec = frozenset(path for path in paths if path[0] == CODEC)
    return ParameterSubset(used=paths - codec, frozen=codec)


def averaged(cfg: Config, stage: str, state: TrainState, decay: float | None) -> PyTree:
    """The averaged parameters of a state; of a held codec its own, whose average differs from it by round-off."""
    average = ema_params(state.params, state.ema, decay)
    return {**average, CODEC: state.params[CODEC]} if trains_on_latents(cfg, stage) else average
