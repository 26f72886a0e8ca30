"""The models of all tasks of a training as one: which parameters of a joint tree each has, and its loss of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from ups_jax.config import Config
from ups_jax.data import Dataset, Mixture, mixture_of
from ups_jax.losses import Batch, StageLoss
from ups_jax.models.sharing import Part, Sharing
from ups_jax.task import Task
from ups_jax.training.stages.spec import Parents, StageSpec, Validate


@dataclass(frozen=True)
class JointModel:
    """A model for each task. `examples` lend the shapes of a row of each; of a model that is alone there are none, its
    shapes are lent by whoever makes its parameters."""

    models: tuple[Any, ...]
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

    def init(self, spec: StageSpec, key: Key[Array, ""], first: Batch) -> Any:
        """Fresh parameters; `first` is a row of the first task."""
        rows = [first, *self.examples[1:]]
        return self.sharing.join([spec.init(model, key, row) for model, row in zip(self.models, rows, strict=True)])

    def losses(self, spec: StageSpec, cfg: Config) -> list[StageLoss]:
        """Each task's loss, of the joint parameters."""
        return [self._viewed(spec.losses(model, cfg), number) for number, model in enumerate(self.models)]

    def parts(self) -> list[Part]:
        """Which parameters each task's model has."""
        return [self.sharing.part(number) for number in range(len(self.models))]

    def _viewed(self, losses: StageLoss, number: int) -> StageLoss:
        def of_task(params: Any, *rest: Any, **named: Any) -> Any:
            return losses(self.sharing.view(params, number), *rest, **named)

        return of_task


def joint(model: Any) -> JointModel:
    """A joint model, also of one model."""
    return model if isinstance(model, JointModel) else JointModel((model,))


def joint_validation(
    model: JointModel, spec: StageSpec, data: Dataset | Mixture, cfg: Config, parents: Parents
) -> Validate:
    """Weights -> the mean over the tasks of every validation metric, and where there are several tasks each one's own
    as `{task}/{metric}`."""
    each = [
        spec.validate(own, dataset, cfg, parents)
        for own, dataset in zip(model.models, mixture_of(data).datasets, strict=True)
    ]

    def validate(weights: Any) -> dict[str, float]:
        found = [own(model.sharing.view(weights, number)) for number, own in enumerate(each)]
        means = {name: float(np.mean([values[name] for values in found])) for name in found[0]}
        return means | named_by_task(model.tasks, found)

    return each[0] if len(each) == 1 else validate


def named_by_task(tasks: Sequence[Task], found: Sequence[dict[str, float]]) -> dict[str, float]:
    """`{task}/{metric}` of each task."""
    return {f"{task.name}/{name}": value for task, own in zip(tasks, found, strict=True) for name, value in own.items()}


def example(task: Task, frames: int) -> Batch:
    """A row of a task's batch, for its shapes."""
    width = len(task.coefficients)
    places: Batch = {}
    if task.scattered:
        axes = 0 if task.moving else len(task.axes)
        places = {"coords": jnp.zeros((1, task.points, axes)), "point_mask": jnp.ones((1, task.points))}
    return places | {
        "fields": jnp.zeros((1, frames, *task.shape, len(task.channels))),
        "inputs": jnp.zeros((1, *task.shape, len(task.inputs))),
        "dt": jnp.ones(1),
        "cond": jnp.zeros((1, width)),
        "cond_mask": jnp.zeros((1, width)),
    }
