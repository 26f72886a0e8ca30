"""A picture of a data file: one trajectory, a row for each channel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ups_jax.data.inspection import Inspection
from ups_jax.evaluation.images import FIELD_MAP, colour_bar, field_limits, middle_plane, snapshot, space_time
from ups_jax.files import storage_error

_SNAPSHOTS = 5


def write_picture(found: Inspection, path: Path) -> None:
    """Write the first trajectory of the file as a PNG: with one space axis over time, else some frames of it.

    The given fields of a steady solution come first. Raises StorageError where the picture cannot be written.
    """
    source, grid = found.source, found.source.grid
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
    FigureCanvasAgg(figure)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=100)
    except OSError as error:
        raise storage_error(path, error) from None
