"""Pictures of steady solutions: the given fields, truth, prediction and error."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ups_jax.evaluation.images import (
    ERROR_MAP,
    FIELD_MAP,
    MISSING,
    colour_bar,
    error_limits,
    field_limits,
    snapshot,
)
from ups_jax.evaluation.result import SteadyEvaluation, SteadyExample
from ups_jax.task import Task

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
