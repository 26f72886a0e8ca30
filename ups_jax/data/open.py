"""Opening of datasets: a scan of the data checks them and computes the statistics of the training split.

The result is a `Dataset`, or a `Mixture` of several datasets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int

from ups_jax.config import Config, TaskConfig
from ups_jax.core.errors import ConfigError, DataError
from ups_jax.core.task import Input, LossScales, Statistics, Task
from ups_jax.data import declared_properties, symmetry_check
from ups_jax.data.batches import window_frames
from ups_jax.data.coefficients import Conditions, read_all_conditions, read_conditions
from ups_jax.data.content import ContentReport, content_report
from ups_jax.data.dataset import Dataset
from ups_jax.data.files import configured_tasks, open_source, single_task
from ups_jax.data.loss_scales import channel_scales, grid_scales
from ups_jax.data.mixture import Mixture
from ups_jax.data.scan import (
    ScanRecord,
    check_finite,
    check_overlap,
    fingerprint,
    former_fingerprint,
    spaced_ids,
    trajectory_chunks,
)
from ups_jax.data.scan_cache import ChunkCheck, scan_source
from ups_jax.data.sources import Grid, MemorySource, Source
from ups_jax.data.sources.base import AXES, frame_counts
from ups_jax.data.sources.in_memory import load_into_memory
from ups_jax.data.sources.points import PointCloud, PointSet, ScatteredSource
from ups_jax.data.splits import Splits, random_split
from ups_jax.data.statistics import Moments, nonzero_std

# Total size of the training trajectories on which the periodicity of the axes is checked.
SAMPLE_BYTES = 64 * 2**20
# Keys that need a grid, with the reason why a point cloud cannot have them.
_GRID_ONLY_KEYS = {"symmetries": "they map a grid onto itself", "conserved": "the mean over points is not an integral"}


def open_dataset(cfg: Config, task: Task | None = None) -> Dataset:
    """Open and check the data of a configuration with one task.

    Args:
        task: Task of a trained model, whose statistics, coefficients and declared properties replace those that the
            configuration and the data define; None for a new model.

    Raises:
        ConfigError: The configuration has no task or several, or names an axis or channel that the data do not have.
        DataError: A file is missing, damaged, or contradicts the configuration.
    """
    single_task(cfg)
    return _open_datasets(cfg, [task])[0]


def open_mixture(cfg: Config) -> Mixture:
    """Open and check the data of all tasks of a configuration, in order to train one new model on all of them.

    Raises:
        ConfigError: As in `open_dataset`, or two tasks declare different scales of a coefficient.
        DataError: As in `open_dataset`.
    """
    task_cfgs = configured_tasks(cfg)
    datasets = _open_datasets(cfg, [None] * len(task_cfgs))
    if len(datasets) > 1:
        datasets = _link_tasks(cfg, datasets)
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
    """Return the dataset of a configuration's only task, made from arrays and checked like data in a file.

    Args:
        fields: Fields of all trajectories in physical units. The channel axis may be absent for one channel.
        dt: Time between frames.
        coefficients: PDE coefficients by name, one value per trajectory.
        origin: Coordinate of the first point of each space axis.
        spacing: Grid spacing along each space axis.
        task: Task of a trained model, as in `open_dataset`.

    Raises:
        ConfigError: The task is steady, or the configuration does not fit the arrays.
        DataError: The arrays do not fit together, or fail a check.
    """
    task_cfg = single_task(cfg)
    if task_cfg.kind != "transient":
        raise ConfigError(
            f"key `data.tasks.{task_cfg.name}.kind`: is {task_cfg.kind}, but arrays are always transient; give steady "
            "data as a file"
        )
    array = np.asarray(fields, np.float32)
    rank = len(spacing)
    if array.ndim == 2 + rank:
        array = array[..., None]
    if array.ndim != 3 + rank or len(origin) != rank or not 1 <= rank <= len(AXES):
        raise DataError(
            f"`fields` has shape {np.shape(fields)}, `origin` is {tuple(origin)} and `spacing` is {tuple(spacing)}; "
            "give fields of shape (trajectories, frames, *space) or (trajectories, frames, *space, channels), and one "
            "origin and spacing for each of 1 to 3 space axes"
        )
    if not (np.isfinite([dt, *spacing]).all() and min(dt, *spacing) > 0):
        raise DataError(f"`dt` is {dt} and `spacing` is {tuple(spacing)}; give positive numbers")
    for name, values in (coefficients or {}).items():
        if np.shape(values) != (len(array),):
            raise DataError(
                f"coefficient {name} has shape {np.shape(values)}; give one value for each of {len(array)} trajectories"
            )
    grid = Grid(
        shape=array.shape[2:-1],
        origin=tuple(map(float, origin)),
        spacing=tuple(map(float, spacing)),
        start=0.0,
        dt=float(dt),
    )
    exact = {name: np.asarray(values, np.float64) for name, values in (coefficients or {}).items()}
    source = MemorySource(name="arrays", grid=grid, fields=array, coefficients=exact)
    splits = random_split(len(array), cfg.data.split, source.name)
    check_source(cfg, task_cfg, source, splits, task)
    conditions = read_conditions(task_cfg, source, splits.train, task)
    return _checked_dataset(
        _OpenedSource(
            cfg=cfg, task_cfg=task_cfg, source=source, splits=splits, trained_task=task, conditions=conditions
        )
    )


def as_trained_task(cfg: Config, dataset: Dataset, task: Task) -> Dataset:
    """Return the dataset as data of the task that a model was trained on.

    Grid and time step remain those of the data. Statistics, coefficients and declared properties are those of the
    model. Coefficients are matched by name; a coefficient of the model that the data lack is masked.

    Args:
        cfg: Configuration of the data, with one task.
        task: Task of the trained model.

    Raises:
        ConfigError: The data are of another kind (transient or steady) than the task of the trained model.
        DataError: The data have other channels, axes or input fields than this task, or too few frames.
    """
    if dataset.task == task:
        return dataset
    source = dataset.source
    check_source(cfg, single_task(cfg), source, dataset.splits, task)
    for kind, names, trained in (
        ("channels", dataset.task.channels, task.channels),
        ("input fields", *(tuple(item.name for item in of.inputs) for of in (dataset.task, task))),
    ):
        if names != trained:
            raise DataError(
                f"{source.name}: has the {kind} {', '.join(names) or 'none'}, but the model was trained with "
                f"{', '.join(trained) or 'none'}; give data with the same {kind} in the same order"
            )
    new_task, notes = (_point_task_and_notes if task.scattered else _grid_task_and_notes)(task, source, dataset.stride)
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


def check_source(cfg: Config, task_cfg: TaskConfig, source: Source, splits: Splits, trained_task: Task | None) -> None:
    """Check that a source has the channels, axes and kind of its task, and enough frames.

    Training trajectories of a new model need the frames of a window, all others those of one predicted step.

    Args:
        trained_task: Task of the trained model that the data are for, instead of `task_cfg`; None for a new model.

    Raises:
        ConfigError: The kind (transient or steady) differs from `trained_task`.
        DataError: Channels or axes differ, or trajectories are too short.
    """
    channels = task_cfg.channels if trained_task is None else trained_task.channels
    if source.channels != len(channels):
        raise DataError(
            f"{source.name}: has {source.channels} channels, but the task has {len(channels)} "
            f"({', '.join(channels)}); name the channels of the data in `data.tasks.{task_cfg.name}.channels`"
        )
    if trained_task is not None and trained_task.scattered != isinstance(source.grid, PointCloud):
        kinds = {True: "a point cloud", False: "a grid"}
        raise DataError(
            f"{source.name}: is on {kinds[not trained_task.scattered]}, but the model was trained on "
            f"{kinds[trained_task.scattered]} (task {trained_task.name}); give data on {kinds[trained_task.scattered]}"
        )
    if trained_task is not None and len(source.grid.axes) != len(trained_task.axes):
        raise DataError(
            f"{source.name}: has {len(source.grid.axes)} space axes, but the model was trained on "
            f"{len(trained_task.axes)} (task {trained_task.name}); give data with {', '.join(trained_task.axes)}"
        )
    if trained_task is not None and trained_task.kind != task_cfg.kind:
        raise ConfigError(
            f"key `data.tasks.{task_cfg.name}.kind`: is {task_cfg.kind}, but the model was trained on "
            f"the {trained_task.kind} task {trained_task.name}; set the key to {trained_task.kind}"
        )
    if task_cfg.kind == "steady":
        return
    stride = cfg.training.time_stride
    counts = frame_counts(source)
    window = (window_frames(cfg) - 1) * stride + 1
    if trained_task is None and (shortest := int(counts[splits.train].min())) < window:
        raise DataError(
            f"{source.name}: has {shortest} frames per trajectory, but a window needs {window}; lower "
            f"`data.context={cfg.data.context}`, `training.pushforward={cfg.training.pushforward}`, "
            f"`training.rollout_horizon={cfg.training.rollout_horizon}` or `training.time_stride={stride}`"
        )
    needed = cfg.data.context * stride + 1
    for role, ids in (("validation", splits.val), ("test", splits.test)):
        if (shortest := int(counts[ids].min(initial=needed))) < needed:
            raise DataError(
                f"{source.name}: the {role} trajectories have {shortest} frames, but a prediction needs {needed}; give "
                f"longer ones, or lower `data.context={cfg.data.context}` or `training.time_stride={stride}`"
            )


def check_points_inside(
    source_name: str, points: PointSet, domain: PointCloud | Task, periodic: tuple[int, ...]
) -> None:
    """Raise `DataError` if a point lies outside the domain along an axis that is not periodic.

    Args:
        source_name: Name of the data in messages.
        domain: Has the lower corner `origin` and the side lengths `box` of the domain.
        periodic: Indices of the periodic axes.
    """
    low, sides = np.asarray(domain.origin), np.asarray(domain.box)
    # Coordinates far from 0 are rounded to float32.
    margin = 1e-4 * sides + np.finfo(np.float32).eps * (np.abs(low) + sides)
    outside = (points.coords < low - margin) | (points.coords > low + sides + margin)
    outside[..., list(periodic)] = False
    bad = outside.any(axis=-1) & (points.mask > 0)
    if bad.any():
        row, point = (int(values[0]) for values in np.nonzero(bad))
        raise DataError(
            f"{source_name}: point {point} of a trajectory lies at {points.coords[row, point].tolist()}, outside the "
            f"box from {list(domain.origin)} with sides {list(domain.box)}; write a `box` that contains all points"
        )


def _link_tasks(cfg: Config, datasets: Sequence[Dataset]) -> list[Dataset]:
    """Return the datasets of tasks that one model is trained on.

    Each task gets the names of all tasks, the names of coefficients that only other tasks have, and a common time unit.
    """
    names = tuple(dataset.task.name for dataset in datasets)
    unit = float(np.exp(np.mean([np.log(dataset.task.dt) for dataset in datasets])))
    linked = []
    for task_cfg, dataset in zip(cfg.data.tasks, datasets, strict=True):
        foreign = tuple(item.name for item in dataset.task.coefficients if item.name not in task_cfg.coefficients)
        task = replace(dataset.task, siblings=names, foreign=foreign, dt_unit=unit)
        linked.append(replace(dataset, task=task))
    return linked


def _open_datasets(cfg: Config, trained_tasks: Sequence[Task | None]) -> list[Dataset]:
    """Open and check the data of each configured task; `trained_tasks` has the trained model's task for it, or None."""
    # With `data.source: latents`, the memory is reserved for the latents: training reads fields only to check and to
    # validate, so that they stay on disk.
    free_bytes = 0.0 if cfg.data.source == "latents" else cfg.data.loader.memory_gib * 2**30
    opened: list[tuple[TaskConfig, Source, Source, Splits]] = []
    for task_cfg, trained_task in zip(configured_tasks(cfg), trained_tasks, strict=True):
        file_source, splits = open_source(cfg, task_cfg)
        source = file_source
        frames = int(frame_counts(source).sum())
        values_per_point = frames * source.channels + source.trajectories * len(source.input_channels)
        size = 4 * values_per_point * int(np.prod(source.grid.shape))
        if size <= free_bytes:
            free_bytes -= size
            if trained_task is None:
                coefficients = tuple(task_cfg.coefficients)
            else:
                coefficients = tuple(item.name for item in trained_task.coefficients)
            source = load_into_memory(source, coefficients)
        # Errors of one file are raised before errors across tasks.
        check_source(cfg, task_cfg, source, splits, trained_task)
        opened.append((task_cfg, file_source, source, splits))
    task_cfgs, _, sources, splits_by_task = zip(*opened, strict=True)
    all_conditions = read_all_conditions(task_cfgs, sources, [splits.train for splits in splits_by_task], trained_tasks)
    return [
        _checked_dataset(
            _OpenedSource(
                cfg=cfg,
                task_cfg=task_cfg,
                source=source,
                file_source=file_source,
                splits=splits,
                trained_task=trained_task,
                conditions=conditions,
            )
        )
        for (task_cfg, file_source, source, splits), trained_task, conditions in zip(
            opened, trained_tasks, all_conditions, strict=True
        )
    ]


@dataclass(frozen=True, eq=False, kw_only=True)
class _OpenedSource:
    """The opened source of a task, before the values of the fields are checked.

    Attributes:
        file_source: Reader of the files whose content `source` holds in memory; None if it is `source` itself.
        trained_task: Task of a trained model, whose statistics are kept; None if the data define them.
        conditions: PDE coefficients of the trajectories.
    """

    cfg: Config
    task_cfg: TaskConfig
    source: Source
    splits: Splits
    trained_task: Task | None
    conditions: Conditions
    file_source: Source | None = None

    @property
    def stride(self) -> int:
        """The model step in stored frames, 1 for a steady task."""
        return 1 if self.task_cfg.kind == "steady" else self.cfg.training.time_stride

    @property
    def periodic_axes(self) -> tuple[int, ...]:
        """The indices of the axes declared periodic. Raises `ConfigError` if one does not exist."""
        key = f"data.tasks.{self.task_cfg.name}.periodic"
        return declared_properties.name_indices(self.task_cfg.periodic, self.source.grid.axes, key)

    def scan(
        self, check: ChunkCheck = lambda ids, values: None, check_settings: Sequence[object] = ()
    ) -> tuple[ScanRecord, ContentReport, list[str]]:
        """Return the record of all trajectories, the report on their content, and notes for the user.

        Args:
            check: A further check of the fields of each chunk.
            check_settings: Everything that the result of `check` depends on, apart from the data.

        Raises:
            DataError: The data contain NaN or Inf, their splits overlap, or `check` fails.
        """
        name = self.source.name
        record, cache_notes = scan_source(
            self.source, self.stride, file_source=self.file_source, check=check, check_settings=check_settings
        )
        check_finite(record, name)
        report = content_report(record)
        notes = [*self.source.notes, *self.conditions.notes, *cache_notes, *check_overlap(record, self.splits, name)]
        return record, report, notes + [f"{name}: {line}" for line in report.lines(self.task_cfg.channels)]

    def check_edges(self, report: ContentReport, *, with_inputs: bool) -> Iterator[str]:
        """Check the declared periodic axes on a sample of the training trajectories, and yield hints at others.

        Args:
            report: Trajectories without content give no hints.
            with_inputs: Whether the input fields are checked too.

        Raises:
            DataError: An axis declared periodic is not periodic.
        """
        source, train = self.source, self.splits.train
        suitable = train[report.suits_hints[train]]
        inputs = len(source.input_channels) if with_inputs else 0
        edges = declared_properties.NeighbourDifferences(source.grid.shape, inputs + source.channels)
        for ids, values in trajectory_chunks(
            source, spaced_ids(source, suitable if len(suitable) else train, SAMPLE_BYTES)
        ):
            parts = [source.read_input_fields(ids)[:, None], values] if with_inputs else [values]
            edges.update(np.concatenate(parts, axis=-1))
        hints = list(edges.check(self.task_cfg, source.name, source.grid.axes, self.periodic_axes))
        yield from hints if len(suitable) else ()

    def new_task(self, statistics: Statistics, channel_scales: LossScales, **properties: Any) -> Task:
        """Return the task of a new model, from its configuration and the grid, coefficients and statistics of the data.

        Args:
            channel_scales: Scales of the loss that follow from the moments of the channels.
            properties: Further fields of `Task`, which only some kinds of task have.
        """
        grid, axes = self.source.grid, self.periodic_axes
        periodic = tuple(axis in axes for axis in range(len(grid.axes)))
        scales = channel_scales
        if not isinstance(grid, PointCloud):
            scales = grid_scales(self.source, self.splits.train, periodic, channel_scales, statistics)
        return Task(
            name=self.task_cfg.name,
            kind=self.task_cfg.kind,
            channels=self.task_cfg.channels,
            axes=grid.axes,
            shape=grid.shape,
            origin=grid.origin,
            spacing=grid.spacing,
            periodic=periodic,
            dt=grid.dt * self.stride,
            coefficients=self.conditions.coefficients,
            statistics=statistics,
            loss_scales=scales,
            **properties,
        )

    def dataset(self, task: Task, record: ScanRecord, notes: Sequence[str]) -> Dataset:
        """Return the dataset of this source, whose fields have been checked."""
        source, grid, conditions, splits = self.source, self.source.grid, self.conditions, self.splits
        content = (source, conditions.values, conditions.mask)
        return Dataset(
            task=task,
            splits=splits,
            fingerprint=fingerprint(record, *content, splits),
            former_fingerprint=cache(partial(former_fingerprint, *content)),
            record=record,
            notes=tuple(notes),
            source=source,
            stride=self.stride,
            times=grid.start + grid.dt * np.arange(int(record.frames.max())),
            conditions=conditions.values,
            condition_mask=conditions.mask,
            relative_change=Moments.of_fields(source.name, record, splits.train).relative_change,
        )


def _checked_dataset(opened: _OpenedSource) -> Dataset:
    """Return the dataset of a task after a scan that checks its data and computes their statistics."""
    if isinstance(opened.source.grid, PointCloud):
        return _checked_point_dataset(opened, opened.source.grid)
    return (_checked_steady_dataset if opened.task_cfg.kind == "steady" else _checked_transient_dataset)(opened)


def _checked_transient_dataset(opened: _OpenedSource) -> Dataset:
    """Return the checked dataset of a transient task on a grid."""
    task_cfg, source, splits, trained_task = opened.task_cfg, opened.source, opened.splits, opened.trained_task
    conserved = declared_properties.name_indices(
        task_cfg.conserved, task_cfg.channels, f"data.tasks.{task_cfg.name}.conserved"
    )
    symmetries = declared_properties.resolve_symmetries(task_cfg, source.grid, opened.periodic_axes)
    record, report, notes = opened.scan()
    if trained_task is None:
        moments = Moments.of_fields(source.name, record, splits.train)
        statistics = moments.statistics(opened.cfg.data.normalize, task_cfg.channels)
        scales = channel_scales(moments.mean, moments.std, statistics)
        task = opened.new_task(statistics, scales, conserved=conserved, symmetries=symmetries)
        train = splits.train
        notes += declared_properties.check_drift(
            task_cfg, source.name, conserved, moments.std, record, train, train[report.suits_hints[train]]
        )
        notes += opened.check_edges(report, with_inputs=False)
        notes += symmetry_check.check_symmetries(
            task_cfg, source, symmetries, task.periodic, train[report.has_content[train]], opened.conditions.scaled()
        )
    else:
        task, differences = _grid_task_and_notes(trained_task, source, opened.stride)
        notes += differences
    return opened.dataset(task, record, notes)


def _checked_steady_dataset(opened: _OpenedSource) -> Dataset:
    """Return the checked dataset of a steady task on a grid."""
    task_cfg, source, normalize = opened.task_cfg, opened.source, opened.cfg.data.normalize
    if task_cfg.conserved:
        raise ConfigError(
            f"key `data.tasks.{task_cfg.name}.conserved`: a steady solution does not change in time, so nothing can be "
            "conserved; remove the key"
        )
    symmetries = declared_properties.resolve_symmetries(task_cfg, source.grid, opened.periodic_axes)
    record, report, notes = opened.scan()
    if opened.trained_task is None:
        train, inputs = opened.splits.train, source.input_channels
        input_statistics = Moments.of_inputs(source.name, record, train).steady_statistics(normalize, inputs)
        moments = Moments.of_fields(source.name, record, train)
        statistics = moments.steady_statistics(normalize, task_cfg.channels)
        columns = zip(inputs, input_statistics.mean, input_statistics.std, strict=True)
        task = opened.new_task(
            statistics,
            channel_scales(moments.mean, moments.std, statistics),
            inputs=tuple(Input(name=name, mean=mean, std=std) for name, mean, std in columns),
            symmetries=symmetries,
        )
        notes += opened.check_edges(report, with_inputs=True)
        notes += symmetry_check.check_symmetries(
            task_cfg, source, symmetries, task.periodic, train[report.has_content[train]], opened.conditions.scaled()
        )
    else:
        task, differences = _grid_task_and_notes(opened.trained_task, source, 1)
        notes += differences
    return opened.dataset(task, record, notes)


def _checked_point_dataset(opened: _OpenedSource, cloud: PointCloud) -> Dataset:
    """Return the checked dataset of a task on a point cloud."""
    task_cfg, source, trained_task = opened.task_cfg, opened.source, opened.trained_task
    if not isinstance(source, ScatteredSource):
        raise DataError(
            f"{source.name}: the data of a task on a point cloud must be a single file of transient trajectories; set "
            f"`data.tasks.{task_cfg.name}.path` to such a file"
        )
    for key, reason in _GRID_ONLY_KEYS.items():
        if getattr(task_cfg, key):
            raise ConfigError(
                f"key `data.tasks.{task_cfg.name}.{key}`: does not apply to a point cloud ({reason}); remove the key"
            )
    periodic = opened.periodic_axes
    moving = declared_properties.name_indices(cloud.position_channels, source.channel_names, "channels")
    if periodic and cloud.box_from_points and trained_task is None:
        raise DataError(
            f"{source.name}: the periods of the periodic axes {', '.join(task_cfg.periodic)} are unknown, because the "
            "file has no dataset `box` with the corners of the domain; write this dataset to the file"
        )
    domain = cloud if trained_task is None else trained_task

    def check_points(ids: Int[np.ndarray, " m"], fields: Float32[np.ndarray, "m t p c"]) -> None:
        points = source.points(ids)
        if not np.isfinite(source.read_input_fields(ids)).all():
            raise DataError(f"{source.name}: the group `inputs` contains NaN or Inf; correct the file")
        if moving:
            _check_unwrapped_positions(source, fields, points, domain, periodic)
        else:
            check_points_inside(source.name, points, domain, periodic)

    record, _, notes = opened.scan(check_points, (moving, domain.origin, domain.box, periodic))
    if trained_task is None:
        moments = Moments.of_fields(source.name, record, opened.splits.train)
        statistics = moments.statistics(opened.cfg.data.normalize, task_cfg.channels)
        task_inputs = _inputs_with_statistics(source, record, opened.splits.train)
        scales = channel_scales(moments.mean, moments.std, statistics)
        task = opened.new_task(statistics, scales, inputs=task_inputs, box=cloud.box, moving=moving)
    else:
        task, differences = _point_task_and_notes(trained_task, source, opened.stride)
        notes += differences
    return opened.dataset(task, record, notes)


def _grid_task_and_notes(trained_task: Task, source: Source, stride: int) -> tuple[Task, list[str]]:
    """Return the task of a trained model with the grid and time step of a source, and a note on each difference."""
    grid, dt = source.grid, source.grid.dt * stride
    notes = []
    if not np.isclose(dt, trained_task.dt, rtol=1e-5, atol=0):
        notes.append(
            f"{source.name}: the time step is {dt:g} (dt {grid.dt:g}, training.time_stride={stride}), but the model "
            f"was trained with {trained_task.dt:g}"
        )
    if grid.shape != trained_task.shape:
        notes.append(
            f"{source.name}: has {grid.shape} grid points, but the model was trained with {trained_task.shape}"
        )
    return replace(trained_task, shape=grid.shape, origin=grid.origin, spacing=grid.spacing, dt=dt), notes


def _point_task_and_notes(trained_task: Task, source: Source, stride: int) -> tuple[Task, list[str]]:
    """Return a trained model's task with the points and time step of a source, and a note if the time step differs."""
    names = tuple(item.name for item in trained_task.inputs)
    if names != source.input_channels:
        raise DataError(
            f"{source.name}: has the input fields {', '.join(source.input_channels) or 'none'}, but the model was "
            f"trained with {', '.join(names) or 'none'}; give a file whose group `inputs` contains the latter"
        )
    dt = source.grid.dt * stride
    if np.isclose(dt, trained_task.dt, rtol=1e-5, atol=0):
        return replace(trained_task, shape=source.grid.shape), []
    note = f"{source.name}: the time step is {dt:g}, but the model was trained with {trained_task.dt:g}"
    return replace(trained_task, shape=source.grid.shape, dt=dt), [note]


def _inputs_with_statistics(source: Source, record: ScanRecord, train: Int[np.ndarray, " m"]) -> tuple[Input, ...]:
    """Return the input fields with their mean and standard deviation (of a constant field, see `nonzero_std`)."""
    names = source.input_channels
    if not names:
        return ()
    moments = Moments.of_inputs(source.name, record, train)
    scales = nonzero_std(moments.mean, moments.std)
    columns = zip(names, moments.mean.tolist(), scales.tolist(), strict=True)
    return tuple(Input(name=name, mean=mean, std=std) for name, mean, std in columns)


def _check_unwrapped_positions(
    source: Source,
    fields: Float[np.ndarray, "n t p c"],
    points: PointSet,
    domain: PointCloud | Task,
    periodic: tuple[int, ...],
) -> None:
    """Raise `DataError` if a moving point jumps by a period, since positions must not be wrapped into the box."""
    exists = points.mask[:, None] > 0
    for axis in periodic:
        channel = source.channel_names.index(source.grid.axes[axis])
        jumps = (np.abs(np.diff(fields[..., channel], axis=1)) > domain.box[axis] / 2) & exists
        if jumps.any():
            _, frame, point = (int(values[0]) for values in np.nonzero(jumps))
            raise DataError(
                f"{source.name}: point {point} jumps by more than half of the box along {source.grid.axes[axis]} after "
                f"frame {frame} of a trajectory; write positions that continue beyond the periodic sides of the box"
            )
