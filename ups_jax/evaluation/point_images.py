"""Pictures of fields at points: truth, prediction and error of a trajectory, as dots where the points are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ups_jax.evaluation.images import ERROR_MAP, FIELD_MAP, colour_bar, describe, error_limits, field_limits
from ups_jax.evaluation.result import PointEvaluation
from ups_jax.task import Task

_SNAPSHOTS = 5


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
