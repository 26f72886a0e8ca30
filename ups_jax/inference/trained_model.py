"""A trained run, loaded from its directory: physical fields in, physical fields out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ups_jax.config import STAGE_ALIASES, STAGE_NEEDS, Config
from ups_jax.core.errors import ConfigError, DataError
from ups_jax.core.task import Task
from ups_jax.inference.chunked_rollout import Stepper
from ups_jax.inference.inputs import PlaceArrays, checked_places, coefficient_arrays, conditions
from ups_jax.models import PointSimulator, Simulator, SteadySimulator
from ups_jax.models.grid import patch_of
from ups_jax.rollout.autoregressive import latent_rollout, reconstruct, rollout
from ups_jax.rollout.steady import check_cells, refinement, solve
from ups_jax.runs.best_weights import Weights, best_weights
from ups_jax.runs.directory import RunDirectory
from ups_jax.training.build import build_model
from ups_jax.training.stages import STAGES


@dataclass(frozen=True)
class TrainedRun:
    """Model, averaged parameters and task of a run's best checkpoint. Functions are compiled once a shape.

    `fingerprint` is that of the data that it was trained on, `digest` that of the checkpoint's files.
    """

    path: Path
    stage: str
    config: Config
    task: Task
    model: Simulator | PointSimulator
    weights: Any
    step: int
    fingerprint: str
    digest: str

    def rollout(
        self,
        u0: Float[np.ndarray, "b *history c"],
        steps: int,
        params: Mapping[str, float | np.floating | Float[np.ndarray, " b"]] | None = None,
        dt: float | None = None,
        task: str | None = None,
        places: PlaceArrays | None = None,
    ) -> Float[np.ndarray, "b t *s c"]:
        """The `steps` frames after `u0`, in physical units; compiled once for any number of steps.

        `u0` is one frame a sample `(b, *grid, channels)`, or with the run's context `(b, context, *grid, channels)`.
        `params` gives PDE coefficients by name, one for all or one a sample; one that is left out counts as its
        training mean, with a warning. `dt` is the physical time between frames, which must be the training data's, and
        `task` the name of the task. A run on points takes any number of them, and `places`: `coords` (points, axes)
        unless they move, `inputs` (points, given fields) where it was trained with such, `point_mask` (points,) where
        some only fill up; each with samples before that where they differ. DataError where shapes, names or the time
        step are not the run's.
        """
        check_name(self.task, task)
        fields = np.asarray(u0, np.float32)
        frame = (*self.task.shape, len(self.task.channels))
        if self.task.scattered and fields.ndim >= 3:
            frame = (fields.shape[-2], frame[-1])
        if fields.ndim == len(frame) + 1 and self.model.context == 1:
            fields = fields[:, None]
        if fields.shape[1:] != (self.model.context, *frame):
            expected = " x ".join(map(str, ("b", *((self.model.context,) if self.model.context > 1 else ()), *frame)))
            raise DataError(f"u0 has shape {np.shape(u0)}; this run takes {expected} (samples, grid, channels)")
        if not np.isfinite(fields).all():
            raise DataError("u0 holds NaN or Inf")
        self.check_time_step(self.task.dt if dt is None else dt)
        known = coefficient_arrays(self.task, params or {}, len(fields))
        where = checked_places(self.task, places, len(fields), frame[0])
        pieces = self._stepper.pieces(fields, *known, steps, len(fields), where)
        return np.concatenate([piece.frames[0] for piece in pieces], axis=1)

    def predictor(self) -> TrainedPredictor:
        """The same run with coefficients as arrays, as the evaluation wants it."""
        return TrainedPredictor(self)

    def on(self, task: Task) -> TrainedRun:
        """The same parameters on the grid of `task`; DataError where its time step is another or it cannot be cut."""
        self.check_time_step(task.dt)
        own, patch_size = self.task, self.config.latent.patch_size
        if own.scattered:
            # The latent tokens lie where they lay; any number of points speaks to them.
            placed = replace(own, shape=task.shape)
            return replace(self, task=placed, model=cast(Simulator, build_model(self.config, placed, self.stage)))
        if patch_of(task.shape, patch_size) != patch_of(own.shape, patch_size):
            raise DataError(
                f"{self.path}: was trained on a grid of {own.shape} points and cuts it into patches of "
                f"{patch_of(own.shape, patch_size)}, which a grid of {task.shape} does not divide into"
            )
        placed = replace(own, shape=task.shape, origin=task.origin, spacing=task.spacing)
        return replace(self, task=placed, model=cast(Simulator, build_model(self.config, placed, self.stage)))

    def check_time_step(self, dt: float) -> None:
        """Refuse what the model cannot know: it has seen one time step only."""
        if not abs(dt / self.task.dt - 1) < 1e-3:
            raise DataError(f"the time step is {dt:g}, and this run was trained on frames {self.task.dt:g} apart only")

    @property
    def grid_model(self) -> Simulator:
        """The model, for what only those of grids can; DataError of one of points."""
        if isinstance(self.model, PointSimulator):
            raise DataError(f"{self.path}: the task {self.task.name} is of points, and has neither codec nor corrector")
        return self.model

    @cached_property
    def _stepper(self) -> Stepper:
        return Stepper(model=self.model, weights=self.weights)

    @cached_property
    def _compiled(self) -> Any:
        return jax.jit(partial(rollout, self.model), static_argnames="steps")

    @cached_property
    def _compiled_latent(self) -> Any:
        return jax.jit(partial(latent_rollout, self.grid_model), static_argnames="steps")

    @cached_property
    def _compiled_codec(self) -> Any:
        return jax.jit(partial(reconstruct, self.grid_model))


@dataclass(frozen=True)
class TrainedPredictor:
    """The `Predictor` of a trained run."""

    run: TrainedRun

    def rollout(
        self,
        u0: Float[np.ndarray, "b k *s c"],
        steps: int,
        cond: np.ndarray,
        cond_mask: np.ndarray,
        places: PlaceArrays = MappingProxyType({}),
    ) -> Float[np.ndarray, "b t *s c"]:
        """The `steps` frames after the context `u0`; each prediction is encoded anew."""
        return self._frames(self.run._compiled, u0, steps, cond, cond_mask, places)

    def latent_rollout(
        self, u0: Float[np.ndarray, "b k *s c"], steps: int, cond: np.ndarray, cond_mask: np.ndarray
    ) -> Float[np.ndarray, "b t *s c"]:
        """The `steps` frames after the context `u0`, which is encoded once."""
        return self._frames(self.run._compiled_latent, u0, steps, cond, cond_mask)

    def reconstruct(
        self,
        fields: Float[np.ndarray, "b t *s c"],
        cond: np.ndarray,
        cond_mask: np.ndarray,
        places: PlaceArrays = MappingProxyType({}),
    ) -> Float[np.ndarray, "b t *s c"]:
        """decode(encode(fields)); points keep their own values beside the tokens."""
        if self.run.task.scattered:
            return fields
        return np.asarray(self.run._compiled_codec(self.run.weights, jnp.asarray(fields, jnp.float32)))

    def _frames(
        self,
        compiled: Any,
        u0: np.ndarray,
        steps: int,
        cond: np.ndarray,
        cond_mask: np.ndarray,
        places: PlaceArrays = MappingProxyType({}),
    ) -> Float[np.ndarray, "b t *s c"]:
        given = conditions(self.run.task, cond, cond_mask, places)
        return np.asarray(compiled(self.run.weights, jnp.asarray(u0, jnp.float32), given, steps=steps))


@dataclass(frozen=True)
class TaskRuns:
    """The runs of all tasks of one training, by their names."""

    runs: Mapping[str, TrainedRun | SteadyRun]

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Their tasks."""
        return tuple(run.task for run in self.runs.values())

    def of(self, task: str | None) -> TrainedRun | SteadyRun:
        """The run of a task; DataError where none of them is named."""
        if task is None or task not in self.runs:
            said = "name one: task=..." if task is None else f"{task} is none of them"
            raise DataError(f"the run has the tasks {', '.join(self.runs)}; {said}")
        return self.runs[task]

    def rollout(
        self,
        u0: Float[np.ndarray, "b *history c"],
        steps: int,
        params: Mapping[str, float | np.floating | Float[np.ndarray, " b"]] | None = None,
        dt: float | None = None,
        task: str | None = None,
        places: PlaceArrays | None = None,
    ) -> Float[np.ndarray, "b t *s c"]:
        """`TrainedRun.rollout` of the task that is named."""
        run = self.of(task)
        if isinstance(run, SteadyRun):
            raise DataError(f"task {task} is steady and has no time to roll out; use solve")
        return run.rollout(u0, steps, params, dt, places=places)

    def solve(
        self,
        inputs: Float[np.ndarray, "b *grid i"],
        params: Mapping[str, float | np.floating | Float[np.ndarray, " b"]] | None = None,
        task: str | None = None,
    ) -> Float[np.ndarray, "b *grid c"]:
        """`SteadyRun.solve` of the task that is named."""
        run = self.of(task)
        if isinstance(run, TrainedRun):
            raise DataError(f"task {task} is of trajectories; use rollout")
        return run.solve(inputs, params)


def check_name(task: Task, name: str | None) -> None:
    """DataError where a name is given that is not the task's."""
    if name not in (None, task.name):
        raise DataError(f"the run knows no task {name}; it has {task.name}")


def run_of(path: Path, stage: str, weights: Weights) -> TrainedRun | SteadyRun:
    """The run of the weights of one task."""
    if weights.task.kind == "steady":
        return SteadyRun(path, stage, weights)
    return TrainedRun(
        path=path,
        stage=stage,
        config=weights.config,
        task=weights.task,
        model=cast(Simulator, build_model(weights.config, weights.task, stage)),
        weights=weights.params,
        step=weights.step,
        fingerprint=weights.fingerprint,
        digest=weights.digest,
    )


def load_task_run(path: Path, task: str | None = None, *, stage: str | None = None) -> TrainedRun | SteadyRun:
    """The run of one of its tasks, which has to be named where there are several; as `load_run`."""
    stage = _model_stage(path, stage)
    return run_of(path, stage, best_weights(path, stage).of(task, stage))


def load_run(
    path: str | Path, *, stage: str | None = None, task: Task | None = None
) -> TrainedRun | SteadyRun | TaskRuns:
    """The best checkpoint of a run, with averaged parameters; CheckpointError where there is none.

    Without `stage` it is the operator, or in a run without one the last stage; ConfigError for a corrector. Of a
    transient task comes a `TrainedRun` that rolls out, of a steady one a `SteadyRun` that solves, of several tasks
    `TaskRuns`, which is told by name which.
    `task` is of the data to predict: a transient run's parameters are put on its grid. DataError where its time step is
    another or its grid does not fit the trained one.
    """
    stage = _model_stage(Path(path), stage)
    weights = best_weights(Path(path), stage)
    if len(weights.tasks) > 1 and task is None:
        return TaskRuns({own.name: run_of(Path(path), stage, weights.of(own.name, stage)) for own in weights.tasks})
    run = run_of(Path(path), stage, weights.of(None if task is None else task.name, stage))
    if task is None:
        return run
    if isinstance(run, TrainedRun):
        return run.on(task)
    check_cells(run.task, task)
    return run


def _model_stage(path: Path, stage: str | None) -> str:
    """The stage whose model is meant, the run's main one for None; ConfigError for one that only corrects another's."""
    if stage is None:
        return RunDirectory(path).main_stage()
    name = STAGE_ALIASES.get(stage, stage)
    alone = [other for other in STAGES if other not in STAGE_NEEDS["transient"]]
    if name not in alone:
        use = f"; {name} is used by scripts/rollout.py --corrector {name}" if name in STAGES else ""
        raise ConfigError(f"{path}: {name} is no model by itself; export or load {' or '.join(alone)}{use}")
    return name


@dataclass(frozen=True)
class SteadyRun:
    """Model, averaged parameters and task of a run's best checkpoint. Functions are compiled once a shape."""

    path: Path
    stage: str
    trained: Weights

    @property
    def config(self) -> Config:
        return self.trained.config

    @property
    def task(self) -> Task:
        """The task on the grid that was trained on."""
        return self.trained.task

    @property
    def weights(self) -> Any:
        return self.trained.params

    @property
    def step(self) -> int:
        return self.trained.step

    @property
    def fingerprint(self) -> str:
        """That of the data that it was trained on."""
        return self.trained.fingerprint

    @property
    def digest(self) -> str:
        """That of the checkpoint's files."""
        return self.trained.digest

    def solve(
        self,
        inputs: Float[np.ndarray, "b *grid i"],
        params: Mapping[str, float | np.floating | Float[np.ndarray, " b"]] | None = None,
    ) -> Float[np.ndarray, "b *grid c"]:
        """The solutions for given fields `(b, *grid, inputs)`, in physical units, at the points of the given fields.

        The grid is the trained one, or cuts its cells into whole parts. `params` gives PDE coefficients by name, one
        for all or one a sample; one that is left out counts as its training mean, with a warning. DataError where
        shapes or names are not the run's.
        """
        fields = np.asarray(inputs, np.float32)
        names = [item.name for item in self.task.inputs]
        if fields.ndim != len(self.task.shape) + 2 or fields.shape[-1] != len(names):
            raise DataError(
                f"inputs have shape {np.shape(inputs)}; this run takes (samples, {', '.join(self.task.axes)}, "
                f"{len(names)}), the last axis being {', '.join(names)}"
            )
        refinement(self.task, fields.shape[1:-1])
        if not np.isfinite(fields).all():
            raise DataError("inputs hold NaN or Inf")
        return self.solve_arrays(fields, *coefficient_arrays(self.task, params or {}, len(fields)))

    def solve_arrays(
        self,
        inputs: Float[np.ndarray, "b *grid i"],
        cond: Float[np.ndarray, "b p"],
        cond_mask: Float[np.ndarray, "b p"],
    ) -> Float[np.ndarray, "b *grid c"]:
        """The same with coefficients as arrays, as the evaluation wants it."""
        return np.asarray(self._compiled(self.weights, jnp.asarray(inputs), conditions(self.task, cond, cond_mask)))

    @cached_property
    def model(self) -> SteadySimulator:
        return cast(SteadySimulator, build_model(self.config, self.task, self.stage))

    @cached_property
    def _compiled(self) -> Any:
        return jax.jit(partial(solve, self.model))
