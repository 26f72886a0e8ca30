"""The figure of the first trajectory of a data file, with one row for each channel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from ups_jax.data.inspection import Inspection
from ups_jax.data.sources import Grid
from ups_jax.data.sources.points import ScatteredSource
from ups_jax.evaluation.plots.fields import (
    FIELD_MAP,
    add_colour_bar,
    draw_snapshot,
    draw_space_time,
    field_limits,
    middle_plane,
    save_png,
    scatter_points,
)

_SNAPSHOTS, _DPI = 5, 100


def write_picture(inspection: Inspection, path: Path) -> None:
    """Write a PNG of the first trajectory of a data file.

    Fields with one space axis are drawn over time, others as a few snapshots. For a steady task, the input fields
    are drawn first.

    Raises:
        StorageError: The file cannot be written.
    """
    source, grid, first = inspection.source, inspection.source.grid, np.zeros(1, int)
    over_time = len(grid.shape) == 1 and not isinstance(source, ScatteredSource)
    frames = np.arange(source.frames)
    if not over_time:
        frames = np.unique(np.linspace(0, source.frames - 1, _SNAPSHOTS).astype(np.int64))
    # Frame by frame, because a window has evenly spaced frames.
    values = np.concatenate([source.read(first, np.array([[frame]]))[0] for frame in frames])
    names = [channel.name for channel in inspection.channels]
    if isinstance(source, ScatteredSource):
        positions, values = _positions_and_values(source, grid, names, values)
    else:
        values = np.concatenate([np.repeat(source.read_input_fields(first), len(values), axis=0), values], axis=-1)
        names = [*(channel.name for channel in inspection.inputs), *names]
    columns = 1 if over_time else len(frames)
    figure = Figure(figsize=(max(6.0, 3.2 * columns), 2.8 * len(names)), layout="constrained")
    rows = figure.subplots(len(names), columns, squeeze=False)
    for row, name, channel in zip(rows, names, np.moveaxis(values, -1, 0), strict=True):
        field = channel if isinstance(source, ScatteredSource) else middle_plane(grid, channel)
        finite_values = field[np.isfinite(field)]
        limits = field_limits(finite_values if finite_values.size else np.zeros(1))
        if over_time:
            draw_space_time(row[0], grid, grid.start + grid.dt * frames, field, FIELD_MAP, limits)
            row[0].set_title(f"{name}, trajectory 0")
        for index, axis in enumerate(() if over_time else row):
            if isinstance(source, ScatteredSource):
                scatter_points(axis, positions[index], field[index], FIELD_MAP, limits)
            else:
                draw_snapshot(axis, grid, field[index], FIELD_MAP, limits)
            axis.set_title(f"{name}, t = {grid.start + grid.dt * frames[index]:g}" if source.frames > 1 else name)
        add_colour_bar(figure, row.tolist(), FIELD_MAP, limits, name)
    save_png(figure, path, _DPI)


def _positions_and_values(
    source: ScatteredSource, grid: Grid, names: Sequence[str], fields: Float[np.ndarray, "t p c"]
) -> tuple[Float[np.ndarray, "t q d"], Float[np.ndarray, "t q c"]]:
    """Return positions and values of the points of the first trajectory at each time, without padding points."""
    points = source.points(np.zeros(1, int))
    is_point = points.mask[0] > 0
    point_fields = fields[:, is_point]
    if points.coords.shape[-1]:
        coords = points.coords[0, is_point]
        return np.broadcast_to(coords, (len(fields), *coords.shape)), point_fields
    position_channels = [names.index(name) for name in grid.axes if name in names]
    return point_fields[..., position_channels], point_fields
