"""All problems with the data of a configuration as one list; opening the data stops at the first problem instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from ups_jax.config import Config, TaskConfig, restrict_to_task
from ups_jax.core.errors import UserError
from ups_jax.data import declared_properties, open
from ups_jax.data.coefficients import coefficient_scales, read_conditions
from ups_jax.data.content import ContentReport, content_report
from ups_jax.data.files import data_files, open_source, open_task_file
from ups_jax.data.mixture import task_shares
from ups_jax.data.scan import ScanRecord, check_finite, check_overlap, spaced_ids, trajectory_chunks
from ups_jax.data.scan_cache import scan_source
from ups_jax.data.sources import Source
from ups_jax.data.sources.points import ScatteredSource
from ups_jax.data.splits import Splits
from ups_jax.data.statistics import Moments
from ups_jax.data.symmetry_check import check_symmetries


def data_problems(cfg: Config) -> list[str]:
    """Return a message for each problem with the data of the configured tasks; empty if all data can be opened."""
    problems = [line for task_cfg in cfg.data.tasks for line in _task_problems(restrict_to_task(cfg, task_cfg.name))]
    if not problems:
        try:
            # Checks across tasks, which need each task to be valid.
            coefficient_scales(cfg.data.tasks)
            task_shares(cfg.data.mixing, {task.name: 1 for task in cfg.data.tasks})
        except UserError as error:
            problems.append(str(error))
    return problems


def _task_problems(cfg: Config) -> list[str]:
    """Return a message for each problem with the data of a configuration with one task."""
    task_cfg, problems = cfg.data.tasks[0], []

    def run_check(check: Callable[[], object]) -> None:
        try:
            check()
        except UserError as error:
            if str(error) not in problems:
                problems.append(str(error))

    try:
        files = data_files(cfg.data, task_cfg)
    except UserError as error:
        return [str(error)]
    for path in (path for paths in files.values() for path in paths):
        run_check(lambda path=path: open_task_file(path, task_cfg))  # type: ignore[misc]
    if problems:
        return problems
    try:
        source, splits = open_source(cfg, task_cfg)
    except UserError as error:
        return [str(error)]
    run_check(lambda: open.check_source(cfg, task_cfg, source, splits, None))
    run_check(lambda: read_conditions(task_cfg, source, splits.train, None))
    axes, key = source.grid.axes, f"data.tasks.{task_cfg.name}"
    for name in task_cfg.periodic:
        run_check(lambda name=name: declared_properties.name_indices((name,), axes, f"{key}.periodic"))  # type: ignore[misc]
    for name in task_cfg.conserved:
        run_check(
            lambda name=name: declared_properties.name_indices((name,), task_cfg.channels, f"{key}.conserved")  # type: ignore[misc]
        )
    for item in task_cfg.symmetries:
        with_one = replace(task_cfg, symmetries=(item,))
        run_check(lambda with_one=with_one: declared_properties.resolve_symmetries(with_one, source.grid, ()))  # type: ignore[misc]
    if not problems and not isinstance(source, ScatteredSource):
        run_check(lambda: _check_values(cfg, task_cfg, source, splits, run_check))
    if not problems:
        run_check(lambda: open.open_dataset(cfg))
    return problems


def _check_values(
    cfg: Config, task_cfg: TaskConfig, source: Source, splits: Splits, run_check: Callable[[Callable[[], object]], None]
) -> None:
    """Run each check of the field values through `run_check`, which records the error of a failed check.

    Raises:
        DataError: The values cannot be read.
    """
    record, _ = scan_source(source, 1 if task_cfg.kind == "steady" else cfg.training.time_stride)
    if task_cfg.kind == "transient":
        _check_statistics(cfg, task_cfg, source, splits, record, run_check)
    run_check(lambda: _check_symmetries(task_cfg, source, splits, content_report(record), run_check))


def _check_statistics(
    cfg: Config,
    task_cfg: TaskConfig,
    source: Source,
    splits: Splits,
    record: ScanRecord,
    run_check: Callable[[Callable[[], object]], None],
) -> None:
    """Run the checks of finite values, splits, moments and declared properties of a transient task.

    Moments leave out trajectories with NaN or Inf, so that one defect does not hide others.
    """
    usable = splits.train[record.is_finite[splits.train]]
    run_check(lambda: check_finite(record, source.name))
    run_check(lambda: check_overlap(record, splits, source.name))
    if not len(usable):
        return
    moments = Moments.of_fields(source.name, record, usable)
    edges = declared_properties.NeighbourDifferences(source.grid.shape, source.channels)
    for _, fields in trajectory_chunks(source, spaced_ids(source, usable, open.SAMPLE_BYTES)):
        edges.update(fields)
    axes = source.grid.axes
    periodic = declared_properties.name_indices(task_cfg.periodic, axes, "periodic")
    conserved = declared_properties.name_indices(task_cfg.conserved, task_cfg.channels, "conserved")
    run_check(lambda: moments.statistics(cfg.data.normalize, task_cfg.channels))
    drift = (task_cfg, source.name, conserved, moments.std, record, usable, usable[:0])
    run_check(lambda: list(declared_properties.check_drift(*drift)))
    for axis in range(len(axes)):
        declared = tuple(index for index in periodic if index == axis)
        run_check(lambda declared=declared: list(edges.check(task_cfg, source.name, axes, declared)))  # type: ignore[misc]


def _check_symmetries(
    task_cfg: TaskConfig,
    source: Source,
    splits: Splits,
    report: ContentReport,
    run_check: Callable[[Callable[[], object]], None],
) -> None:
    """Pass the check of each declared symmetry to `run_check`, which records its error."""
    periodic = declared_properties.name_indices(task_cfg.periodic, source.grid.axes, "periodic")
    is_periodic = tuple(axis in periodic for axis in range(len(source.grid.axes)))
    suitable = splits.train[report.has_content[splits.train]]
    coefficients = read_conditions(task_cfg, source, splits.train, None).scaled()
    symmetries = declared_properties.resolve_symmetries(task_cfg, source.grid, periodic)
    for index, symmetry in enumerate(symmetries):
        check = partial(
            check_symmetries, task_cfg, source, (symmetry,), is_periodic, suitable, coefficients, first_index=index
        )
        run_check(lambda check=check: list(check()))  # type: ignore[misc]
