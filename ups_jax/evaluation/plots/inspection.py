"""A picture of a data file: one trajectory, a row for each channel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ups_jax.data.inspection import Inspection
from ups_jax.data.sources.points import Scattered
from ups_jax.evaluation.plots.fields import (
    FIELD_MAP,
    colour_bar,
    dots,
    field_limits,
    middle_plane,
    save_png,
    snapshot,
    space_time,
)

_SNAPSHOTS, _DPI = 5, 100


def write_picture(found: Inspection, path: Path) -> None:
    """Write the first trajectory of the file as a PNG: with one space axis over time, else some frames of it.

    The given fields of a steady solution come first. Raises StorageError where the picture cannot be written.
    """
    source, grid = found.source, found.source.grid
    if isinstance(source, Scattered):
        save_png(_dots(found, source), path, _DPI)
        return
    frames = np.arange(source.frames)
    if len(grid.shape) > 1:
        frames = np.unique(np.linspace(0, source.frames - 1, _SNAPSHOTS).astype(np.int64))
    # One by one: windows are of evenly spaced frames.
    fields = np.concatenate([source.windows(np.zeros(1, int), np.array([[frame]]))[0] for frame in frames])
    given = np.repeat(source.inputs(np.zeros(1, int)), len(fields), axis=0)
    values = np.concatenate([given, fields], axis=-1)
    names = [channel.name for channel in (*found.inputs, *found.channels)]
    across = 1 if len(grid.shape) == 1 else len(frames)
    figure = Figure(figsize=(max(6.0, 3.2 * across), 2.8 * len(names)), layout="constrained")
    rows = figure.subplots(len(names), across, squeeze=False)
    for row, name, channel in zip(rows, names, np.moveaxis(values, -1, 0), strict=True):
        plane = middle_plane(grid, channel)
        limits = field_limits(plane[np.isfinite(plane)] if np.isfinite(plane).any() else np.zeros(1))
        if len(grid.shape) == 1:
            space_time(row[0], grid, grid.start + grid.dt * frames, plane, FIELD_MAP, limits)
            row[0].set_title(f"{name}, trajectory 0")
        else:
            for axis, frame, image in zip(row, frames, plane, strict=True):
                snapshot(axis, grid, image, FIELD_MAP, limits)
                axis.set_title(f"{name}, t = {grid.start + grid.dt * frame:g}" if source.frames > 1 else name)
        colour_bar(figure, row.tolist(), FIELD_MAP, limits, name)
    save_png(figure, path, _DPI)


def _dots(found: Inspection, source: Scattered) -> Figure:
    """The points of the first trajectory at some times; on one axis of space a curve of dots."""
    first = np.zeros(1, int)
    frames = np.unique(np.linspace(0, found.source.frames - 1, _SNAPSHOTS).astype(np.int64))
    fields = np.concatenate([found.source.windows(first, np.array([[frame]]))[0] for frame in frames])
    places = source.places(first)
    there, names = places.mask[0] > 0, [channel.name for channel in found.channels]
    grid = found.source.grid
    moving = [names.index(name) for name in grid.axes if name in names] if not places.coords.shape[-1] else []
    figure = Figure(figsize=(max(6.0, 3.2 * len(frames)), 2.8 * len(names)), layout="constrained")
    rows = figure.subplots(len(names), len(frames), squeeze=False)
    for row, name, channel in zip(rows, names, np.moveaxis(fields, -1, 0), strict=True):
        finite = channel[:, there][np.isfinite(channel[:, there])]
        limits = field_limits(finite if finite.size else np.zeros(1))
        for axis, number, frame in zip(row, range(len(frames)), frames, strict=True):
            where = fields[number][:, moving] if moving else places.coords[0]
            dots(axis, where[there], channel[number, there], FIELD_MAP, limits)
            axis.set_title(f"{name}, t = {grid.start + grid.dt * frame:g}")
        colour_bar(figure, row.tolist(), FIELD_MAP, limits, name)
    return figure
