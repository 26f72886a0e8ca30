"""Everything that is wrong with the data of a configuration, where opening it stops at the first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ups_jax.config import Config, TaskConfig, of_task
from ups_jax.core.errors import UserError
from ups_jax.data import declared_properties, open, symmetry_check
from ups_jax.data.coefficients import declared_scales, read_conditions
from ups_jax.data.files import data_files, open_source, open_task_file
from ups_jax.data.mixture import shares
from ups_jax.data.scan import Content, chunks, repeated
from ups_jax.data.sources import Source
from ups_jax.data.sources.points import Scattered
from ups_jax.data.splits import Splits
from ups_jax.data.statistics import Moments


def data_problems(cfg: Config) -> list[str]:
    """A line for each problem of each task, with its mend; none where all data can be opened."""
    found = [line for task in cfg.data.tasks for line in _of_task(of_task(cfg, task.name))]
    if not found:
        try:
            # What all tasks have in common, once each is sound.
            declared_scales(cfg.data.tasks)
            shares(cfg.data.mixing, {task.name: 1 for task in cfg.data.tasks})
        except UserError as error:
            found.append(str(error))
    return found


def _of_task(cfg: Config) -> list[str]:
    wanted, found = cfg.data.tasks[0], []

    def tried(check: Callable[[], object]) -> None:
        try:
            check()
        except UserError as error:
            if str(error) not in found:
                found.append(str(error))

    try:
        files = data_files(cfg.data, wanted)
    except UserError as error:
        return [str(error)]
    for path in (path for paths in files.values() for path in paths):
        tried(lambda path=path: open_task_file(path, wanted))  # type: ignore[misc]
    if found:
        return found
    try:
        source, parts = open_source(cfg, wanted)
    except UserError as error:
        return [str(error)]
    tried(lambda: open.check_shape(cfg, wanted, source, None))
    tried(lambda: read_conditions(wanted, source, parts.train, None))
    axes, key = source.grid.axes, f"data.tasks.{wanted.name}"
    for name in wanted.periodic:
        tried(lambda name=name: declared_properties.indices((name,), axes, f"{key}.periodic"))  # type: ignore[misc]
    for name in wanted.conserved:
        tried(lambda name=name: declared_properties.indices((name,), wanted.channels, f"{key}.conserved"))  # type: ignore[misc]
    for item in wanted.symmetries:
        alone = replace(wanted, symmetries=(item,))
        tried(lambda alone=alone: declared_properties.symmetries(alone, source.grid, ()))  # type: ignore[misc]
    if not found and wanted.kind == "transient" and not isinstance(source, Scattered):
        _of_values(cfg, wanted, source, parts, tried)
    if not found:
        tried(lambda: open.open_dataset(cfg))
    return found


def _of_values(
    cfg: Config, wanted: TaskConfig, source: Source, parts: Splits, tried: Callable[[Callable[[], object]], None]
) -> None:
    """What is wrong with the numbers, each check by itself; those with NaN or Inf are left out of all but one."""
    content = Content(source)
    moments = Moments(source.name, source.frames, source.channels, cfg.training.time_stride)
    drift = declared_properties.Drift(source.channels)
    edges = declared_properties.Edges(source.grid.shape, source.channels)
    for ids, fields in chunks(source):
        content.update(ids, fields)
        usable = np.isin(ids, parts.train) & np.isfinite(fields).all(axis=tuple(range(1, fields.ndim)))
        if usable.any():
            moments.update(fields[usable])
            drift.update(ids[usable], fields[usable])
            edges.update(fields[usable])
    tried(content.check)
    tried(lambda: repeated(content, parts, source.name))
    axes = source.grid.axes
    periodic = declared_properties.indices(wanted.periodic, axes, "periodic")
    conserved = declared_properties.indices(wanted.conserved, wanted.channels, "conserved")
    tried(lambda: moments.statistics(cfg.data.normalize, wanted.channels))
    tried(lambda: list(drift.check(wanted, source.name, conserved, moments.rms)))
    for axis in range(len(axes)):
        own = tuple(index for index in periodic if index == axis)
        tried(lambda own=own: list(edges.check(wanted, source.name, axes, own)))  # type: ignore[misc]
    declared = declared_properties.symmetries(wanted, source.grid, periodic)
    exact = read_conditions(wanted, source, parts.train, None).scaled()
    closed = tuple(axis in periodic for axis in range(len(axes)))
    for item in declared:
        tried(lambda item=item: symmetry_check.check(wanted, source, (item,), closed, parts.train, exact))  # type: ignore[misc]
