"""A picture of a data file: one trajectory, a row for each channel."""

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

    The given fields of a steady solution come first; points are dots. Raises StorageError where the picture cannot be
    written.
    """
    source, grid, first = found.source, found.source.grid, np.zeros(1, int)
    over_time = len(grid.shape) == 1 and not isinstance(source, ScatteredSource)
    frames = np.arange(source.frames)
    if not over_time:
        frames = np.unique(np.linspace(0, source.frames - 1, _SNAPSHOTS).astype(np.int64))
    # One by one: windows are of evenly spaced frames.
    values = np.concatenate([source.windows(first, np.array([[frame]]))[0] for frame in frames])
    names = [channel.name for channel in found.channels]
    if isinstance(source, ScatteredSource):
        where, values = _places(source, grid, names, values)
    else:
        values = np.concatenate([np.repeat(source.inputs(first), len(values), axis=0), values], axis=-1)
        names = [*(channel.name for channel in found.inputs), *names]
    across = 1 if over_time else len(frames)
    figure = Figure(figsize=(max(6.0, 3.2 * across), 2.8 * len(names)), layout="constrained")
    rows = figure.subplots(len(names), across, squeeze=False)
    for row, name, channel in zip(rows, names, np.moveaxis(values, -1, 0), strict=True):
        shown = channel if isinstance(source, ScatteredSource) else middle_plane(grid, channel)
        finite = shown[np.isfinite(shown)]
        limits = field_limits(finite if finite.size else np.zeros(1))
        if over_time:
            space_time(row[0], grid, grid.start + grid.dt * frames, shown, FIELD_MAP, limits)
            row[0].set_title(f"{name}, trajectory 0")
        for number, axis in enumerate(() if over_time else row):
            if isinstance(source, ScatteredSource):
                dots(axis, where[number], shown[number], FIELD_MAP, limits)
            else:
                snapshot(axis, grid, shown[number], FIELD_MAP, limits)
            axis.set_title(f"{name}, t = {grid.start + grid.dt * frames[number]:g}" if source.frames > 1 else name)
        colour_bar(figure, row.tolist(), FIELD_MAP, limits, name)
    save_png(figure, path, _DPI)


def _places(
    source: ScatteredSource, grid: Grid, names: Sequence[str], fields: Float[np.ndarray, "t p c"]
) -> tuple[Float[np.ndarray, "t q d"], Float[np.ndarray, "t q c"]]:
    """Where the points of the first trajectory are at each time, and its fields there, without rows' fillings."""
    places = source.points(np.zeros(1, int))
    there = places.mask[0] > 0
    if places.coords.shape[-1]:
        return np.broadcast_to(places.coords[0, there], (len(fields), *places.coords[0, there].shape)), fields[:, there]
    moving = [names.index(name) for name in grid.axes if name in names]
    return fields[:, there][..., moving], fields[:, there]
