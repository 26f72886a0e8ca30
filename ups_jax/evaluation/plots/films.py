"""Pictures and films of a file of predicted states, and the film of an evaluation.

Of a file the first row is drawn, beside the truth where that is known; of an evaluation the median trajectory.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import imageio.v3 as iio
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ups_jax.core.files import whole_file
from ups_jax.core.task import Task
from ups_jax.evaluation.plots.fields import (
    FIELD_MAP,
    Panel,
    colour_bar,
    comparison,
    field_limits,
    literal,
    middle_plane,
    picks,
    planes,
    snapshot,
    space_time,
)
from ups_jax.evaluation.result import TransientEvaluation, TaskEvaluation
from ups_jax.inference.state_file import channel_datasets

# A picture has no more columns, and a film of ten seconds no more frames.
_MOST_COLUMNS, _MOST_FRAMES, _RATE = 1000, 200, 20
# Its name in the folder of an evaluation's plots.
FILM = "film.gif"
_EVALUATION_FRAMES = 60


def write_images(
    states: Path, task: Task, kinds: Sequence[str], truth: Float[np.ndarray, "known *s c"] | None = None
) -> list[Path]:
    """`kinds` of png, gif and mp4, a file each and channel, beside `states`; `truth` from its first frame on.

    Raises StorageError where a file cannot be written.
    """
    written = []
    for channel, name in enumerate(channel_datasets(task)):
        end = "" if len(task.channels) == 1 else f"_{name}"
        for kind in kinds:
            path = states.with_name(f"{states.stem}{end}.{kind}")
            most = _MOST_COLUMNS if kind == "png" else _MOST_FRAMES
            time, panels = read_panels(states, task, channel, most, truth)
            with whole_file(path) as partial:
                WRITERS[kind](partial, task, time, panels)
            written.append(path)
    return written


def read_panels(
    states: Path, task: Task, channel: int, most: int, truth: Float[np.ndarray, "known *s c"] | None
) -> tuple[Float[np.ndarray, " t"], list[Panel]]:
    """Times and panels of the first row, no more than `most` frames evenly chosen; NaN where no truth is known."""
    with h5py.File(states, "r", locking=False) as file:
        time = file["t-coordinate"][:]
        stride = -(-len(time) // most)
        time = time[::stride]
        prediction = middle_plane(task, file[channel_datasets(task)[channel]][0, ::stride])
    name = task.channels[channel]
    if truth is None:
        return time, [Panel(title=name, values=prediction, colours=FIELD_MAP, norm=field_limits(prediction))]
    return time, _beside(name, middle_plane(task, truth[::stride, ..., channel])[: len(time)], prediction)


def picture(task: Task, time: Float[np.ndarray, " t"], panels: Sequence[Panel]) -> Figure:
    """Of one space axis an image over time and space a panel, of more a row of snapshots a panel."""
    if len(task.shape) == 1:
        figure = Figure(figsize=(4.6 * len(panels) + 0.8, 3.6), layout="constrained")
        for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            space_time(axis, task, time, panel.values, panel.colours, panel.norm)
            axis.set_title(panel.title, fontsize=10)
            colour_bar(figure, axis, panel.colours, panel.norm, "")
        return figure
    frames = picks(len(time))
    figure = Figure(figsize=(2.5 * len(frames) + 1, 2.6 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), len(frames), sharex=True, sharey=True, squeeze=False)
    for row, panel in zip(grid, panels, strict=True):
        for axis, frame in zip(row, frames, strict=True):
            snapshot(axis, task, panel.values[frame], panel.colours, panel.norm)
            axis.label_outer()
        colour_bar(figure, list(row), panel.colours, panel.norm, panel.title)
    for axis, frame in zip(grid[0], frames, strict=True):
        axis.set_title(f"t = {time[frame]:.3g}", fontsize=10)
    return figure


def film(
    task: Task, time: Float[np.ndarray, " t"], panels: Sequence[Panel]
) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    """The frames of a film: curves of one space axis, snapshots side by side of more. Sizes are multiples of 16."""
    if len(task.shape) == 1:
        figure, show = _curves(task, [panel for panel in panels if panel.colours == FIELD_MAP])
    else:
        figure, show = _snapshots(task, panels)
    canvas = FigureCanvasAgg(figure)
    for index, moment in enumerate(time):
        show(index)
        figure.suptitle(f"{task.name}, t = {moment:.3g}", fontsize=11)
        if index == 0:
            literal(figure)
        canvas.draw()
        yield np.asarray(canvas.buffer_rgba())[..., :3].copy()


def write_film(path: Path, measured: TaskEvaluation) -> bool:
    """A GIF of the median test trajectory's first channel; False for a task without time, or of points. Raises
    `StorageError`."""
    if not isinstance(measured, TransientEvaluation) or measured.task.scattered:
        return False
    task = measured.task
    example = next(item for item in measured.examples if item.label == "median")
    truth, prediction = planes(task, example, 0)
    stride = -(-len(truth) // _EVALUATION_FRAMES)
    panels = _beside(task.channels[0], truth[::stride], prediction[::stride])
    with whole_file(path) as partial:
        _gif(partial, task, example.time[::stride], panels)
    return True


def _beside(name: str, truth: Float[np.ndarray, "known *p"], prediction: Float[np.ndarray, "t *p"]) -> list[Panel]:
    known, predicted, error = comparison(truth, prediction, (f"{name}, truth", f"{name}, predicted"))
    return [predicted, known, error]


def _curves(task: Task, panels: Sequence[Panel]) -> tuple[Figure, Callable[[int], None]]:
    figure = Figure(figsize=(6.4, 4.0), dpi=100, layout="constrained")
    axis = figure.add_subplot()
    centres = task.origin[0] + task.spacing[0] * np.arange(task.shape[0])
    curves = [
        axis.plot(centres, panel.values[0], style, lw=2, label=panel.title)[0]
        for panel, style in zip(panels, ("-", "k:"), strict=False)
    ]
    limits = np.array([panels[-1].norm.vmin, panels[-1].norm.vmax], float)
    room = 0.05 * (np.ptp(limits) or 1.0)
    axis.set(xlabel=f"position {task.axes[0]}", ylim=(limits[0] - room, limits[1] + room))
    axis.legend(frameon=False, loc="upper right")

    def show(index: int) -> None:
        for curve, panel in zip(curves, panels, strict=False):
            curve.set_ydata(panel.values[index])

    return figure, show


def _snapshots(task: Task, panels: Sequence[Panel]) -> tuple[Figure, Callable[[int], None]]:
    figure = Figure(figsize=(4.8 * len(panels), 4.0), dpi=100, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        snapshot(axis, task, panel.values[0], panel.colours, panel.norm)
        axis.set_title(panel.title, fontsize=10)
        colour_bar(figure, axis, panel.colours, panel.norm, "")

    def show(index: int) -> None:
        for axis, panel in zip(axes, panels, strict=True):
            axis.images[0].set_data(np.ma.masked_invalid(panel.values[index].T))

    return figure, show


def _png(path: Path, task: Task, time: Float[np.ndarray, " t"], panels: Sequence[Panel]) -> None:
    drawn = picture(task, time, panels)
    literal(drawn)
    drawn.savefig(path, dpi=150, format="png")


def _gif(path: Path, task: Task, time: Float[np.ndarray, " t"], panels: Sequence[Panel]) -> None:
    iio.imwrite(path, np.stack(list(film(task, time, panels))), extension=".gif", duration=1000 / _RATE, loop=0)


def _mp4(path: Path, task: Task, time: Float[np.ndarray, " t"], panels: Sequence[Panel]) -> None:
    frames = np.stack(list(film(task, time, panels)))
    with warnings.catch_warnings():
        # The encoder is a program of its own, which a fork only starts: no thread of JAX is missed there.
        warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
        # The encoder goes by the file's name, which is another one until the film is whole.
        iio.imwrite(path, frames, extension=".mp4", fps=_RATE, output_params=["-f", "mp4"])


WRITERS: dict[str, Callable[[Path, Task, np.ndarray, Sequence[Panel]], Any]] = {"png": _png, "gif": _gif, "mp4": _mp4}
