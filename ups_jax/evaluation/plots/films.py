"""Figures and films of a file of predicted states, and the film of an evaluation.

A file is represented by its first trajectory, with the truth if it is available; an evaluation by its median
trajectory.
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

from ups_jax.core.files import atomic_file
from ups_jax.core.task import Task
from ups_jax.evaluation.plots.fields import (
    FIELD_MAP,
    Panel,
    add_colour_bar,
    comparison_panels,
    disable_math_text,
    draw_snapshot,
    draw_space_time,
    field_limits,
    middle_plane,
    snapshot_frames,
    truth_and_prediction,
)
from ups_jax.evaluation.result import TaskEvaluation, TransientEvaluation
from ups_jax.inference.state_file import channel_dataset_names

_MAX_COLUMNS = 1000
# Ten seconds at the frame rate.
_MAX_FRAMES, _FRAMES_PER_SECOND = 200, 20
# File name of the film in the folder of an evaluation's plots.
FILM_NAME = "film.gif"
_MAX_EVALUATION_FRAMES = 60


def write_images(
    states: Path, task: Task, kinds: Sequence[str], truth: Float[np.ndarray, "t_truth *s c"] | None = None
) -> list[Path]:
    """Draw the first trajectory in a file of predicted states as images and films beside it; return their paths.

    Args:
        states: The HDF5 file, written by `StateFile`.
        task: The task of the model.
        kinds: File formats of `WRITERS`; each channel gets a file of each format.
        truth: True frames in physical units, from the first frame of the file on; they may end earlier.

    Raises:
        StorageError: A file cannot be written.
    """
    written = []
    for channel, name in enumerate(channel_dataset_names(task)):
        suffix = "" if len(task.channels) == 1 else f"_{name}"
        for kind in kinds:
            path = states.with_name(f"{states.stem}{suffix}.{kind}")
            max_frames = _MAX_COLUMNS if kind == "png" else _MAX_FRAMES
            time, panels = read_panels(states, task, channel, max_frames, truth)
            with atomic_file(path) as partial:
                WRITERS[kind](partial, task, time, panels)
            written.append(path)
    return written


def read_panels(
    states: Path, task: Task, channel: int, max_frames: int, truth: Float[np.ndarray, "t_truth *s c"] | None
) -> tuple[Float[np.ndarray, " t"], list[Panel]]:
    """Return the frame times and the panels to draw for the first trajectory in a file of predicted states.

    Args:
        states: The HDF5 file.
        max_frames: Largest number of frames; longer trajectories are subsampled evenly.
        truth: True frames in physical units, padded with NaN if they end earlier; if None, only the prediction has a
            panel.
    """
    with h5py.File(states, "r", locking=False) as file:
        time = file["t-coordinate"][:]
        stride = -(-len(time) // max_frames)
        time = time[::stride]
        prediction = middle_plane(task, file[channel_dataset_names(task)[channel]][0, ::stride])
    name = task.channels[channel]
    if truth is None:
        return time, [Panel(title=name, values=prediction, colours=FIELD_MAP, norm=field_limits(prediction))]
    return time, _film_panels(name, middle_plane(task, truth[::stride, ..., channel])[: len(time)], prediction)


def panels_figure(task: Task, time: Float[np.ndarray, " t"], panels: Sequence[Panel]) -> Figure:
    """Return a figure of panels: in 1-D images over time and space, otherwise one row of snapshots per panel."""
    if len(task.shape) == 1:
        figure = Figure(figsize=(4.6 * len(panels) + 0.8, 3.6), layout="constrained")
        for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            draw_space_time(axis, task, time, panel.values, panel.colours, panel.norm)
            axis.set_title(panel.title, fontsize=10)
            add_colour_bar(figure, axis, panel.colours, panel.norm, "")
        return figure
    frames = snapshot_frames(len(time))
    figure = Figure(figsize=(2.5 * len(frames) + 1, 2.6 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), len(frames), sharex=True, sharey=True, squeeze=False)
    for row, panel in zip(grid, panels, strict=True):
        for axis, frame in zip(row, frames, strict=True):
            draw_snapshot(axis, task, panel.values[frame], panel.colours, panel.norm)
            axis.label_outer()
        add_colour_bar(figure, list(row), panel.colours, panel.norm, panel.title)
    for axis, frame in zip(grid[0], frames, strict=True):
        axis.set_title(f"t = {time[frame]:.3g}", fontsize=10)
    return figure


def film_frames(
    task: Task, time: Float[np.ndarray, " t"], panels: Sequence[Panel]
) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    """Yield the frames of a film as RGB images: curves in 1-D, otherwise snapshots side by side.

    Width and height are multiples of 16, as video encoders need them.
    """
    if len(task.shape) == 1:
        figure, show = _curves_animation(task, [panel for panel in panels if panel.colours == FIELD_MAP])
    else:
        figure, show = _snapshots_animation(task, panels)
    canvas = FigureCanvasAgg(figure)
    for index, moment in enumerate(time):
        show(index)
        figure.suptitle(f"{task.name}, t = {moment:.3g}", fontsize=11)
        if index == 0:
            disable_math_text(figure)
        canvas.draw()
        yield np.asarray(canvas.buffer_rgba())[..., :3].copy()


def write_film(path: Path, evaluation: TaskEvaluation) -> bool:
    """Write a GIF of the first channel of the median trajectory, and return whether a film was written.

    There is no film of a steady task or of a point cloud.

    Raises:
        StorageError: The file cannot be written.
    """
    if not isinstance(evaluation, TransientEvaluation) or evaluation.task.scattered:
        return False
    task = evaluation.task
    example = next(item for item in evaluation.examples if item.label == "median")
    truth, prediction = truth_and_prediction(task, example, 0)
    stride = -(-len(truth) // _MAX_EVALUATION_FRAMES)
    panels = _film_panels(task.channels[0], truth[::stride], prediction[::stride])
    with atomic_file(path) as partial:
        _write_gif(partial, task, example.time[::stride], panels)
    return True


def _film_panels(
    name: str, truth: Float[np.ndarray, "t_truth *p"], prediction: Float[np.ndarray, "t *p"]
) -> list[Panel]:
    """Return the panels of prediction, truth and error of the channel `name`."""
    truth_panel, predicted_panel, error_panel = comparison_panels(
        truth, prediction, (f"{name}, truth", f"{name}, predicted")
    )
    return [predicted_panel, truth_panel, error_panel]


def _curves_animation(task: Task, panels: Sequence[Panel]) -> tuple[Figure, Callable[[int], None]]:
    """Return a figure with one curve per panel, and a function that updates the figure to a frame index."""
    figure = Figure(figsize=(6.4, 4.0), dpi=100, layout="constrained")
    axis = figure.add_subplot()
    centres = task.origin[0] + task.spacing[0] * np.arange(task.shape[0])
    curves = [
        axis.plot(centres, panel.values[0], style, lw=2, label=panel.title)[0]
        for panel, style in zip(panels, ("-", "k:"), strict=False)
    ]
    limits = np.array([panels[-1].norm.vmin, panels[-1].norm.vmax], float)
    margin = 0.05 * (np.ptp(limits) or 1.0)
    axis.set(xlabel=f"position {task.axes[0]}", ylim=(limits[0] - margin, limits[1] + margin))
    axis.legend(frameon=False, loc="upper right")

    def show(index: int) -> None:
        for curve, panel in zip(curves, panels, strict=False):
            curve.set_ydata(panel.values[index])

    return figure, show


def _snapshots_animation(task: Task, panels: Sequence[Panel]) -> tuple[Figure, Callable[[int], None]]:
    """Return a figure of snapshots side by side, and a function that updates the figure to a frame index."""
    figure = Figure(figsize=(4.8 * len(panels), 4.0), dpi=100, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        draw_snapshot(axis, task, panel.values[0], panel.colours, panel.norm)
        axis.set_title(panel.title, fontsize=10)
        add_colour_bar(figure, axis, panel.colours, panel.norm, "")

    def show(index: int) -> None:
        for axis, panel in zip(axes, panels, strict=True):
            axis.images[0].set_data(np.ma.masked_invalid(panel.values[index].T))

    return figure, show


def _write_png(path: Path, task: Task, time: Float[np.ndarray, " t"], panels: Sequence[Panel]) -> None:
    """Write a figure of the panels as PNG."""
    figure = panels_figure(task, time, panels)
    disable_math_text(figure)
    figure.savefig(path, dpi=150, format="png")


def _write_gif(path: Path, task: Task, time: Float[np.ndarray, " t"], panels: Sequence[Panel]) -> None:
    """Write a film of the panels as GIF."""
    frames = np.stack(list(film_frames(task, time, panels)))
    iio.imwrite(path, frames, extension=".gif", duration=1000 / _FRAMES_PER_SECOND, loop=0)


def _write_mp4(path: Path, task: Task, time: Float[np.ndarray, " t"], panels: Sequence[Panel]) -> None:
    """Write a film of the panels as MP4."""
    frames = np.stack(list(film_frames(task, time, panels)))
    with warnings.catch_warnings():
        # The fork only starts the encoder, an external program, which does not need the threads of JAX.
        warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
        # The format is explicit, because the temporary file has another suffix.
        iio.imwrite(path, frames, extension=".mp4", fps=_FRAMES_PER_SECOND, output_params=["-f", "mp4"])


WRITERS: dict[str, Callable[[Path, Task, np.ndarray, Sequence[Panel]], Any]] = {
    "png": _write_png,
    "gif": _write_gif,
    "mp4": _write_mp4,
}
