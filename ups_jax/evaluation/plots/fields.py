"""Figures of fields on grids and point clouds: truth, prediction and error; and the functions that draw them.

`figures` draws the other figures of an evaluation, `films` the figures and films of predicted states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.text import Text

from ups_jax.core.files import atomic_file
from ups_jax.core.task import Task
from ups_jax.data.sources import Grid
from ups_jax.evaluation.result import Example, PointEvaluation, SteadyEvaluation, SteadyExample, TransientEvaluation

# Colour maps that are readable with colour blindness; grey for values that are not finite.
FIELD_MAP, INPUT_MAP, ERROR_MAP, NONFINITE_COLOUR = "viridis", "cividis", "RdBu_r", "#BBBBBB"
_SNAPSHOTS = 5


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One field to draw.

    Attributes:
        title: Title of the panel.
        values: The field, over time if the task is transient.
        colours: Name of the colour map.
        norm: Colour limits.
    """

    title: str
    values: Float[np.ndarray, "*p"]
    colours: str
    norm: Normalize


def fields_figure(evaluation: TransientEvaluation, channel: int = 0) -> Figure:
    """Return a figure of truth, prediction and error of the best, median and worst trajectory on a grid.

    In 1-D, fields are drawn over time and space; in 2-D, as snapshots; in 3-D, as snapshots of the middle plane.
    Truth and prediction share their colour limits; the limits of the error are symmetric.
    """
    task = evaluation.task

    def draw(axis: Axes, panel: Panel, frame: int) -> None:
        draw_snapshot(axis, task, panel.values[frame], panel.colours, panel.norm)
        axis.label_outer()

    figure = Figure(figsize=(11, 8.6) if len(task.shape) == 1 else (11.5, 20), layout="constrained")
    subfigures = figure.subfigures(len(evaluation.examples), 1, squeeze=False).ravel()
    for subfigure, example in zip(subfigures, evaluation.examples, strict=True):
        panels = comparison_panels(*truth_and_prediction(task, example, channel))
        if len(task.shape) == 1:
            axes = subfigure.subplots(1, 3).tolist()
            draw_comparison_row(subfigure, axes, task, example.time, panels, task.channels[channel])
        else:
            _draw_snapshot_rows(subfigure, example.time, panels, task.channels[channel], draw)
        subfigure.suptitle(f"{task.name}, {example_title(example)}", fontsize=11)
    return figure


def points_figure(evaluation: PointEvaluation, channel: int = 0) -> Figure:
    """Return a figure of truth, prediction and error of the median trajectory on a point cloud.

    Moving points are drawn at their true positions; in 3-D they are projected along the last axis.

    Args:
        evaluation: The evaluation of a transient task on a point cloud.
        channel: Index of the channel.
    """
    task = evaluation.task
    example = next(item for item in evaluation.examples if item.label == "median")
    is_point = example.point_arrays["point_mask"] > 0
    truth, prediction = (
        values[:, is_point, channel].astype(np.float64) for values in (example.truth, example.prediction)
    )
    positions = _point_positions(task, example.point_arrays, example.truth)[:, is_point]

    def draw(axis: Axes, panel: Panel, frame: int) -> None:
        scatter_points(axis, positions[frame], panel.values[frame], panel.colours, panel.norm)

    figure = Figure(figsize=(2.6 * len(snapshot_frames(len(truth))) + 1, 7.8), layout="constrained")
    _draw_snapshot_rows(figure, example.time, comparison_panels(truth, prediction), task.channels[channel], draw)
    figure.suptitle(f"{task.name}, {example_title(example)}", fontsize=11)
    return figure


def solutions_figure(evaluation: SteadyEvaluation, channel: int = 0) -> Figure:
    """Return a figure of input fields, truth, prediction and error of the best, median and worst steady solution.

    Each solution is one row; in 3-D, its middle plane is drawn. Truth and prediction share their colour limits; the
    limits of the error are symmetric.
    """
    task, name = evaluation.task, evaluation.task.channels[channel]
    columns = len(task.inputs) + 3
    figure = Figure(figsize=(3.5 * columns, 3.6 * len(evaluation.examples)), layout="constrained")
    subfigures = figure.subfigures(len(evaluation.examples), 1, squeeze=False).ravel()
    for subfigure, example in zip(subfigures, evaluation.examples, strict=True):
        input_fields = [middle_plane(task, example.inputs[..., index]) for index in range(len(task.inputs))]
        panels = [
            *(
                Panel(title=item.name, values=field, colours=INPUT_MAP, norm=field_limits(field))
                for item, field in zip(task.inputs, input_fields, strict=True)
            ),
            *comparison_panels(*truth_and_prediction(task, example, channel)),
        ]
        # Truth and prediction share a colour bar.
        labels = [*(item.name for item in task.inputs), None, name, f"error of {name}"]
        for axis, panel, label in zip(subfigure.subplots(1, columns), panels, labels, strict=True):
            _draw_steady_panel(axis, task, panel)
            axis.set_title(panel.title, fontsize=10)
            if label is not None:
                add_colour_bar(subfigure, axis, panel.colours, panel.norm, label)
        subfigure.suptitle(f"{task.name}, {example_title(example)}", fontsize=11)
    return figure


def comparison_panels(
    truth: Float[np.ndarray, "t_truth *p"],
    prediction: Float[np.ndarray, "t *p"],
    titles: Sequence[str] = ("truth", "prediction"),
) -> tuple[Panel, Panel, Panel]:
    """Return three panels: truth and prediction with the same colour limits, and their difference.

    Args:
        truth: True fields by time; if they end before the prediction, they are padded with NaN.
        prediction: Predicted fields by time.
        titles: Titles of the panels of truth and prediction.
    """
    padded_truth = np.full_like(prediction, np.nan)
    padded_truth[: len(truth)] = truth
    limits, bounds = field_limits(truth), error_limits(truth, prediction[: len(truth)])
    return (
        Panel(title=titles[0], values=padded_truth, colours=FIELD_MAP, norm=limits),
        Panel(title=titles[1], values=prediction, colours=FIELD_MAP, norm=limits),
        Panel(title="prediction − truth", values=prediction - padded_truth, colours=ERROR_MAP, norm=bounds),
    )


def draw_comparison_row(
    figure: Figure | SubFigure,
    axes: Sequence[Axes],
    task: Task,
    time: Float[np.ndarray, " t"],
    panels: Sequence[Panel],
    name: str,
    title_size: int = 10,
) -> None:
    """Draw truth, prediction and error of a channel side by side.

    In 1-D the fields are drawn over time and space, otherwise at the last time.

    Args:
        figure: The figure that gets the colour bars.
        axes: Three axes.
        task: The task, which has the grid.
        time: Times of the frames.
        panels: The panels from `comparison_panels`.
        name: Name of the channel.
        title_size: Font size of the titles.
    """
    for axis, panel in zip(axes, panels, strict=True):
        title = panel.title
        if len(task.shape) == 1:
            draw_space_time(axis, task, time, panel.values, panel.colours, panel.norm)
        else:
            draw_snapshot(axis, task, panel.values[-1], panel.colours, panel.norm)
            title = f"{title}, t = {time[-1]:.3g}"
        axis.set_title(title, fontsize=title_size)
    for axis in axes[1:]:
        axis.set_ylabel("")
    _add_comparison_colour_bars(figure, axes[1], axes[2], panels, name)


def draw_space_time(
    axes: Axes,
    grid: Task | Grid,
    times: Float[np.ndarray, " t"],
    field: Float[np.ndarray, "t x"],
    colour_map: str,
    colour_limits: Normalize,
) -> None:
    """Draw a 1-D field as an image over time and space; values that are not finite are grey."""
    points = grid.origin[0] + grid.spacing[0] * np.arange(grid.shape[0])
    image = np.ma.masked_invalid(field.T)
    axes.set_facecolor(NONFINITE_COLOUR)
    axes.pcolormesh(times, points, image, cmap=colour_map, norm=colour_limits, shading="nearest", rasterized=True)
    axes.set(xlabel="time t", ylabel=f"position {grid.axes[0]}")


def draw_snapshot(
    axes: Axes, grid: Task | Grid, field: Float[np.ndarray, "x y"], colour_map: str, colour_limits: Normalize
) -> None:
    """Draw a 2-D field at one time; the first axis of space is horizontal, and values that are not finite are grey."""
    edges = [
        (origin - 0.5 * step, origin + (size - 0.5) * step)
        for origin, step, size in zip(grid.origin, grid.spacing, grid.shape, strict=True)
    ]
    axes.set_facecolor(NONFINITE_COLOUR)
    image, extent = np.ma.masked_invalid(field.T), (*edges[0], *edges[1])
    axes.imshow(image, origin="lower", extent=extent, cmap=colour_map, norm=colour_limits, interpolation="nearest")
    axes.set(xlabel=grid.axes[0], ylabel=grid.axes[1])


def disable_math_text(figure: Figure) -> None:
    """Disable math text for all texts of a figure that contain a dollar sign, such as names of tasks and channels.

    Matplotlib would interpret text between two dollar signs as a formula, and fail for an invalid one. Call this before
    the figure is first drawn: drawing creates the tick labels, which need math text.
    """
    for text in figure.findobj(Text):
        if isinstance(text, Text) and "$" in text.get_text():
            text.set_parse_math(False)


def add_colour_bar(
    figure: Figure | SubFigure, axes: Axes | Sequence[Axes], colours: str, norm: Normalize, label: str
) -> None:
    """Add one colour bar for the images on one or several axes.

    Args:
        figure: The figure of the axes.
        colours: Name of the colour map.
        norm: Colour limits.
    """
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, pad=0.02, aspect=25)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)


def truth_and_prediction(
    task: Task, example: Example | SteadyExample, channel: int
) -> tuple[Float[np.ndarray, "t *p"], Float[np.ndarray, "t *p"]]:
    """Return truth and prediction of one channel in float64; in 3-D only the middle slice along the last axis."""
    return middle_plane(task, example.truth[..., channel]), middle_plane(task, example.prediction[..., channel])


def middle_plane(task: Task | Grid, values: Float[np.ndarray, "... *s"]) -> Float[np.ndarray, "... *p"]:
    """Return a field in float64; in 3-D only the middle slice along the last axis.

    In float64 the difference of two diverged float32 values does not overflow.
    """
    float64_values = values.astype(np.float64)
    return float64_values[..., task.shape[2] // 2] if len(task.shape) == 3 else float64_values


def field_limits(truth: np.ndarray) -> Normalize:
    """Return the range of the truth as colour limits; a diverged prediction then saturates the colours."""
    return Normalize(float(truth.min()), float(truth.max()))


def error_limits(truth: np.ndarray, prediction: np.ndarray) -> Normalize:
    """Return colour limits -b and b, where b is the largest error, but at most the range (max - min) of the truth.

    Without this bound, a diverged prediction would make the errors of all other frames invisible.
    """
    error = np.abs(prediction - truth)
    # Without an error, any bound gives a uniform picture; this one has the unit of the truth.
    exact = float(np.abs(truth).max()) or 1.0
    bound = min(float(error[np.isfinite(error)].max(initial=0.0)), float(np.ptp(truth)) or np.inf) or exact
    return Normalize(-bound, bound)


def example_title(example: Example | SteadyExample) -> str:
    """Return the title of an example: its rank among the evaluated ones, its index, its coefficients and its nRMSE."""
    kind, metric = ("solution", "nRMSE") if isinstance(example, SteadyExample) else ("trajectory", "rollout nRMSE")
    parts = [f"{example.label} test {kind} (id {example.id})"]
    parts += [f"{name} = {value:.3g}" for name, value in example.coefficients.items()]
    return ", ".join([*parts, f"{metric} {example.nrmse:.3g}"])


def snapshot_frames(frame_count: int) -> list[int]:
    """Return the indices of at most five frames, evenly spaced from the first to the last."""
    return [int(frame) for frame in np.unique(np.linspace(0, frame_count - 1, _SNAPSHOTS).round())]


def save_png(figure: Figure, path: Path, dpi: int) -> None:
    """Write a figure as PNG atomically.

    Raises:
        StorageError: The file cannot be written.
    """
    disable_math_text(figure)
    with atomic_file(path) as partial:
        figure.savefig(partial, dpi=dpi, format="png")


def scatter_points(
    axis: Axes, positions: Float[np.ndarray, "p d"], values: Float[np.ndarray, " p"], colours: str, norm: Normalize
) -> None:
    """Draw a field on a point cloud as coloured dots; points with a value that is not finite are omitted.

    In 1-D, the value is also the height of the dot.

    Args:
        positions: Positions of the points.
        values: The field at the points.
        colours: Name of the colour map.
        norm: Colour limits.
    """
    finite_values = np.where(np.isfinite(values), values, np.nan)
    size = max(1.0, min(14.0, 4000 / max(1, len(values))))
    height = positions[:, 1] if positions.shape[1] > 1 else finite_values
    axis.scatter(
        positions[:, 0], height, c=finite_values, s=size, cmap=colours, norm=norm, linewidths=0, rasterized=True
    )
    if positions.shape[1] > 1:
        axis.set_aspect("equal")


def _draw_snapshot_rows(
    figure: Figure | SubFigure,
    time: Float[np.ndarray, " t"],
    panels: Sequence[Panel],
    name: str,
    draw: Callable[[Axes, Panel, int], None],
) -> None:
    """Draw three rows of snapshots (truth, prediction, error), each snapshot by `draw(axes, panel, frame index)`."""
    frames = snapshot_frames(len(time))
    axes = figure.subplots(3, len(frames), sharex=True, sharey=True, squeeze=False)
    for row, panel, title in zip(axes, panels, ("truth", "prediction", "error"), strict=True):
        for axis, frame in zip(row, frames, strict=True):
            draw(axis, panel, frame)
        row[0].set_ylabel(f"{title}\n{row[0].get_ylabel()}".rstrip())
    for axis, frame in zip(axes[0], frames, strict=True):
        axis.set_title(f"t = {time[frame]:.3g}", fontsize=10)
    _add_comparison_colour_bars(figure, list(axes[:2].ravel()), list(axes[2]), panels, name)


def _add_comparison_colour_bars(
    figure: Figure | SubFigure,
    field_axes: Axes | Sequence[Axes],
    error_axes: Axes | Sequence[Axes],
    panels: Sequence[Panel],
    name: str,
) -> None:
    """Add one colour bar for truth and prediction, and another for the error of the channel `name`."""
    add_colour_bar(figure, field_axes, panels[1].colours, panels[1].norm, name)
    add_colour_bar(figure, error_axes, panels[2].colours, panels[2].norm, f"error of {name}")


def _draw_steady_panel(axis: Axes, task: Task, panel: Panel) -> None:
    """Draw a steady field: as a curve in 1-D, otherwise as an image."""
    if panel.values.ndim == 2:
        draw_snapshot(axis, task, panel.values, panel.colours, panel.norm)
        return
    centres = task.origin[0] + task.spacing[0] * np.arange(task.shape[0])
    axis.set_facecolor(NONFINITE_COLOUR if not np.isfinite(panel.values).all() else "white")
    axis.plot(centres, panel.values)
    axis.set(xlabel=task.axes[0], ylim=(panel.norm.vmin, panel.norm.vmax))


def _point_positions(
    task: Task, point_arrays: Mapping[str, np.ndarray], truth: Float[np.ndarray, "t p c"]
) -> Float[np.ndarray, "t p d"]:
    """Return the point positions at each time; moving points are wrapped into the domain along periodic axes."""
    if not task.moving:
        coords = point_arrays["coords"]
        return np.broadcast_to(coords, (len(truth), *coords.shape)).astype(np.float64)
    positions = truth[..., list(task.moving)].astype(np.float64)
    for axis, wraps in enumerate(task.periodic):
        if wraps:
            positions[..., axis] = task.origin[axis] + (positions[..., axis] - task.origin[axis]) % task.box[axis]
    return positions
