"""Pictures of fields: truth, prediction and error of a trajectory over time and space.

`plots` puts them into files; curves over time, wavenumber and training step are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.text import Text

from ups_jax.core.task import Task
from ups_jax.data.sources import Grid
from ups_jax.evaluation.result import Evaluation, Example, PointEvaluation, SteadyEvaluation, SteadyExample

# Sequential and diverging maps that people with any colour vision can read; grey where a value is not finite.
FIELD_MAP, ERROR_MAP, MISSING = "viridis", "RdBu_r", "#BBBBBB"
_SNAPSHOTS = 5


def fields(evaluation: Evaluation, channel: int = 0) -> Figure:
    """Truth, prediction and error of the best, median and worst trajectory.

    In one space dimension as images over time and space, otherwise as snapshots (of three axes the middle plane).
    Truth and prediction share their colour limits; the error has symmetric ones.
    """
    return (_fields_1d if len(evaluation.task.shape) == 1 else _fields_2d)(evaluation, channel)


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
        time,
        centres,
        np.ma.masked_invalid(values.T),
        cmap=colours,
        norm=norm,
        shading="nearest",
        rasterized=True,
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


def planes(task: Task, example: Example, channel: int) -> list[Float[np.ndarray, "t ..."]]:
    """Truth and prediction of a channel; of three space axes the middle plane of the last."""
    return [middle_plane(task, values[..., channel]) for values in (example.truth, example.prediction)]


def middle_plane(task: Task | Grid, values: Float[np.ndarray, "t *s"]) -> Float[np.ndarray, "t *p"]:
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


def describe(example: Example) -> str:
    """Which trajectory this is, its coefficients in physical units, its error."""
    parts = [f"{example.label} test trajectory (id {example.id})"]
    parts += [f"{name} = {value:.3g}" for name, value in example.coefficients.items()]
    return ", ".join([*parts, f"rollout nRMSE {example.nrmse:.3g}"])


def _fields_1d(evaluation: Evaluation, channel: int) -> Figure:
    task = evaluation.task
    figure = Figure(figsize=(11, 8.6), layout="constrained")
    blocks = figure.subfigures(len(evaluation.examples), 1, squeeze=False).ravel()
    for block, example in zip(blocks, evaluation.examples, strict=True):
        truth, prediction = planes(task, example, channel)
        limits, bounds = field_limits(truth), error_limits(truth, prediction)
        axes = block.subplots(1, 3)
        space_time(axes[0], task, example.time, truth, FIELD_MAP, limits)
        space_time(axes[1], task, example.time, prediction, FIELD_MAP, limits)
        space_time(axes[2], task, example.time, prediction - truth, ERROR_MAP, bounds)
        for axis, title in zip(axes, ("truth", "prediction", "prediction − truth"), strict=True):
            axis.set_title(title, fontsize=10)
        for axis in axes[1:]:
            axis.set_ylabel("")
        colour_bar(block, axes[1], FIELD_MAP, limits, task.channels[channel])
        colour_bar(block, axes[2], ERROR_MAP, bounds, f"error of {task.channels[channel]}")
        block.suptitle(f"{task.name}, {describe(example)}", fontsize=11)
    return figure


def _fields_2d(evaluation: Evaluation, channel: int) -> Figure:
    task = evaluation.task
    figure = Figure(figsize=(11.5, 20), layout="constrained")
    blocks = figure.subfigures(len(evaluation.examples), 1, squeeze=False).ravel()
    for block, example in zip(blocks, evaluation.examples, strict=True):
        truth, prediction = planes(task, example, channel)
        limits, bounds = field_limits(truth), error_limits(truth, prediction)
        picks = np.unique(np.linspace(0, len(truth) - 1, _SNAPSHOTS).round().astype(int))
        axes = block.subplots(3, len(picks), sharex=True, sharey=True, squeeze=False)
        rows = (
            ("truth", truth, FIELD_MAP, limits),
            ("prediction", prediction, FIELD_MAP, limits),
            ("error", prediction - truth, ERROR_MAP, bounds),
        )
        for row, (name, values, colours, norm) in zip(axes, rows, strict=True):
            for axis, pick in zip(row, picks, strict=True):
                snapshot(axis, task, values[pick], colours, norm)
                axis.label_outer()
            row[0].set_ylabel(f"{name}\n{task.axes[1]}")
        for axis, pick in zip(axes[0], picks, strict=True):
            axis.set_title(f"t = {example.time[pick]:.3g}", fontsize=10)
        colour_bar(block, list(axes[:2].ravel()), FIELD_MAP, limits, task.channels[channel])
        colour_bar(block, list(axes[2]), ERROR_MAP, bounds, f"error of {task.channels[channel]}")
        block.suptitle(f"{task.name}, {describe(example)}", fontsize=11)
    return figure


def points(evaluation: PointEvaluation, channel: int = 0) -> Figure:
    """Snapshots of truth, prediction and error of the median trajectory; points that move are drawn where they truly
    are, of three axes along the last."""
    task = evaluation.task
    example = next(item for item in evaluation.examples if item.label == "median")
    there = example.places["point_mask"] > 0
    truth, prediction = (values[:, there, channel].astype(np.float64) for values in (example.truth, example.prediction))
    where = _places(task, example.places, example.truth)[:, there]
    picks = np.unique(np.linspace(0, len(truth) - 1, _SNAPSHOTS).round().astype(int))
    figure = Figure(figsize=(2.6 * len(picks) + 1, 7.8), layout="constrained")
    axes = figure.subplots(3, len(picks), sharex=True, sharey=True, squeeze=False)
    limits, bounds = field_limits(truth), error_limits(truth, prediction)
    rows = (
        ("truth", truth, FIELD_MAP, limits),
        ("prediction", prediction, FIELD_MAP, limits),
        ("error", prediction - truth, ERROR_MAP, bounds),
    )
    for row, (name, values, colours, norm) in zip(axes, rows, strict=True):
        for axis, pick in zip(row, picks, strict=True):
            dots(axis, where[pick], values[pick], colours, norm)
        row[0].set_ylabel(name)
    for axis, pick in zip(axes[0], picks, strict=True):
        axis.set_title(f"t = {example.time[pick]:.3g}", fontsize=10)
    colour_bar(figure, list(axes[:2].ravel()), FIELD_MAP, limits, task.channels[channel])
    colour_bar(figure, list(axes[2]), ERROR_MAP, bounds, f"error of {task.channels[channel]}")
    figure.suptitle(f"{task.name}, {describe(example)}", fontsize=11)
    return figure


def dots(
    axis: Axes,
    places: Float[np.ndarray, "p d"],
    values: Float[np.ndarray, " p"],
    colours: str,
    norm: Normalize,
) -> None:
    """A field at points, those left out where it is not finite; on one axis its values are the height of the dots."""
    known = np.where(np.isfinite(values), values, np.nan)
    size = max(1.0, min(14.0, 4000 / max(1, len(values))))
    height = places[:, 1] if places.shape[1] > 1 else known
    axis.scatter(places[:, 0], height, c=known, s=size, cmap=colours, norm=norm, linewidths=0, rasterized=True)
    if places.shape[1] > 1:
        axis.set_aspect("equal")


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


INPUT_MAP = "cividis"


def solutions(evaluation: SteadyEvaluation, channel: int = 0) -> Figure:
    """Given fields, truth, prediction and error of the best, median and worst solution, a row each.

    Truth and prediction share their colour limits; the error has symmetric ones. Of three space axes the middle plane.
    """
    task = evaluation.task
    columns = len(task.inputs) + 3
    figure = Figure(figsize=(3.5 * columns, 3.6 * len(evaluation.examples)), layout="constrained")
    blocks = figure.subfigures(len(evaluation.examples), 1, squeeze=False).ravel()
    for block, example in zip(blocks, evaluation.examples, strict=True):
        axes = block.subplots(1, columns)
        given = [_plane(task, example.inputs[..., index]) for index in range(len(task.inputs))]
        truth, prediction = (_plane(task, values[..., channel]) for values in (example.truth, example.prediction))
        limits, bounds = field_limits(truth), error_limits(truth, prediction)
        name = task.channels[channel]
        # Title, values, colours, limits, and the label of the colour bar; truth and prediction share one.
        panels = [
            *(
                (item.name, field, INPUT_MAP, field_limits(field), item.name)
                for item, field in zip(task.inputs, given, strict=True)
            ),
            ("truth", truth, FIELD_MAP, limits, None),
            ("prediction", prediction, FIELD_MAP, limits, name),
            ("prediction − truth", prediction - truth, ERROR_MAP, bounds, f"error of {name}"),
        ]
        for axis, (title, values, colours, norm, label) in zip(axes, panels, strict=True):
            _panel(axis, task, values, colours, norm)
            axis.set_title(title, fontsize=10)
            if label is not None:
                colour_bar(block, axis, colours, norm, label)
        block.suptitle(f"{task.name}, {_describe(example)}", fontsize=11)
    return figure


def _panel(axis: Axes, task: Task, values: Float[np.ndarray, "*p"], colours: str, norm: Normalize) -> None:
    if values.ndim == 2:
        snapshot(axis, task, values, colours, norm)
        return
    centres = task.origin[0] + task.spacing[0] * np.arange(task.shape[0])
    axis.set_facecolor(MISSING if not np.isfinite(values).all() else "white")
    axis.plot(centres, values)
    axis.set(xlabel=task.axes[0], ylim=(norm.vmin, norm.vmax))


def _plane(task: Task, values: Float[np.ndarray, "*s"]) -> Float[np.ndarray, "*p"]:
    exact = values.astype(np.float64)
    return exact[:, :, task.shape[2] // 2] if len(task.shape) == 3 else exact


def _describe(example: SteadyExample) -> str:
    parts = [f"{example.label} test solution (id {example.id})"]
    parts += [f"{name} = {value:.3g}" for name, value in example.coefficients.items()]
    return ", ".join([*parts, f"nRMSE {example.nrmse:.3g}"])
