"""A trained model, loaded from its run directory: physical fields in, physical fields out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ups_jax.config import Config, of_task
from ups_jax.core.commands import command
from ups_jax.core.errors import ConfigError, DataError
from ups_jax.core.stage_names import STAGE_ALIASES, STAGE_NEEDS, STAGES
from ups_jax.core.task import Task
from ups_jax.inference.chunked_rollout import ChunkedRollout
from ups_jax.inference.inputs import (
    AnyArray,
    Coefficients,
    PointArrays,
    array_dtype,
    checked_frames,
    checked_inputs,
    checked_point_arrays,
    coefficient_arrays,
    has_jax,
    is_traced,
    make_conditions,
)
from ups_jax.models.grid import patch_shape
from ups_jax.rollout.autoregressive import latent_rollout, reconstruct, rollout
from ups_jax.rollout.steady import check_cells, steady_rollout
from ups_jax.runs.best_weights import Weights, best_weights, difference
from ups_jax.runs.directory import RunDirectory
from ups_jax.training.build import JointModel, build_joint, build_model

# The given fields of a steady task, or by name what a batch of points has beside its values.
InputFields = Float[AnyArray, "b *cells i"] | PointArrays


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedModel:
    """The averaged parameters of a run's best checkpoint and the model of each of its tasks.

    `step` and `rollout` are pure functions in physical units. Of NumPy arrays they give NumPy arrays; of arrays of JAX
    they give such, and can be differentiated, vmapped, scanned and compiled. They compute in float64 where JAX has it
    enabled and fields or weights are of that type, in float32 otherwise. Each shape is compiled once.
    """

    path: Path
    stage: str
    checkpoint: Weights
    models: JointModel

    def step(
        self,
        u: Float[AnyArray, "b *start"] | None,
        params: Coefficients | None = None,
        input_fields: InputFields | None = None,
        weights: Any = None,
        *,
        dt: float | None = None,
        task: str | None = None,
        places: PointArrays | None = None,
    ) -> Float[AnyArray, "b *s c"]:
        """Return the frame after `u`, or the solution of a steady task.

        Args:
            u: One frame a sample (b, *grid, c), or with the run's context (b, context, *grid, c). Of a steady task the
                given fields, or with `input_fields` a state, which has no influence, or None.
            params: PDE coefficients by name, one for all samples or (b,). One that is left out counts as its training
                mean, with a warning.
            input_fields: Of a steady task the given fields (b, *grid, i), on the trained grid or on one that cuts its
                cells into whole parts. Of a task on points, any number of them, a mapping: `coords` (points, axes)
                unless they move, `inputs` (points, i) where it was trained with such, `point_mask` (points,) where some
                only fill up; each with samples before that where they differ.
            weights: A tree like `weights` to use in its place.
            dt: Time between frames, which must be that of the training data.
            task: The name of the task, which a model of several needs.

        Returns:
            The frame or solution, (b, *grid, c).

        Raises:
            DataError: Shapes, names, the time step or the tree of weights are not the run's, or a concrete value is
                not finite or cannot be.
        """
        model, weights = self._for_call(task, weights)
        input_fields = _without_places(input_fields, places)
        fields, *arrays = model._checked(u, params, input_fields, weights, dt)
        result = model._frames(weights, jnp.asarray(fields), make_conditions(model.task, *arrays), steps=1)[:, 0]
        return result if has_jax(fields, arrays) or is_traced(weights, result) else np.asarray(result)

    def rollout(
        self,
        u0: Float[AnyArray, "b *start"] | None,
        steps: int,
        params: Coefficients | None = None,
        input_fields: InputFields | None = None,
        weights: Any = None,
        *,
        dt: float | None = None,
        task: str | None = None,
        places: PointArrays | None = None,
    ) -> Float[AnyArray, "b t *s c"]:
        """Return the `steps` frames after `u0`, (b, steps, *grid, c); a steady solution stays as it is.

        NumPy arrays are rolled out in pieces, so that any number of steps is one compilation. Arguments and errors are
        those of `step`.
        """
        model, weights = self._for_call(task, weights)
        input_fields = _without_places(input_fields, places)
        if model.task.kind == "steady":
            solution = model.step(u0, params, input_fields, weights, dt=dt)
            return (np if isinstance(solution, np.ndarray) else jnp).repeat(solution[:, None], steps, axis=1)
        fields, *arrays = model._checked(u0, params, input_fields, weights, dt)
        # Inside a jitted function every result is traced, that of NumPy arrays as well.
        if has_jax(fields, arrays) or is_traced(weights, jnp.zeros(())):
            return model._frames(weights, jnp.asarray(fields), make_conditions(model.task, *arrays), steps=steps)
        values, mask, where = arrays
        pieces = model._stepper.iter_chunks(fields, values, mask, steps, len(fields), where, weights)
        return np.concatenate([piece.frames[0] for piece in pieces], axis=1)

    def solve(
        self, inputs: Float[AnyArray, "b *s i"], params: Coefficients | None = None, task: str | None = None
    ) -> Float[AnyArray, "b *s c"]:
        """Return `step` of a steady task, by its former name."""
        _deprecated("TrainedModel.solve(inputs, params)", "step(inputs, params)")
        return self.step(inputs, params, task=task)

    @property
    def weights(self) -> Any:
        """The parameters as a pytree, which `step` and `rollout` take back scaled or differentiated."""
        return self.checkpoint.params

    @property
    def config(self) -> Config:
        """The configuration that the run was trained with."""
        return self.checkpoint.config

    @property
    def digest(self) -> str:
        """The digest of the checkpoint's files."""
        return self.checkpoint.digest

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks, on the grids that the model steps on."""
        return self.models.tasks

    @property
    def task(self) -> Task:
        """The task of a model of one; DataError that names those of several."""
        return self.for_task().models.task

    @property
    def model(self) -> Any:
        """The flax module of the only task; DataError that names several."""
        return self.for_task().models.models[0]

    def for_task(self, name: str | None = None) -> TrainedModel:
        """Return the model of a task; DataError where it is none of the run's, or is not named among several."""
        names = list(self._by_name)
        if name is None and len(names) == 1:
            return self
        if name not in names:
            said = "name one of them: task=..." if name is None else f"{name} is none of them"
            raise DataError(f"the run has the tasks {', '.join(names)}; {said}")
        return self._by_name[name]

    def on(self, task: Task) -> TrainedModel:
        """Return the model with the same parameters on the grid of `task`; a steady one averages and interpolates.

        Raises:
            DataError: The time step is another, or the grid does not divide into the patches or cells trained on.
        """
        trained, patch_size = self.task, self.config.latent.patch_size
        if trained.kind == "steady":
            check_cells(trained, task)
            return self
        self.check_time_step(task.dt)
        if trained.scattered:
            # The latent tokens stay where they are; any number of points speaks to them.
            moved = replace(trained, shape=task.shape)
        elif patch_shape(task.shape, patch_size) != patch_shape(trained.shape, patch_size):
            raise DataError(
                f"{self.path}: was trained on a grid of {trained.shape} points and cuts it into patches of "
                f"{patch_shape(trained.shape, patch_size)}, which a grid of {task.shape} does not divide into"
            )
        else:
            moved = replace(trained, shape=task.shape, origin=task.origin, spacing=task.spacing)
        return replace(self, models=JointModel((build_model(self.config, moved, self.stage),)))

    def check_time_step(self, dt: float) -> None:
        """Refuse a time step other than that of the training data, the only one that the model has seen."""
        if not abs(dt / self.task.dt - 1) < 1e-3:
            raise DataError(f"the time step is {dt:g}, and this run was trained on frames {self.task.dt:g} apart only")

    def rollout_arrays(
        self,
        u0: Float[np.ndarray, "b *start"],
        steps: int,
        cond: np.ndarray,
        cond_mask: np.ndarray,
        places: PointArrays = MappingProxyType({}),
    ) -> Float[np.ndarray, "b t *s c"]:
        """Return the `steps` frames after the context `u0`, or the solutions for given fields, with coefficients as
        arrays; each prediction is encoded anew."""
        return self._of_arrays(self._frames, u0, steps, cond, cond_mask, places)

    def latent_rollout(
        self, u0: Float[np.ndarray, "b k *s c"], steps: int, cond: np.ndarray, cond_mask: np.ndarray
    ) -> Float[np.ndarray, "b t *s c"]:
        """Return the `steps` frames after the context `u0`, which is encoded once."""
        return self._of_arrays(self._latent_frames, u0, steps, cond, cond_mask)

    def reconstruct(
        self,
        fields: Float[np.ndarray, "b t *s c"],
        cond: np.ndarray,
        cond_mask: np.ndarray,
        places: PointArrays = MappingProxyType({}),
    ) -> Float[np.ndarray, "b t *s c"]:
        """Return decode(encode(fields)); points keep their values beside the tokens."""
        if self.task.scattered:
            return fields
        return np.asarray(self._reconstruct(self.weights, jnp.asarray(fields, array_dtype(fields))))

    def _for_call(self, task: str | None, weights: Any) -> tuple[TrainedModel, Any]:
        """Return the model of the task that is called, and its part of the weights."""
        model = self.for_task(task)
        if weights is None:
            return model, model.weights
        differing = difference(weights, self.weights)
        if differing is not None:
            raise DataError(f"weights: is no tree like model.weights: {differing}")
        names = [each.name for each in self.tasks]
        return model, self.models.sharing.view(weights, names.index(model.task.name))

    def _checked(self, u: Any, params: Any, input_fields: Any, weights: Any, dt: float | None) -> tuple[Any, ...]:
        """Return fields, coefficients with their presence, and the places of points."""
        task, dtype = self.task, array_dtype(u, input_fields, weights)
        self.check_time_step(task.dt if dt is None else dt)
        if task.kind == "steady":
            fields, places = checked_inputs(task, u, input_fields, dtype), {}
        else:
            fields = checked_frames(task, self.model.context, u, dtype)
            places = checked_point_arrays(task, input_fields, len(fields), fields.shape[-2], dtype)
        return fields, *coefficient_arrays(task, dict(params or {}), len(fields), dtype), places

    def _of_arrays(
        self,
        frames: Any,
        u0: np.ndarray,
        steps: int,
        cond: np.ndarray,
        cond_mask: np.ndarray,
        places: PointArrays = MappingProxyType({}),
    ) -> np.ndarray:
        given = make_conditions(self.task, cond, cond_mask, places)
        return np.asarray(frames(self.weights, jnp.asarray(u0, array_dtype(u0)), given, steps=steps))

    @cached_property
    def _by_name(self) -> Mapping[str, TrainedModel]:
        if len(self.tasks) == 1:
            return {self.models.task.name: self}
        result, whole = {}, self.checkpoint
        for number, (task, part) in enumerate(zip(self.tasks, whole.fingerprint.split("+"), strict=True)):
            checkpoint = replace(
                whole,
                params=self.models.sharing.view(whole.params, number),
                weights=self.models.sharing.view(whole.weights, number),
                config=of_task(whole.config, task.name),
                tasks=(task,),
                fingerprint=part,
            )
            models = JointModel((self.models.models[number],))
            result[task.name] = replace(self, checkpoint=checkpoint, models=models)
        return result

    @cached_property
    def _stepper(self) -> ChunkedRollout:
        return ChunkedRollout(model=self.model, weights=self.weights)

    @cached_property
    def _frames(self) -> Any:
        frames = steady_rollout if self.task.kind == "steady" else rollout
        return jax.jit(partial(frames, self.model), static_argnames="steps")

    @cached_property
    def _latent_frames(self) -> Any:
        return jax.jit(partial(latent_rollout, self.model), static_argnames="steps")

    @cached_property
    def _reconstruct(self) -> Any:
        return jax.jit(partial(reconstruct, self.model))


def load_run(path: str | Path, *, stage: str | None = None, task: Task | None = None) -> TrainedModel:
    """Return the best checkpoint of a run, with averaged parameters.

    Args:
        path: The run directory.
        stage: The stage whose model it is; by default the operator, or in a run without one the last stage.
        task: The task of the data to predict: the model is put on its grid.

    Raises:
        CheckpointError: There is no checkpoint.
        ConfigError: The stage is a corrector.
        DataError: The time step of `task` is another, or its grid does not fit the trained one.
    """
    path = Path(path)
    stage = _model_stage(path, stage)
    model = model_of(path, stage, best_weights(path, stage))
    return model if task is None else named_task(model, task.name if len(model.tasks) > 1 else None).on(task)


def load_task_run(path: Path, task: str | None = None, *, stage: str | None = None) -> TrainedModel:
    """Return the model of one task of a run as `load_run` does; ConfigError where several need a name."""
    return named_task(load_run(path, stage=stage), task)


def model_of(path: Path, stage: str, weights: Weights, models: JointModel | None = None) -> TrainedModel:
    """Return the model that weights belong to, with the `models` that the caller has built if they are of its tasks."""
    if models is None or models.tasks != weights.tasks:
        models = build_joint(weights.config, weights.tasks, stage)
    return TrainedModel(path=path, stage=stage, checkpoint=weights, models=models)


def named_task(model: TrainedModel, task: str | None) -> TrainedModel:
    """Return the model of a task that a command line or a configuration names, with a ConfigError for a wrong name."""
    try:
        return model.for_task(task)
    except DataError as error:
        raise ConfigError(f"{model.path}: {error}") from None


def _model_stage(path: Path, stage: str | None) -> str:
    """The stage whose model is meant, the run's main one for None; ConfigError for one that only corrects another's."""
    if stage is None:
        return RunDirectory(path).main_stage()
    name = STAGE_ALIASES.get(stage, stage)
    alone = [other for other in STAGES if other not in STAGE_NEEDS["transient"]]
    if name not in alone:
        use = f"; {name} is used by `{command('rollout')} --corrector {name}`" if name in STAGES else ""
        raise ConfigError(f"{path}: {name} is no model by itself; export or load {' or '.join(alone)}{use}")
    return name


def _without_places(input_fields: Any, places: Any) -> Any:
    if places is None:
        return input_fields
    _deprecated("places=", "input_fields=", stacklevel=4)
    return places


def _deprecated(former: str, name: str, *, stacklevel: int = 3) -> None:
    warnings.warn(f"{former} is now {name}", DeprecationWarning, stacklevel=stacklevel)
