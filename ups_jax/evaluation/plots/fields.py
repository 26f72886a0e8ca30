"""Pictures of fields on grids and at points: truth, prediction and error over time and space.

The parts that all pictures share are here too: colours and their limits, colour bars, saving. `figures` decides which
pictures an evaluation has, `films` draws files of predicted states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.text import Text

from ups_jax.core.files import whole_file
from ups_jax.core.task import Task
from ups_jax.data.sources import Grid
from ups_jax.evaluation.result import TransientEvaluation, Example, PointEvaluation, SteadyEvaluation, SteadyExample

# Sequential and diverging maps that people with any colour vision can read; grey where a value is not finite.
FIELD_MAP, INPUT_MAP, ERROR_MAP, MISSING = "viridis", "cividis", "RdBu_r", "#BBBBBB"
_SNAPSHOTS = 5


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A field with its colours, over time where the first axis of `values` is time."""

    title: str
    values: Float[np.ndarray, "*p"]
    colours: str
    norm: Normalize


def fields(evaluation: TransientEvaluation, channel: int = 0) -> Figure:
    """Truth, prediction and error of the best, median and worst trajectory.

    In one space dimension as images over time and space, otherwise as snapshots (of three axes the middle plane).
    Truth and prediction share their colour limits; the error has symmetric ones.
    """
    task = evaluation.task

    def draw(axis: Axes, panel: Panel, frame: int) -> None:
        snapshot(axis, task, panel.values[frame], panel.colours, panel.norm)
        axis.label_outer()

    figure = Figure(figsize=(11, 8.6) if len(task.shape) == 1 else (11.5, 20), layout="constrained")
    blocks = figure.subfigures(len(evaluation.examples), 1, squeeze=False).ravel()
    for block, example in zip(blocks, evaluation.examples, strict=True):
        panels = comparison(*planes(task, example, channel))
        if len(task.shape) == 1:
            space_time_row(block, block.subplots(1, 3).tolist(), task, example.time, panels, task.channels[channel])
        else:
            _snapshot_rows(block, example.time, panels, task.channels[channel], draw)
        block.suptitle(f"{task.name}, {describe(example)}", fontsize=11)
    return figure


def points(evaluation: PointEvaluation, channel: int = 0) -> Figure:
    """Snapshots of truth, prediction and error of the median trajectory; points that move are drawn where they truly
    are, of three axes along the last."""
    task = evaluation.task
    example = next(item for item in evaluation.examples if item.label == "median")
    there = example.point_arrays["point_mask"] > 0
    truth, prediction = (values[:, there, channel].astype(np.float64) for values in (example.truth, example.prediction))
    where = _places(task, example.point_arrays, example.truth)[:, there]

    def draw(axis: Axes, panel: Panel, frame: int) -> None:
        dots(axis, where[frame], panel.values[frame], panel.colours, panel.norm)

    figure = Figure(figsize=(2.6 * len(picks(len(truth))) + 1, 7.8), layout="constrained")
    _snapshot_rows(figure, example.time, comparison(truth, prediction), task.channels[channel], draw)
    figure.suptitle(f"{task.name}, {describe(example)}", fontsize=11)
    return figure


def solutions(evaluation: SteadyEvaluation, channel: int = 0) -> Figure:
    """Given fields, truth, prediction and error of the best, median and worst solution, a row each.

    Truth and prediction share their colour limits; the error has symmetric ones. Of three space axes the middle plane.
    """
    task, name = evaluation.task, evaluation.task.channels[channel]
    columns = len(task.inputs) + 3
    figure = Figure(figsize=(3.5 * columns, 3.6 * len(evaluation.examples)), layout="constrained")
    blocks = figure.subfigures(len(evaluation.examples), 1, squeeze=False).ravel()
    for block, example in zip(blocks, evaluation.examples, strict=True):
        given = [middle_plane(task, example.inputs[..., index]) for index in range(len(task.inputs))]
        panels = [
            *(
                Panel(title=item.name, values=field, colours=INPUT_MAP, norm=field_limits(field))
                for item, field in zip(task.inputs, given, strict=True)
            ),
            *comparison(*planes(task, example, channel)),
        ]
        # Truth and prediction share a colour bar.
        labels = [*(item.name for item in task.inputs), None, name, f"error of {name}"]
        for axis, panel, label in zip(block.subplots(1, columns), panels, labels, strict=True):
            _panel(axis, task, panel)
            axis.set_title(panel.title, fontsize=10)
            if label is not None:
                colour_bar(block, axis, panel.colours, panel.norm, label)
        block.suptitle(f"{task.name}, {describe(example)}", fontsize=11)
    return figure


def comparison(
    truth: Float[np.ndarray, "known *p"],
    prediction: Float[np.ndarray, "t *p"],
    titles: Sequence[str] = ("truth", "prediction"),
) -> tuple[Panel, Panel, Panel]:
    """Truth and prediction with the same colour limits, and their difference with symmetric ones.

    A truth that ends before the prediction is continued by NaN.
    """
    known = np.full_like(prediction, np.nan)
    known[: len(truth)] = truth
    limits, bounds = field_limits(truth), error_limits(truth, prediction[: len(truth)])
    return (
        Panel(title=titles[0], values=known, colours=FIELD_MAP, norm=limits),
        Panel(title=titles[1], values=prediction, colours=FIELD_MAP, norm=limits),
        Panel(title="prediction − truth", values=prediction - known, colours=ERROR_MAP, norm=bounds),
    )


def space_time_row(
    figure: Figure | SubFigure,
    axes: Sequence[Axes],
    task: Task,
    time: Float[np.ndarray, " t"],
    panels: Sequence[Panel],
    name: str,
    title_size: int = 10,
) -> None:
    """Truth, prediction and error of a channel side by side: over time, or of more space axes at the last time."""
    for axis, panel in zip(axes, panels, strict=True):
        title = panel.title
        if len(task.shape) == 1:
            space_time(axis, task, time, panel.values, panel.colours, panel.norm)
        else:
            snapshot(axis, task, panel.values[-1], panel.colours, panel.norm)
            title = f"{title}, t = {time[-1]:.3g}"
        axis.set_title(title, fontsize=title_size)
    for axis in axes[1:]:
        axis.set_ylabel("")
    _colour_bars(figure, axes[1], axes[2], panels, name)


def space_time(
    axis: Axes,
    task: Task | Grid,
    time: Float[np.ndarray, " t"],
    values: Float[np.ndarray, "t x"],
    colours: str,
    norm: Normalize,
) -> None:
    """A field of one space axis as an image, time to the right; values that are not finite stay grey."""
    centres = task.origin[0] + task.spacing[0] * np.arange(task.shape[0])
    axis.set_facecolor(MISSING)
    axis.pcolormesh(
        time, centres, np.ma.masked_invalid(values.T), cmap=colours, norm=norm, shading="nearest", rasterized=True
    )
    axis.set(xlabel="time t", ylabel=f"position {task.axes[0]}")


def snapshot(axis: Axes, task: Task | Grid, values: Float[np.ndarray, "x y"], colours: str, norm: Normalize) -> None:
    """A field of two space axes at one time, the first axis to the right."""
    edges = [
        (origin - 0.5 * step, origin + (size - 0.5) * step)
        for origin, step, size in zip(task.origin, task.spacing, task.shape, strict=True)
    ]
    axis.set_facecolor(MISSING)
    image = np.ma.masked_invalid(values.T)
    axis.imshow(image, origin="lower", extent=(*edges[0], *edges[1]), cmap=colours, norm=norm, interpolation="nearest")
    axis.set(xlabel=task.axes[0], ylabel=task.axes[1])


def literal(figure: Figure) -> None:
    """Have names drawn as they are, to be called ahead of the first drawing: matplotlib takes what stands between two
    dollars for a formula, and refuses one that it cannot read. The labels of ticks, which are formulas, come later."""
    for text in figure.findobj(Text):
        if isinstance(text, Text) and "$" in text.get_text():
            text.set_parse_math(False)


def colour_bar(figure: Figure | SubFigure, axes: Any, colours: str, norm: Normalize, label: str) -> None:
    """One colour bar for the images of `axes`."""
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, pad=0.02, aspect=25)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)


def planes(
    task: Task, example: Example | SteadyExample, channel: int
) -> tuple[Float[np.ndarray, "t *p"], Float[np.ndarray, "t *p"]]:
    """Truth and prediction of a channel; of three space axes the middle plane of the last."""
    return middle_plane(task, example.truth[..., channel]), middle_plane(task, example.prediction[..., channel])


def middle_plane(task: Task | Grid, values: Float[np.ndarray, "... *s"]) -> Float[np.ndarray, "... *p"]:
    """In float64, where the difference of two diverged float32 values does not overflow; one plane of three axes."""
    exact = values.astype(np.float64)
    return exact[..., task.shape[2] // 2] if len(task.shape) == 3 else exact


def field_limits(truth: np.ndarray) -> Normalize:
    """The range of the truth: a prediction beyond it saturates."""
    return Normalize(float(truth.min()), float(truth.max()))


def error_limits(truth: np.ndarray, prediction: np.ndarray) -> Normalize:
    """Symmetric, up to the largest error, but not beyond the span of the truth: a blow-up would hide all the rest."""
    error = np.abs(prediction - truth)
    bound = min(float(error[np.isfinite(error)].max(initial=0.0)), float(np.ptp(truth)) or np.inf) or 1e-12
    return Normalize(-bound, bound)


def describe(example: Example | SteadyExample) -> str:
    """Which trajectory or solution this is, its coefficients in physical units, its error."""
    kind, metric = ("solution", "nRMSE") if isinstance(example, SteadyExample) else ("trajectory", "rollout nRMSE")
    parts = [f"{example.label} test {kind} (id {example.id})"]
    parts += [f"{name} = {value:.3g}" for name, value in example.coefficients.items()]
    return ", ".join([*parts, f"{metric} {example.nrmse:.3g}"])


def picks(frames: int) -> list[int]:
    """At most five frames, evenly spaced from the first to the last."""
    return [int(frame) for frame in np.unique(np.linspace(0, frames - 1, _SNAPSHOTS).round())]


def save_png(figure: Figure, path: Path, dpi: int) -> None:
    """Write a figure, whole or not at all. Raises `StorageError`."""
    literal(figure)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=dpi, format="png")


def dots(
    axis: Axes, places: Float[np.ndarray, "p d"], values: Float[np.ndarray, " p"], colours: str, norm: Normalize
) -> None:
    """A field at points, those left out where it is not finite; on one axis its values are the height of the dots."""
    known = np.where(np.isfinite(values), values, np.nan)
    size = max(1.0, min(14.0, 4000 / max(1, len(values))))
    height = places[:, 1] if places.shape[1] > 1 else known
    axis.scatter(places[:, 0], height, c=known, s=size, cmap=colours, norm=norm, linewidths=0, rasterized=True)
    if places.shape[1] > 1:
        axis.set_aspect("equal")


def _snapshot_rows(
    figure: Figure | SubFigure,
    time: Float[np.ndarray, " t"],
    panels: Sequence[Panel],
    name: str,
    draw: Callable[[Axes, Panel, int], None],
) -> None:
    """A row of snapshots each of truth, prediction and error of the channel `name`."""
    frames = picks(len(time))
    axes = figure.subplots(3, len(frames), sharex=True, sharey=True, squeeze=False)
    for row, panel, title in zip(axes, panels, ("truth", "prediction", "error"), strict=True):
        for axis, frame in zip(row, frames, strict=True):
            draw(axis, panel, frame)
        row[0].set_ylabel(f"{title}\n{row[0].get_ylabel()}".rstrip())
    for axis, frame in zip(axes[0], frames, strict=True):
        axis.set_title(f"t = {time[frame]:.3g}", fontsize=10)
    _colour_bars(figure, list(axes[:2].ravel()), list(axes[2]), panels, name)


def _colour_bars(figure: Figure | SubFigure, values: Any, errors: Any, panels: Sequence[Panel], name: str) -> None:
    """A colour bar for truth and prediction, another for the error."""
    colour_bar(figure, values, panels[1].colours, panels[1].norm, name)
    colour_bar(figure, errors, panels[2].colours, panels[2].norm, f"error of {name}")


def _panel(axis: Axes, task: Task, panel: Panel) -> None:
    if panel.values.ndim == 2:
        snapshot(axis, task, panel.values, panel.colours, panel.norm)
        return
    centres = task.origin[0] + task.spacing[0] * np.arange(task.shape[0])
    axis.set_facecolor(MISSING if not np.isfinite(panel.values).all() else "white")
    axis.plot(centres, panel.values)
    axis.set(xlabel=task.axes[0], ylim=(panel.norm.vmin, panel.norm.vmax))


def _places(
    task: Task, places: Mapping[str, np.ndarray], truth: Float[np.ndarray, "t p c"]
) -> Float[np.ndarray, "t p d"]:
    """Where the points are at each time, within the box along periodic axes."""
    if not task.moving:
        return np.broadcast_to(places["coords"], (len(truth), *places["coords"].shape)).astype(np.float64)
    found = truth[..., list(task.moving)].astype(np.float64)
    for axis, wraps in enumerate(task.periodic):
        if wraps:
            found[..., axis] = task.origin[axis] + (found[..., axis] - task.origin[axis]) % task.box[axis]
    return found
