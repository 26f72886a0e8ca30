"""Trained models, loaded from their run directory. All fields are in physical units."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ups_jax.config import Config, restrict_to_task
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
    checked_input_fields,
    checked_point_arrays,
    coefficient_arrays,
    has_jax,
    is_traced,
    make_conditions,
)
from ups_jax.models.patches import task_patches
from ups_jax.rollout.autoregressive import latent_rollout, reconstruct, rollout
from ups_jax.rollout.steady import check_finer_grid, steady_rollout
from ups_jax.runs.best_weights import Weights, best_weights, first_shape_difference
from ups_jax.runs.directory import RunDirectory
from ups_jax.training.build import JointModel, build_joint_model, build_model

# The input fields of a steady task, or the arrays of a batch of point clouds by name.
InputFields = Float[AnyArray, "b *cells i"] | PointArrays


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedModel:
    """The model of a run with the averaged parameters of its best checkpoint. Load it with `load_run`.

    `step` and `rollout` are pure functions in physical units. NumPy arguments give NumPy results. JAX arguments give
    JAX results, and the functions can then be differentiated, vmapped, scanned and jitted. They compute in float64 if
    JAX has float64 enabled and fields or weights are float64, else in float32. Each shape is compiled once.

    Attributes:
        path: The run directory.
        stage: The stage that trained the parameters.
        checkpoint: The best checkpoint: parameters, configuration and tasks.
        models: The flax modules, one for each task of the run.
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
            u: The current frame (b, *grid, c), or (b, context, *grid, c) if the model takes several frames. For a
                steady task, the input fields; not used if `input_fields` is set.
            params: PDE coefficients by name, in physical units: one number for all samples, or an array (b,). A
                missing coefficient causes a warning, and its training mean is used.
            input_fields: For a steady task, the input fields (b, *grid, i), on the trained grid or on one that refines
                it by integer factors. For a point cloud, a mapping of arrays, with a leading batch axis if samples
                differ: `coords` (points, axes), omitted if the points move since `u` then contains their coordinates;
                `inputs` (points, i), omitted if the model has no input fields; `point_mask` (points,), 0 for padding.
            weights: Parameters to use instead of the attribute `weights`, a pytree of the same structure.
            dt: Time between frames, which must equal the time step of the training data.
            task: Name of the task; required if the run has several.
            places: Deprecated name of `input_fields`.

        Returns:
            The next frame or the solution, (b, *grid, c).

        Raises:
            DataError: A shape, a name, the time step or the pytree of weights does not fit the model, or a concrete
                value is not finite or not in its valid range.
        """
        model, weights = self._select_model(task, weights)
        input_fields = _merge_deprecated_places(input_fields, places)
        fields, *arrays = model._check_inputs(u, params, input_fields, weights, dt)
        result = model._jit_rollout(weights, jnp.asarray(fields), make_conditions(model.task, *arrays), steps=1)[:, 0]
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
        """Return the `steps` frames after `u0`, (b, steps, *grid, c); the solution of a steady task is repeated.

        NumPy arrays are rolled out in chunks of fixed length, so that every number of steps uses the same compilation.

        Args:
            u0: The initial frames, like `u` in `step`.
            steps: Number of frames to predict.
            params: PDE coefficients by name, as in `step`.
            input_fields: Input fields of a steady task or arrays of a point cloud, as in `step`.
            weights: Parameters to use instead of the attribute `weights`, a pytree of the same structure.
            dt: Time between frames, which must equal the time step of the training data.
            task: Name of the task; required if the run has several.
            places: Deprecated name of `input_fields`.

        Raises:
            DataError: An argument does not fit the model, as in `step`.
        """
        model, weights = self._select_model(task, weights)
        input_fields = _merge_deprecated_places(input_fields, places)
        if model.task.kind == "steady":
            solution = model.step(u0, params, input_fields, weights, dt=dt)
            return (np if isinstance(solution, np.ndarray) else jnp).repeat(solution[:, None], steps, axis=1)
        fields, *arrays = model._check_inputs(u0, params, input_fields, weights, dt)
        # Inside a jitted function every result is traced, even if all arguments are NumPy arrays.
        if has_jax(fields, arrays) or is_traced(weights, jnp.zeros(())):
            return model._jit_rollout(weights, jnp.asarray(fields), make_conditions(model.task, *arrays), steps=steps)
        coefficients, mask, point_arrays = arrays
        rollout_chunks = model._chunked_rollout.iter_chunks(
            fields, coefficients, mask, steps, len(fields), point_arrays, weights
        )
        return np.concatenate([chunk.frames[0] for chunk in rollout_chunks], axis=1)

    def solve(
        self, inputs: Float[AnyArray, "b *s i"], params: Coefficients | None = None, task: str | None = None
    ) -> Float[AnyArray, "b *s c"]:
        """Return the solution of a steady task. Deprecated name of `step`."""
        _warn_deprecated("TrainedModel.solve(inputs, params)", "step(inputs, params)")
        return self.step(inputs, params, task=task)

    @property
    def weights(self) -> Any:
        """The parameters as a pytree. Changed or traced ones can be passed to `step` and `rollout`."""
        return self.checkpoint.params

    @property
    def config(self) -> Config:
        """The configuration that the run was trained with."""
        return self.checkpoint.config

    @property
    def digest(self) -> str:
        """The hash of the checkpoint's files."""
        return self.checkpoint.digest

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks of the run, each on the grid on which the model steps."""
        return self.models.tasks

    @property
    def task(self) -> Task:
        """The only task of the run; raises `DataError` if the run has several."""
        return self.for_task().models.task

    @property
    def model(self) -> Any:
        """The flax module of the only task; raises `DataError` if the run has several tasks."""
        return self.for_task().models.models[0]

    def for_task(self, name: str | None = None) -> TrainedModel:
        """Return the model of one task.

        Args:
            name: Name of the task; None if the run has only one.

        Raises:
            DataError: The run has no task of this name, or several tasks and no name is given.
        """
        names = list(self._task_models)
        if name is None and len(names) == 1:
            return self
        if name not in names:
            problem = "the run has several tasks" if name is None else f"the run has no task {name}"
            raise DataError(f"{problem}; choose from {', '.join(names)} (`task=...`)")
        return self._task_models[name]

    def on_grid_of(self, task: Task) -> TrainedModel:
        """Return the model with the same parameters on the grid of `task`.

        A model of a steady task is returned unchanged: it averages finer input fields over its own cells and
        interpolates its solutions to their grid.

        Args:
            task: A task with the same channels, possibly on another grid.

        Raises:
            DataError: The time step differs from the trained one, or the grid does not fit the patches or cells.
        """
        trained, latent = self.task, self.config.latent
        if trained.kind == "steady":
            check_finer_grid(trained, task)
            return self
        self.check_time_step(task.dt)
        if trained.scattered:
            # The latent tokens keep their positions and exchange messages with any number of points.
            new_task = replace(trained, shape=task.shape)
        else:
            new_task = replace(trained, shape=task.shape, origin=task.origin, spacing=task.spacing)
            trained_size, new_size = (task_patches(item, latent).size for item in (trained, new_task))
            if new_size != trained_size:
                raise DataError(
                    f"{self.path}: the model was trained on a grid of {trained.shape} points with patches of "
                    f"{trained_size}; a grid of {task.shape} points has patches of {new_size}; "
                    "interpolate its fields to the trained grid"
                )
        return replace(self, models=JointModel((build_model(self.config, new_task, self.stage),)))

    def check_time_step(self, dt: float) -> None:
        """Raise `DataError` if `dt` differs from the time step of the training data."""
        if not abs(dt / self.task.dt - 1) < 1e-3:
            raise DataError(f"the time step is {dt:g}, but this run was trained with time step {self.task.dt:g} only")

    def rollout_arrays(
        self,
        u0: Float[np.ndarray, "b *start"],
        steps: int,
        cond: np.ndarray,
        cond_mask: np.ndarray,
        point_arrays: PointArrays = MappingProxyType({}),
    ) -> Float[np.ndarray, "b t *s c"]:
        """Return the `steps` frames after the context `u0`, or the solutions of a steady task.

        Each prediction is re-encoded for the next step. The arguments are not checked.

        Args:
            u0: Context frames (b, context, *grid, c), or the input fields (b, *grid, i) of a steady task.
            cond: Coefficients (b, p) in physical units.
            cond_mask: Array (b, p) that is 1 where a coefficient is given.
            point_arrays: Arrays of a batch of point clouds; empty for a grid.
        """
        return self._call_arrays(self._jit_rollout, u0, steps, cond, cond_mask, point_arrays)

    def latent_rollout(
        self, u0: Float[np.ndarray, "b k *s c"], steps: int, cond: np.ndarray, cond_mask: np.ndarray
    ) -> Float[np.ndarray, "b t *s c"]:
        """Return the `steps` frames after the context `u0`, which is encoded once and advanced in latent space."""
        return self._call_arrays(self._jit_latent_rollout, u0, steps, cond, cond_mask)

    def reconstruct(
        self,
        fields: Float[np.ndarray, "b t *s c"],
        cond: np.ndarray,
        cond_mask: np.ndarray,
        point_arrays: PointArrays = MappingProxyType({}),
    ) -> Float[np.ndarray, "b t *s c"]:
        """Return decode(encode(fields)). For point clouds these are the `fields` themselves, which bypass the codec."""
        if self.task.scattered:
            return fields
        return np.asarray(self._jit_reconstruct(self.weights, jnp.asarray(fields, array_dtype(fields))))

    def _select_model(self, task: str | None, weights: Any) -> tuple[TrainedModel, Any]:
        """Return the model of a task and the parameters to use: `weights`, or the trained ones if `weights` is None."""
        model = self.for_task(task)
        if weights is None:
            return model, model.weights
        mismatch = first_shape_difference(weights, self.weights)
        if mismatch is not None:
            raise DataError(f"weights: the pytree differs from the attribute `weights` of the model: {mismatch}")
        names = [item.name for item in self.tasks]
        return model, self.models.sharing.task_params(weights, names.index(model.task.name))

    def _check_inputs(self, u: Any, params: Any, input_fields: Any, weights: Any, dt: float | None) -> tuple[Any, ...]:
        """Check the arguments of a prediction; return fields, coefficients, coefficient mask and point-cloud arrays."""
        task, dtype = self.task, array_dtype(u, input_fields, weights)
        self.check_time_step(task.dt if dt is None else dt)
        if task.kind == "steady":
            fields, point_arrays = checked_input_fields(task, u, input_fields, dtype), {}
        else:
            fields = checked_frames(task, self.model.context, u, dtype)
            point_arrays = checked_point_arrays(task, input_fields, len(fields), fields.shape[-2], dtype)
        return fields, *coefficient_arrays(task, dict(params or {}), len(fields), dtype), point_arrays

    def _call_arrays(
        self,
        jitted_rollout: Callable[..., Any],
        u0: np.ndarray,
        steps: int,
        cond: np.ndarray,
        cond_mask: np.ndarray,
        point_arrays: PointArrays = MappingProxyType({}),
    ) -> np.ndarray:
        """Call a jitted rollout on NumPy arrays and return its frames as a NumPy array."""
        conditions = make_conditions(self.task, cond, cond_mask, point_arrays)
        return np.asarray(jitted_rollout(self.weights, jnp.asarray(u0, array_dtype(u0)), conditions, steps=steps))

    @cached_property
    def _task_models(self) -> Mapping[str, TrainedModel]:
        """The models of the single tasks, by the name of the task."""
        if len(self.tasks) == 1:
            return {self.models.task.name: self}
        models_by_name, joint = {}, self.checkpoint
        for index, (task, fingerprint) in enumerate(zip(self.tasks, joint.fingerprint.split("+"), strict=True)):
            checkpoint = replace(
                joint,
                params=self.models.sharing.task_params(joint.params, index),
                weights=self.models.sharing.task_params(joint.weights, index),
                config=restrict_to_task(joint.config, task.name),
                tasks=(task,),
                fingerprint=fingerprint,
            )
            models = JointModel((self.models.models[index],))
            models_by_name[task.name] = replace(self, checkpoint=checkpoint, models=models)
        return models_by_name

    @cached_property
    def _chunked_rollout(self) -> ChunkedRollout:
        """The rollout of NumPy arrays in chunks of fixed length."""
        return ChunkedRollout(model=self.model, weights=self.weights)

    @cached_property
    def _jit_rollout(self) -> Callable[..., Any]:
        """The jitted rollout that re-encodes each prediction, or the jitted solver of a steady task."""
        frames = steady_rollout if self.task.kind == "steady" else rollout
        return jax.jit(partial(frames, self.model), static_argnames="steps")

    @cached_property
    def _jit_latent_rollout(self) -> Callable[..., Any]:
        """The jitted rollout in latent space."""
        return jax.jit(partial(latent_rollout, self.model), static_argnames="steps")

    @cached_property
    def _jit_reconstruct(self) -> Callable[..., Any]:
        """The jitted function decode(encode(fields))."""
        return jax.jit(partial(reconstruct, self.model))


def load_run(path: str | Path, *, stage: str | None = None, task: Task | None = None) -> TrainedModel:
    """Return the model of a run with the averaged parameters of its best checkpoint.

    Args:
        path: The run directory.
        stage: The stage whose model is loaded; by default the operator, or the last stage of a run without one.
        task: The task of the data to predict, if its grid differs from the grid of the training data.

    Raises:
        CheckpointError: The run has no checkpoint of the stage.
        ConfigError: The stage trains a corrector, which is not a model by itself, or the run has no such task.
        DataError: The time step of `task` differs from the trained one, or its grid does not fit the model.
    """
    path = Path(path)
    stage = _model_stage(path, stage)
    model = build_trained_model(path, stage, best_weights(path, stage))
    return model if task is None else select_task(model, task.name if len(model.tasks) > 1 else None).on_grid_of(task)


def load_task_model(path: Path, task: str | None = None, *, stage: str | None = None) -> TrainedModel:
    """Return the model of one task of a run.

    Args:
        path: The run directory.
        task: Name of the task; None if the run has only one.
        stage: The stage whose model is loaded, as in `load_run`.

    Raises:
        CheckpointError: The run has no checkpoint of the stage.
        ConfigError: The run has no task of this name, or several tasks and no name is given.
    """
    return select_task(load_run(path, stage=stage), task)


def build_trained_model(path: Path, stage: str, weights: Weights, models: JointModel | None = None) -> TrainedModel:
    """Return the trained model of a checkpoint that is already loaded.

    Args:
        path: The run directory.
        stage: The stage that trained the parameters.
        weights: The checkpoint.
        models: Flax modules to reuse if they are for the tasks of the checkpoint; otherwise new ones are built.
    """
    if models is None or models.tasks != weights.tasks:
        models = build_joint_model(weights.config, weights.tasks, stage)
    return TrainedModel(path=path, stage=stage, checkpoint=weights, models=models)


def select_task(model: TrainedModel, task: str | None) -> TrainedModel:
    """Return the model of the task that a command line or configuration names, or of the only task for None.

    Raises:
        ConfigError: The run has no task of this name, or several tasks and no name is given.
    """
    try:
        return model.for_task(task)
    except DataError as error:
        raise ConfigError(f"{model.path}: {error}") from None


def _model_stage(path: Path, stage: str | None) -> str:
    """Return the stage to load, by default the run's main stage. Raises `ConfigError` if the stage trains no model."""
    if stage is None:
        return RunDirectory(path).main_stage()
    name = STAGE_ALIASES.get(stage, stage)
    model_stages = [item for item in STAGES if item not in STAGE_NEEDS["transient"]]
    if name not in model_stages:
        hint = f", or use `{command('rollout')} --corrector {name}`" if name in STAGES else ""
        problem = "trains a corrector, not a model by itself" if name in STAGES else "does not exist"
        raise ConfigError(f"{path}: the stage {name} {problem}; choose {' or '.join(model_stages)}{hint}")
    return name


def _merge_deprecated_places(input_fields: Any, places: Any) -> Any:
    """Return `places`, with a deprecation warning, if it is set; otherwise `input_fields`."""
    if places is None:
        return input_fields
    _warn_deprecated("places=", "input_fields=", stacklevel=4)
    return places


def _warn_deprecated(former: str, current: str, *, stacklevel: int = 3) -> None:
    """Warn that the public name `former` is deprecated and is now called `current`."""
    warnings.warn(f"{former} is deprecated; use {current}", DeprecationWarning, stacklevel=stacklevel)
