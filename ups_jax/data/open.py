"""Open a task's data: one pass over the file checks it and takes statistics, and the result is a frozen `Dataset`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from ups_jax.config import Config, TaskConfig
from ups_jax.core.errors import ConfigError, DataError
from ups_jax.core.task import Input, Statistics, Task
from ups_jax.data import declared_properties, splits, symmetry_check
from ups_jax.data.batches import window_frames
from ups_jax.data.coefficients import Conditions, conditions_of_all, read_conditions
from ups_jax.data.dataset import Dataset
from ups_jax.data.files import all_tasks, only_task, open_source
from ups_jax.data.mixture import Mixture
from ups_jax.data.scan import Content, chunks, repeated
from ups_jax.data.sources import Grid, MemorySource, Source
from ups_jax.data.sources.base import AXES
from ups_jax.data.sources.in_memory import load
from ups_jax.data.sources.points import Cloud, Places, Scattered
from ups_jax.data.splits import Splits
from ups_jax.data.statistics import Moments

# What a task of a grid may declare, and why a set of points has none of it.
_OF_GRIDS = {"symmetries": "they map a grid onto itself", "conserved": "a mean over points is no integral"}


def open_dataset(cfg: Config, task: Task | None = None) -> Dataset:
    """The data of the one configured task, checked; with `task` (of a trained run) its statistics and facts are kept.

    Raises `ConfigError` for names that do not exist, `DataError` for anything wrong with the file.
    """
    only_task(cfg)
    return _opened(cfg, [task])[0]


def open_mixture(cfg: Config) -> Mixture:
    """The data of all configured tasks, for one training. Raises as `open_dataset`, and `ConfigError` where tasks
    contradict each other."""
    tasks = all_tasks(cfg)
    datasets = _opened(cfg, [None] * len(tasks))
    if len(datasets) > 1:
        datasets = _related(cfg, datasets)
    return Mixture(datasets=tuple(datasets))


def from_arrays(
    cfg: Config,
    fields: Float[np.ndarray, "n t *s"] | Float[np.ndarray, "n t *s c"],
    dt: float,
    coefficients: Mapping[str, Float[np.ndarray, " _"]] | None = None,
    origin: Sequence[float] = (0.0,),
    spacing: Sequence[float] = (1.0,),
    *,
    task: Task | None = None,
) -> Dataset:
    """The data of the one configured task from arrays, checked as those of a file are.

    `origin` and `spacing` have an entry for each space axis; without a channel axis C is 1.
    """
    wanted = only_task(cfg)
    if wanted.kind != "transient":
        raise ConfigError(f"key `data.tasks.{wanted.name}.kind`: is {wanted.kind}, which is read from files only")
    array = np.asarray(fields, np.float32)
    rank = len(spacing)
    if array.ndim == 2 + rank:
        array = array[..., None]
    if array.ndim != 3 + rank or len(origin) != rank or not 1 <= rank <= len(AXES):
        raise DataError(
            f"fields have shape {np.shape(fields)} with origin {tuple(origin)} and spacing {tuple(spacing)}; "
            "give (N, T, *S) or (N, T, *S, C), and one origin and spacing for each of 1 to 3 space axes"
        )
    if not (np.isfinite([dt, *spacing]).all() and min(dt, *spacing) > 0):
        raise DataError(f"dt is {dt} and spacing {tuple(spacing)}; give positive numbers")
    for name, values in (coefficients or {}).items():
        if np.shape(values) != (len(array),):
            raise DataError(
                f"coefficient {name} has shape {np.shape(values)}; give one value a trajectory, {len(array)}"
            )
    grid = Grid(
        shape=array.shape[2:-1],
        origin=tuple(map(float, origin)),
        spacing=tuple(map(float, spacing)),
        start=0.0,
        dt=float(dt),
    )
    known = {name: np.asarray(values, np.float64) for name, values in (coefficients or {}).items()}
    source = MemorySource(name="arrays", grid=grid, fields=array, coefficients=known)
    parts = splits.draw(len(array), cfg.data.split, source.name)
    check_shape(cfg, wanted, source, task)
    own = read_conditions(wanted, source, parts.train, task)
    return _scanned(_Opening(cfg=cfg, wanted=wanted, source=source, splits=parts, task=task, conditions=own))


def as_trained_task(cfg: Config, dataset: Dataset, task: Task) -> Dataset:
    """Return opened data as data of a trained model's task: its statistics, coefficients and properties on their grid.

    Coefficients are matched by name; one that the data does not have is unknown to the model.

    Args:
        cfg: Configuration whose one task is the model's.
        dataset: The data.
        task: Task of the trained model.

    Raises:
        ConfigError, DataError: The data has other channels, axes, given fields, another kind or too few frames.
    """
    if dataset.task == task:
        return dataset
    source = dataset.source
    check_shape(cfg, only_task(cfg), source, task)
    for kind, names, trained in (
        ("channels", dataset.task.channels, task.channels),
        ("given fields", *(tuple(item.name for item in of.inputs) for of in (dataset.task, task))),
    ):
        if names != trained:
            raise DataError(
                f"{source.name}: has the {kind} {', '.join(names) or 'none'}, the model was trained with "
                f"{', '.join(trained) or 'none'}; give data of the same {kind} in the same order"
            )
    new_task, notes = (_on_points if task.scattered else _on_grid)(task, source, dataset.stride)
    columns = {item.name: column for column, item in enumerate(dataset.task.coefficients)}
    conditions = np.zeros((len(dataset.conditions), len(task.coefficients)), np.float32)
    mask = np.zeros_like(conditions)
    for column, item in enumerate(task.coefficients):
        if item.name in columns:
            conditions[:, column] = dataset.conditions[:, columns[item.name]]
            mask[:, column] = dataset.condition_mask[:, columns[item.name]]
        else:
            notes.append(f"{source.name}: has no coefficient {item.name}, which the model is conditioned on")
    return replace(dataset, task=new_task, conditions=conditions, condition_mask=mask, notes=(*dataset.notes, *notes))


def check_shape(cfg: Config, wanted: TaskConfig, source: Source, task: Task | None) -> None:
    """Raise `DataError` or `ConfigError` where a source has not the channels, axes, kind or frames of its task."""
    channels = wanted.channels if task is None else task.channels
    if source.channels != len(channels):
        raise DataError(
            f"{source.name}: holds {source.channels} channels, the task has {len(channels)} ({', '.join(channels)}); "
            f"set data.tasks.{wanted.name}.channels"
        )
    if task is not None and task.scattered != isinstance(source.grid, Cloud):
        kinds = {True: "points", False: "a grid"}
        raise DataError(
            f"{source.name}: is of {kinds[not task.scattered]}, the trained model's task {task.name} of "
            f"{kinds[task.scattered]}; give data of that kind"
        )
    if task is not None and len(source.grid.axes) != len(task.axes):
        raise DataError(
            f"{source.name}: has {len(source.grid.axes)} space axes, the trained model's task {task.name} has "
            f"{len(task.axes)}; give data of that kind"
        )
    if task is not None and task.kind != wanted.kind:
        raise ConfigError(
            f"key `data.tasks.{wanted.name}.kind`: is {wanted.kind}, "
            f"the trained model's task {task.name} is {task.kind}"
        )
    if wanted.kind == "steady":
        return
    stride = cfg.training.time_stride
    needed = (window_frames(cfg) - 1) * stride + 1
    if source.frames < needed:
        raise DataError(
            f"{source.name}: holds {source.frames} frames a trajectory, {needed} are needed "
            f"(data.context={cfg.data.context}, training.pushforward={cfg.training.pushforward}, "
            f"training.rollout_horizon={cfg.training.rollout_horizon}, "
            f"training.time_stride={stride})"
        )


def check_inside(name: str, places: Places, box: Cloud | Task, periodic: tuple[int, ...]) -> None:
    """DataError for a point outside the box that the latent tokens lie in; beyond a periodic side there is more."""
    low = np.asarray(box.origin)
    outside = (places.coords < low - 1e-4 * np.asarray(box.box)) | (places.coords > low + 1.0001 * np.asarray(box.box))
    outside[..., list(periodic)] = False
    beyond = outside.any(axis=-1) & (places.mask > 0)
    if beyond.any():
        row, point = (int(values[0]) for values in np.nonzero(beyond))
        raise DataError(
            f"{name}: point {point} of a trajectory lies at {places.coords[row, point].tolist()}, outside the box from "
            f"{list(box.origin)} with sides {list(box.box)}; write a `box` that holds all points"
        )


def _related(cfg: Config, datasets: Sequence[Dataset]) -> list[Dataset]:
    """The data sets of tasks that one model is trained on, each of which knows of the others."""
    names = tuple(dataset.task.name for dataset in datasets)
    unit = float(np.exp(np.mean([np.log(dataset.task.dt) for dataset in datasets])))
    found = []
    for wanted, dataset in zip(cfg.data.tasks, datasets, strict=True):
        foreign = tuple(item.name for item in dataset.task.coefficients if item.name not in wanted.coefficients)
        task = replace(dataset.task, siblings=names, foreign=foreign, dt_unit=unit)
        found.append(replace(dataset, task=task))
    return found


def _opened(cfg: Config, tasks: Sequence[Task | None]) -> list[Dataset]:
    """A data set for each configured task; `tasks` are those of a trained run that are kept."""
    # The memory is left to the latents: whoever trains on them reads fields to check and to validate alone. All else
    # that is done with such a configuration reads its fields from the disk.
    room = 0.0 if cfg.data.source == "latents" else cfg.data.loader.memory_gib * 2**30
    found: list[tuple[TaskConfig, Source, Splits]] = []
    for wanted, task in zip(all_tasks(cfg), tasks, strict=True):
        source, parts = open_source(cfg, wanted)
        each = source.frames * source.channels + len(source.input_channels)
        size = 4 * source.trajectories * each * int(np.prod(source.grid.shape))
        if size <= room:
            room -= size
            names = wanted.coefficients if task is None else [item.name for item in task.coefficients]
            source = load(source, tuple(names))
        # What is wrong with the file itself is told before what several have in common.
        check_shape(cfg, wanted, source, task)
        found.append((wanted, source, parts))
    conditions = conditions_of_all([(wanted, source, parts.train) for wanted, source, parts in found], tasks)
    return [
        _scanned(_Opening(cfg=cfg, wanted=wanted, source=source, splits=parts, task=task, conditions=own))
        for (wanted, source, parts), task, own in zip(found, tasks, conditions, strict=True)
    ]


@dataclass(frozen=True, eq=False, kw_only=True)
class _Opening:
    """A task's source before the pass over it. `task` is that of a trained run, whose statistics are kept."""

    cfg: Config
    wanted: TaskConfig
    source: Source
    splits: Splits
    task: Task | None
    conditions: Conditions

    @property
    def stride(self) -> int:
        """Stored frames between two that the model sees."""
        return 1 if self.wanted.kind == "steady" else self.cfg.training.time_stride

    @property
    def periodic(self) -> tuple[int, ...]:
        """The periodic axes by number. Raises `ConfigError` for an unknown one."""
        key = f"data.tasks.{self.wanted.name}.periodic"
        return declared_properties.indices(self.wanted.periodic, self.source.grid.axes, key)

    def notes(self, content: Content) -> list[str]:
        """What coefficients and splits have to tell. Raises `DataError` for data that is not finite."""
        content.check()
        return [*self.conditions.notes, *repeated(content, self.splits, self.source.name)]

    def new_task(self, statistics: Statistics, **properties: Any) -> Task:
        """The task that the data define, with the properties of its kind."""
        grid, periodic = self.source.grid, self.periodic
        return Task(
            name=self.wanted.name,
            kind=self.wanted.kind,
            channels=self.wanted.channels,
            axes=grid.axes,
            shape=grid.shape,
            origin=grid.origin,
            spacing=grid.spacing,
            periodic=tuple(axis in periodic for axis in range(len(grid.axes))),
            dt=grid.dt * self.stride,
            coefficients=self.conditions.coefficients,
            statistics=statistics,
            **properties,
        )

    def dataset(self, task: Task, content: Content, notes: Sequence[str], change: Float64[np.ndarray, " r"]) -> Dataset:
        """The opened data."""
        grid, conditions = self.source.grid, self.conditions
        return Dataset(
            task=task,
            splits=self.splits,
            fingerprint=content.fingerprint(conditions.values, conditions.mask, self.splits),
            notes=tuple(notes),
            source=self.source,
            stride=self.stride,
            times=grid.start + grid.dt * np.arange(self.source.frames),
            conditions=conditions.values,
            condition_mask=conditions.mask,
            change=change,
        )


def _scanned(opening: _Opening) -> Dataset:
    """Check all of a task's data in one pass. Raises `ConfigError`, `DataError`."""
    if isinstance(opening.source.grid, Cloud):
        return _scan_points(opening, opening.source.grid)
    return (_scan_steady if opening.wanted.kind == "steady" else _scan_transient)(opening)


def _scan_transient(opening: _Opening) -> Dataset:
    wanted, source, parts, task = opening.wanted, opening.source, opening.splits, opening.task
    axes, periodic = source.grid.axes, opening.periodic
    conserved = declared_properties.indices(wanted.conserved, wanted.channels, f"data.tasks.{wanted.name}.conserved")
    declared = declared_properties.symmetries(wanted, source.grid, periodic)
    content = Content(source)
    moments = Moments(source.name, source.frames, source.channels, opening.stride)
    drift = declared_properties.Drift(source.channels)
    edges = declared_properties.Edges(source.grid.shape, source.channels)
    for ids, fields in chunks(source):
        training = np.isin(ids, parts.train)
        if content.update(ids, fields) and training.any():
            moments.update(fields[training])
            if task is None:
                drift.update(ids[training], fields[training])
                edges.update(fields[training])
    notes = opening.notes(content)
    if task is None:
        statistics = moments.statistics(opening.cfg.data.normalize, wanted.channels)
        found = opening.new_task(statistics, conserved=conserved, symmetries=declared)
        notes += drift.check(wanted, source.name, conserved, moments.rms)
        notes += edges.check(wanted, source.name, axes, periodic)
        exact = opening.conditions.scaled()
        notes += symmetry_check.check(wanted, source, declared, found.periodic, parts.train, exact)
    else:
        found, changes = _on_grid(task, source, opening.stride)
        notes += changes
    return opening.dataset(found, content, notes, moments.change)


def _scan_steady(opening: _Opening) -> Dataset:
    wanted, source = opening.wanted, opening.source
    periodic, inputs = opening.periodic, source.input_channels
    if wanted.conserved:
        raise ConfigError(f"key `data.tasks.{wanted.name}.conserved`: a steady solution has no time to be conserved in")
    declared = declared_properties.symmetries(wanted, source.grid, periodic)
    content = Content(source)
    channels = (*inputs, *wanted.channels)
    moments = Moments(source.name, source.frames, len(channels), 1)
    edges = declared_properties.Edges(source.grid.shape, len(channels))
    for ids, fields in chunks(source):
        training = np.isin(ids, opening.splits.train)
        pairs = np.concatenate([source.inputs(ids)[:, None], fields], axis=-1)
        if content.update(ids, pairs) and training.any():
            moments.update(pairs[training])
            if opening.task is None:
                edges.update(pairs[training])
    notes = opening.notes(content)
    if opening.task is None:
        both = moments.steady_statistics(opening.cfg.data.normalize, channels)
        given = zip(inputs, both.mean, both.std, strict=False)
        own = slice(len(inputs), None)
        found = opening.new_task(
            Statistics(mean=both.mean[own], std=both.std[own], delta_std=both.delta_std[own]),
            inputs=tuple(Input(name=name, mean=mean, std=std) for name, mean, std in given),
            symmetries=declared,
        )
        notes += edges.check(wanted, source.name, source.grid.axes, periodic)
        if declared:
            notes.append(f"{wanted.name}: the symmetries of a steady task are not checked on the data")
    else:
        found, changes = _on_grid(opening.task, source, 1)
        notes += changes
    return opening.dataset(found, content, notes, moments.change)


def _scan_points(opening: _Opening, cloud: Cloud) -> Dataset:
    wanted, source, task = opening.wanted, opening.source, opening.task
    if not isinstance(source, Scattered):
        raise DataError(
            f"{source.name}: points are read from one file a task, with trajectories in time; give data.tasks."
            f"{wanted.name}.path one file"
        )
    for key, why in _OF_GRIDS.items():
        if getattr(wanted, key):
            raise ConfigError(f"key `data.tasks.{wanted.name}.{key}`: is of grids, {why}; leave it out")
    periodic = opening.periodic
    moving = declared_properties.indices(cloud.moving, source.channel_names, "channels")
    if periodic and cloud.measured and task is None:
        raise DataError(
            f"{source.name}: says nothing of its box, so that the period of {', '.join(wanted.periodic)} is not known; "
            "write the file in the layout of points with a `box`"
        )
    content = Content(source)
    moments = Moments(source.name, source.frames, source.channels, opening.stride)
    givens = Moments(source.name, 2, max(1, len(source.input_channels)), 1)
    for ids, fields in chunks(source):
        places, inputs = source.places(ids), source.inputs(ids)
        if not np.isfinite(inputs).all():
            raise DataError(f"{source.name}: `inputs` holds NaN or Inf; correct them")
        if moving:
            _check_unwrapped(source, fields, places, cloud if task is None else task, periodic)
        else:
            check_inside(source.name, places, cloud if task is None else task, periodic)
        for values in (places.coords, places.mask, inputs):
            content.add(values)
        training = np.isin(ids, opening.splits.train)
        if content.update(ids, fields) and training.any():
            moments.update(fields[training], places.mask[training])
            if source.input_channels:
                # Two equal frames: given fields do not change.
                givens.update(np.repeat(inputs[training, None], 2, axis=1), places.mask[training])
    notes = opening.notes(content)
    if task is None:
        statistics = moments.statistics(opening.cfg.data.normalize, wanted.channels)
        given = _inputs(source.input_channels, givens)
        found = opening.new_task(statistics, inputs=given, box=cloud.box, moving=moving)
    else:
        found, changes = _on_points(task, source, opening.stride)
        notes += changes
    return opening.dataset(found, content, notes, moments.change)


def _on_grid(task: Task, source: Source, stride: int) -> tuple[Task, list[str]]:
    """A trained run's task on this source's grid and time step, and what differs."""
    grid, dt = source.grid, source.grid.dt * stride
    notes = []
    if not np.isclose(dt, task.dt, rtol=1e-5, atol=0):
        notes.append(
            f"{source.name}: a step is {dt:g} long (frames {grid.dt:g} apart, training.time_stride={stride}), "
            f"the model was trained on {task.dt:g}"
        )
    if grid.shape != task.shape:
        notes.append(f"{source.name}: has {grid.shape} grid points, the model was trained on {task.shape}")
    return replace(task, shape=grid.shape, origin=grid.origin, spacing=grid.spacing, dt=dt), notes


def _on_points(task: Task, source: Source, stride: int) -> tuple[Task, list[str]]:
    """A trained run's task on the points of this source, and what differs."""
    names = tuple(item.name for item in task.inputs)
    if names != source.input_channels:
        raise DataError(
            f"{source.name}: gives the fields {', '.join(source.input_channels) or 'none'}, the run was trained with "
            f"{', '.join(names) or 'none'}; write those as `inputs`"
        )
    dt = source.grid.dt * stride
    if np.isclose(dt, task.dt, rtol=1e-5, atol=0):
        return replace(task, shape=source.grid.shape), []
    note = f"{source.name}: a step is {dt:g} long, the model was trained on {task.dt:g}"
    return replace(task, shape=source.grid.shape, dt=dt), [note]


def _inputs(names: tuple[str, ...], givens: Moments) -> tuple[Input, ...]:
    """The given fields with their scale; one that is the same everywhere, such as no source at all, has scale 1."""
    if not names:
        return ()
    mean, std = givens.mean, givens.spread
    scales = np.where(std > 1e-6 * np.maximum(givens.rms, 1e-30), std, 1.0)
    return tuple(Input(name=name, mean=float(m), std=float(s)) for name, m, s in zip(names, mean, scales, strict=True))


def _check_unwrapped(
    source: Source, fields: Float[np.ndarray, "n t p c"], places: Places, box: Cloud | Task, periodic: tuple[int, ...]
) -> None:
    """DataError where a position jumps back by a period: a step would be taken for one through the whole box."""
    there = places.mask[:, None] > 0
    for axis in periodic:
        channel = source.channel_names.index(source.grid.axes[axis])
        jumps = (np.abs(np.diff(fields[..., channel], axis=1)) > box.box[axis] / 2) & there
        if jumps.any():
            _, frame, point = (int(values[0]) for values in np.nonzero(jumps))
            raise DataError(
                f"{source.name}: point {point} jumps by more than half of the box along {source.grid.axes[axis]} after "
                f"frame {frame} of a trajectory; write positions that go on beyond a periodic side"
            )
