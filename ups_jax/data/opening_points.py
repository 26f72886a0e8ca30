"""The data of a set of points is opened: what `opening` does for grids, of real points alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ups_jax.config import Config, TaskConfig
from ups_jax.data import facts
from ups_jax.data.conditions import Conditions
from ups_jax.data.dataset import Dataset
from ups_jax.data.disjoint import repeated
from ups_jax.data.sources.base import Source
from ups_jax.data.sources.places import Cloud, Places, Scattered
from ups_jax.data.splits import Splits
from ups_jax.data.statistics import Moments
from ups_jax.data.survey import Content, chunks
from ups_jax.errors import ConfigError, DataError
from ups_jax.task import Input, Task

# What a task of a grid may declare, and why a set of points has none of it.
_OF_GRIDS = {
    "symmetries": "they map a grid onto itself",
    "conserved": "a mean over points is no integral",
}


def open_points(
    cfg: Config, wanted: TaskConfig, source: Source, parts: Splits, task: Task | None, conditions: Conditions
) -> Dataset:
    """The checked data; raises `ConfigError` for what a set of points cannot have, `DataError` for a bad file."""
    cloud, stride = source.grid, cfg.training.time_stride
    if not isinstance(source, Scattered) or not isinstance(cloud, Cloud):
        raise DataError(
            f"{source.name}: points are read from one file a task, with trajectories in time; give data.tasks."
            f"{wanted.name}.path one file"
        )
    for key, why in _OF_GRIDS.items():
        if getattr(wanted, key):
            raise ConfigError(f"key `data.tasks.{wanted.name}.{key}`: is of grids, {why}; leave it out")
    periodic = facts.indices(wanted.periodic, cloud.axes, f"data.tasks.{wanted.name}.periodic")
    moving = facts.indices(cloud.moving, source.channel_names, "channels")
    if periodic and cloud.measured and task is None:
        raise DataError(
            f"{source.name}: says nothing of its box, so that the period of {', '.join(wanted.periodic)} is not known; "
            "write the file in the layout of points with a `box`"
        )
    content = Content(source)
    moments = Moments(source.name, source.frames, source.channels, stride)
    givens = Moments(source.name, 2, max(1, len(source.input_channels)), 1)
    for ids, fields in chunks(source):
        places, inputs = source.places(ids), source.inputs(ids)
        if not np.isfinite(inputs).all():
            raise DataError(f"{source.name}: `inputs` holds NaN or Inf; correct them")
        if moving:
            _unwrapped(source, fields, places, cloud if task is None else task, periodic)
        else:
            check_inside(source.name, places, cloud if task is None else task, periodic)
        for values in (places.coords, places.mask, inputs):
            content.add(values)
        training = np.isin(ids, parts.train)
        if content.update(ids, fields) and training.any():
            moments.update(fields[training], places.mask[training])
            if source.input_channels:
                # Two equal frames: given fields do not change.
                givens.update(np.repeat(inputs[training, None], 2, axis=1), places.mask[training])
    content.check()
    notes = [*conditions.notes, *repeated(content, parts, source.name)]
    if task is None:
        found = Task(
            name=wanted.name,
            channels=wanted.channels,
            axes=cloud.axes,
            shape=cloud.shape,
            origin=cloud.origin,
            spacing=cloud.spacing,
            periodic=tuple(axis in periodic for axis in range(len(cloud.axes))),
            dt=cloud.dt * stride,
            coefficients=conditions.coefficients,
            statistics=moments.statistics(cfg.data.normalize, wanted.channels),
            inputs=_inputs(source.input_channels, givens),
            box=cloud.box,
            moving=moving,
        )
    else:
        found = _trained(task, source, stride)
        if found.dt != task.dt:
            notes.append(f"{source.name}: a step is {found.dt:g} long, the model was trained on {task.dt:g}")
    return Dataset(
        task=found,
        splits=parts,
        fingerprint=content.fingerprint(conditions.values, conditions.mask, parts),
        notes=tuple(notes),
        source=source,
        stride=stride,
        times=cloud.start + cloud.dt * np.arange(source.frames),
        conditions=conditions.values,
        condition_mask=conditions.mask,
        change=moments.change,
    )


def _inputs(names: tuple[str, ...], givens: Moments) -> tuple[Input, ...]:
    """The given fields with their scale; one that is the same everywhere, such as no source at all, has scale 1."""
    if not names:
        return ()
    mean, std = givens.mean, givens.spread
    scales = np.where(std > 1e-6 * np.maximum(givens.rms, 1e-30), std, 1.0)
    return tuple(Input(name=name, mean=float(m), std=float(s)) for name, m, s in zip(names, mean, scales, strict=True))


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


def _unwrapped(source: Source, fields: Any, places: Places, box: Cloud | Task, periodic: tuple[int, ...]) -> None:
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


def _trained(task: Task, source: Source, stride: int) -> Task:
    """A trained run's task on the points of this source."""
    names = tuple(item.name for item in task.inputs)
    if names != source.input_channels:
        raise DataError(
            f"{source.name}: gives the fields {', '.join(source.input_channels) or 'none'}, the run was trained with "
            f"{', '.join(names) or 'none'}; write those as `inputs`"
        )
    dt = source.grid.dt * stride
    return replace(task, shape=source.grid.shape, dt=task.dt if np.isclose(dt, task.dt, rtol=1e-5, atol=0) else dt)
