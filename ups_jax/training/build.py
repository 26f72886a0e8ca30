"""Builds the model, the optimizer and the initial train state of a stage from configuration and data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from ups_jax.core.rng import jax_stream_key
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
from ups_jax.training.state import TrainState, create_train_state


class ModelAndOptimizer(NamedTuple):
    """The model and the optimizer `tx` of a stage; for several tasks the model is a `JointModel`."""

    model: StageModel | JointModel
    tx: optax.GradientTransformation


def build(cfg: Config, dataset: Dataset | Mixture | None = None, *, stage: str = "operator") -> ModelAndOptimizer:
    """Return the model and the optimizer of a stage.

    Args:
        dataset: Training data; by default the data of the configuration is opened.

    Raises:
        ConfigError: The stage does not support the data, or the widths of the model are inconsistent.
        DataError: The data cannot be opened.
    """
    require_determinism(cfg.deterministic)
    if dataset is None:
        simulate.generate_missing(cfg)
        data: Dataset | Mixture = open_mixture(cfg)
    else:
        data = dataset
    model = build_joint_model(cfg, as_mixture(data).tasks, stage)
    plan = make_plan(cfg, data, stage)
    tx = build_optimizer(getattr(cfg.stages, stage), plan.total_steps, plan.steps_per_epoch)
    return ModelAndOptimizer(model.models[0] if len(model.models) == 1 else model, tx)


def build_model(cfg: Config, task: Task, stage: str) -> StageModel:
    """Return the model that a stage trains on a task.

    Raises:
        ConfigError: The stage does not support the task, or the widths of the model are inconsistent.
    """
    spec = stage_spec(stage)
    if task.kind not in spec.task_kinds:
        suitable = " or ".join(f"--stage {name}" for name in STAGES if task.kind in stage_spec(name).task_kinds)
        kinds = " and ".join(spec.task_kinds)
        raise ConfigError(f"task {task.name} is {task.kind}, stage {stage} is for {kinds} tasks; use {suitable}")
    if task.scattered and not spec.supports_points:
        raise ConfigError(
            f"task {task.name} has scattered points, but stage {stage} supports grids only; use --stage operator"
        )
    return spec.model(cfg, task)


def build_joint_model(cfg: Config, tasks: Sequence[Task], stage: str) -> JointModel:
    """Return the models that a stage trains jointly on all tasks, with their shared parameters.

    Raises:
        ConfigError: The stage does not support a task, or supports a single task only.
    """
    models = tuple(build_model(cfg, task, stage) for task in tasks)
    if len(models) == 1:
        # A single model shares no parameters, so their shapes are not needed.
        return JointModel(models)
    spec = stage_spec(stage)
    if spec.has_scale or spec.uses_ema_target:
        names = ", ".join(task.name for task in tasks)
        raise ConfigError(
            f"stage {stage} supports a single task, but data.tasks has {len(tasks)} ({names}); set "
            f"stages.{stage}.epochs to 0, or train this stage in a run with one of these tasks"
        )
    examples = tuple(template_batch(task, min_frames_for_init(cfg, task)) for task in tasks)
    key = jax.random.key(0)
    trees = [jax.eval_shape(partial(spec.init, model), key, row) for model, row in zip(models, examples, strict=True)]
    return JointModel(models, plan_sharing([task.name for task in tasks], trees), examples)


def min_frames_for_init(cfg: Config, task: Task) -> int:
    """Return the minimum number of frames of a batch with which the parameters of a model can be initialised."""
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
    """Return the initial train state of a stage, deterministic in `key`.

    If the stage has parents (stages that must be trained before it), pass the result to
    `ups_jax.trainer.parents.init_from_parents`, which adds the values that the stage takes from them.

    Args:
        batch: Batch that provides the shapes; for several tasks, a batch of the first task.
        key: Key of the initial parameters and of all later random numbers of the run.
        cfg: Configuration. It is required for the detection of loss spikes, because the state then contains the recent
            losses. With a configuration, the state is sharded over the mesh of `cfg.parallel`.
    """
    return make_init_state(model, tx, stage=stage, cfg=cfg)(key, batch)


def make_init_state(
    model: StageModel | JointModel, tx: optax.GradientTransformation, *, stage: str, cfg: Config | None
) -> Callable[[Key[Array, ""], Batch], TrainState]:
    """Return the compiled function from a key and a batch to the initial train state, as `init_state` describes it."""
    spec, joint = stage_spec(stage), as_joint_model(model)
    mesh = None if cfg is None else make_mesh(cfg.parallel)

    @jax.jit
    def new_state(key: Key[Array, ""], batch: Batch) -> TrainState:
        params = joint.init(spec, jax_stream_key(key, "init"), first_row(batch))
        scale_channels = len(joint.task.channels) if spec.has_scale else None
        state = create_train_state(params, tx, key, cfg, scale_channels=scale_channels)
        return state if mesh is None else with_sharding(mesh, state)

    return new_state


def abstract_state(config: Config, task: Task | Sequence[Task], stage: str) -> TrainState:
    """Return the train state of a stage as abstract arrays with shapes and dtypes, without sharding.

    Args:
        task: Task or tasks of the run.
    """
    tasks = (task,) if isinstance(task, Task) else tuple(task)
    config = replace(config, parallel=ParallelConfig(data=1))
    # The shapes of the state do not depend on the lengths of the schedule.
    tx = build_optimizer(getattr(config.stages, stage), 1, 1)
    new_state = partial(init_state, build_joint_model(config, tasks, stage), tx, stage=stage, cfg=config)
    batch = template_batch(tasks[0], min_frames_for_init(config, tasks[0]))
    return jax.eval_shape(new_state, batch, jax.random.key(0))


@dataclass(frozen=True)
class JointModel:
    """Models of one or several tasks with shared parameters.

    Attributes:
        models: Model of each task.
        sharing: Parameters that the models share.
        examples: For each task, a batch of one row with the shapes of the task; empty for a single task.
    """

    models: tuple[StageModel, ...]
    sharing: Sharing = field(default_factory=Sharing)
    examples: tuple[Batch, ...] = ()

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks of the models."""
        return tuple(model.task for model in self.models)

    @property
    def task(self) -> Task:
        """The only task of the model; ValueError if there are several."""
        (only,) = self.tasks
        return only

    def init(self, spec: StageSpec, key: Key[Array, ""], first: Batch) -> PyTree:
        """Return the initial joint parameters; `first` is a batch of one row of the first task."""
        rows = [first, *self.examples[1:]]
        return self.sharing.joint_params(
            [spec.init(model, key, row) for model, row in zip(self.models, rows, strict=True)]
        )

    def losses(self, spec: StageSpec, cfg: Config) -> list[StageLoss]:
        """Return the loss of each task as a function of the joint parameters."""
        return [self._with_joint_params(spec.losses(model, cfg), number) for number, model in enumerate(self.models)]

    def parameter_subsets(self) -> list[ParameterSubset]:
        """Return, for each task, the subset of the joint parameters that the model of the task uses."""
        return [self.sharing.parameter_subset(number) for number in range(len(self.models))]

    def _with_joint_params(self, loss: StageLoss, task_number: int) -> StageLoss:
        """Return the loss of a task, which takes the parameters of its model, as a function of the joint parameters."""

        def task_loss(
            params: PyTree, batch: Batch, key: Key[Array, ""], context: StepContext
        ) -> tuple[Float[Array, ""], Terms]:
            return loss(self.sharing.task_params(params, task_number), batch, key, context)

        return task_loss


def as_joint_model(model: StageModel | JointModel) -> JointModel:
    """Return a `JointModel` unchanged; wrap the model of a single task in one."""
    return model if isinstance(model, JointModel) else JointModel((model,))


def joint_validation(
    model: JointModel, spec: StageSpec, data: Dataset | Mixture, cfg: Config, parents: Parents
) -> Validate:
    """Return the function from the weights of a stage to its validation metrics, averaged over the tasks.

    With several tasks, the result also has the metrics of each task, as `{task}/{metric}`.

    Args:
        parents: Weights of the stages that this stage needs.
    """
    validations = [
        spec.validate(task_model, dataset, cfg, parents)
        for task_model, dataset in zip(model.models, as_mixture(data).datasets, strict=True)
    ]

    def validate(weights: PyTree) -> dict[str, float]:
        task_metrics = [
            task_validate(model.sharing.task_params(weights, number))
            for number, task_validate in enumerate(validations)
        ]
        means = {name: float(np.mean([metrics[name] for metrics in task_metrics])) for name in task_metrics[0]}
        return means | prefix_with_task(model.tasks, task_metrics)

    return validations[0] if len(validations) == 1 else validate


def prefix_with_task(tasks: Sequence[Task], task_metrics: Sequence[dict[str, float]]) -> dict[str, float]:
    """Combine the metrics of all tasks into one dictionary with the keys `{task}/{metric}`."""
    return {
        f"{task.name}/{name}": value
        for task, metrics in zip(tasks, task_metrics, strict=True)
        for name, value in metrics.items()
    }


def template_batch(task: Task, frames: int) -> Batch:
    """Return a batch of one row that has the shapes of a task and placeholder values (zeros and ones)."""
    width = len(task.coefficients)
    point_arrays: dict[str, Any] = {}
    if task.scattered:
        axes = 0 if task.moving else len(task.axes)
        point_arrays = {"coords": jnp.zeros((1, task.num_points, axes)), "point_mask": jnp.ones((1, task.num_points))}
    return Batch(
        fields=jnp.zeros((1, frames, *task.shape, len(task.channels))),
        inputs=jnp.zeros((1, *task.shape, len(task.inputs))),
        dt=jnp.ones(1),
        cond=jnp.zeros((1, width)),
        cond_mask=jnp.zeros((1, width)),
        **point_arrays,
    )


def trains_on_latents(cfg: Config, stage: str) -> bool:
    """Return whether a stage is trained on cached latents, with a frozen codec."""
    return stage == "operator" and cfg.data.source == "latents"


def subset_without_codec(spec: StageSpec, model: StageModel, cfg: Config) -> ParameterSubset:
    """Return which parameters training on cached latents updates: all except the codec's, which are frozen."""
    first = template_batch(model.task, min_frames_for_init(cfg, model.task))
    paths = frozenset(flatten_dict(jax.eval_shape(partial(spec.init, model), jax.random.key(0), first)))
    codec = frozenset(path for path in paths if path[0] == CODEC)
    return ParameterSubset(used=paths - codec, frozen=codec)


def averaged_params(cfg: Config, stage: str, state: TrainState, decay: float | None) -> PyTree:
    """Return the averaged parameters of a state; a frozen codec keeps its parameters.

    The average of constant parameters differs from these parameters by round-off.

    Args:
        decay: Fixed decay of the average; None for the power-function average.
    """
    average = ema_params(state.params, state.ema, decay)
    return {**average, CODEC: state.params[CODEC]} if trains_on_latents(cfg, stage) else average
