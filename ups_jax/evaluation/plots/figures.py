"""Figures of an evaluation: the showcase, error over time, spectra, training curves; `write_plots` saves them all.

Every function returns a new matplotlib `Figure` and leaves pyplot alone. Pictures of fields are in `fields`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from ups_jax.evaluation.plots.fields import (
    comparison,
    describe,
    fields,
    planes,
    points,
    save_png,
    solutions,
    space_time_row,
)
from ups_jax.evaluation.result import TransientEvaluation, Example, PointEvaluation, SteadyEvaluation

# Okabe and Ito's colours, which people with any colour vision tell apart.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#6E6E6E"
_DPI = 150


def write_plots(
    directory: Path, evaluations: Sequence[TransientEvaluation | SteadyEvaluation], records: Sequence[Mapping[str, Any]]
) -> list[Path]:
    """Save every figure as PNG in `directory`: those of each task, then the training curves where there are records.

    Raises `StorageError` where a file cannot be written.
    """
    figures: dict[str, Figure] = {}
    for evaluation in evaluations:
        prefix = file_name(evaluation.task.name)
        for name, figure in _figures(evaluation).items():
            figures[f"{prefix}_{name}"] = figure
    if records:
        figures["training"] = training_curves(records)
    paths = []
    for name, figure in figures.items():
        paths.append(directory / f"{name}.png")
        save_png(figure, paths[-1], _DPI)
    return paths


def _figures(evaluation: TransientEvaluation | SteadyEvaluation) -> dict[str, Figure]:
    """The figures of an evaluation by file name, those of its kind of task."""
    if isinstance(evaluation, SteadyEvaluation):
        return _of_channels(solutions, evaluation)
    curves = {"nrmse": nrmse_over_time(evaluation)}
    if isinstance(evaluation, PointEvaluation):
        return curves | _of_channels(points, evaluation)
    pictures = _of_channels(fields, evaluation)
    return {"showcase": showcase(evaluation)} | curves | pictures | {"spectrum": spectrum(evaluation)}


def _of_channels(draw: Callable[[Any, int], Figure], evaluation: TransientEvaluation | SteadyEvaluation) -> dict[str, Figure]:
    channels = enumerate(evaluation.task.channels)
    return {f"fields_{file_name(channel)}": draw(evaluation, index) for index, channel in channels}


def showcase(evaluation: TransientEvaluation) -> Figure:
    """The median test trajectory, first channel: truth, prediction, error and nRMSE beside persistence, in one row."""
    task, example = evaluation.task, _median(evaluation)
    figure = Figure(figsize=(13.5, 3.6), layout=ConstrainedLayoutEngine(wspace=0.05))
    grid = figure.add_gridspec(1, 4, width_ratios=(1, 1, 1, 1.15))
    axes = [figure.add_subplot(grid[0, column]) for column in range(4)]
    panels = comparison(*planes(task, example, 0))
    space_time_row(figure, axes[:3], task, example.time, panels, task.channels[0], title_size=12)
    _error_curves(axes[3], evaluation)
    figure.suptitle(
        f"{task.name}: {evaluation.meta['horizon']} steps from {_start(evaluation)}, {describe(example)}", fontsize=12
    )
    return figure


def nrmse_over_time(evaluation: TransientEvaluation) -> Figure:
    """Mean nRMSE of the rollout over time with persistence above and the codec's floor below, logarithmic."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.add_subplot()
    _error_curves(axis, evaluation)
    figure.suptitle(f"{evaluation.task.name}: error of the rollout")
    return figure


def spectrum(evaluation: TransientEvaluation) -> Figure:
    """Energy spectra of truth (lines) and prediction (dots) at several times, averaged over the trajectories."""
    task, spectra = evaluation.task, evaluation.spectra
    if spectra is None:
        raise ValueError(f"the evaluation of {task.name} has no spectra")
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.add_subplot()
    # Shells beyond half the shortest axis are incomplete.
    wavenumber = np.arange(1, min(task.shape) // 2 + 1)
    for index, colour in zip(range(len(spectra.time)), (BLUE, GREEN, ORANGE, RED), strict=False):
        truth, prediction = (values[index, wavenumber] for values in (spectra.truth, spectra.prediction))
        axis.plot(wavenumber, truth, color=colour, label=f"t = {spectra.time[index]:.3g}")
        axis.plot(wavenumber, prediction, "o", color=colour, markersize=3.5, markerfacecolor="white")
    top = max(float(spectra.truth.max()), 1e-30)
    shown = np.stack([spectra.truth, spectra.prediction])[..., wavenumber]
    # Below 1e-14 of the top, the square of float32 round-off, there is nothing to see; far above is a blow-up.
    shown = np.clip(shown[np.isfinite(shown)], 1e-14 * top, 1e4 * top)
    axis.set_ylim(0.3 * shown.min(initial=top), 3 * shown.max(initial=top))
    axis.set(xscale="log", yscale="log", xlabel="wavenumber (waves per domain length)", ylabel="energy E(k)")
    axis.plot([], [], color=GREY, label="truth")
    axis.plot([], [], "o", color=GREY, markersize=3.5, markerfacecolor="white", label="prediction")
    axis.legend(frameon=False, fontsize=9)
    axis.grid(alpha=0.25)
    axis.set_title(f"{task.name}: energy spectrum, mean of {evaluation.meta['trajectories']} trajectories")
    return figure


def training_curves(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss, learning rate and validation nRMSE over steps, one row a stage; from the lines of metrics.jsonl."""
    stages = list(dict.fromkeys(record["stage"] for record in records))
    figure = Figure(figsize=(13.5, 3.4 * len(stages)), layout="constrained")
    grid = figure.subplots(len(stages), 3, squeeze=False)
    for row, stage in zip(grid, stages, strict=True):
        own = [record for record in records if record["stage"] == stage]
        validation = sorted({key for record in own for key in record if key.startswith("validation/")})
        panels = (("loss", ["loss"]), ("learning rate", ["lr"]), ("validation nRMSE", validation))
        for axis, (title, names) in zip(row, panels, strict=True):
            # Of several tasks there are more curves than colours: the next round of them is of other markers.
            styles = itertools.product(("o-", "s--", "^:", "v-."), (BLUE, RED, GREEN, ORANGE))
            for name, (dots, colour) in zip(names, styles, strict=False):
                points = [(record["step"], record[name]) for record in own if record.get(name) is not None]
                steps, values = np.array(points, float).reshape(-1, 2).T
                marker = dots if name in validation else "-"
                axis.plot(steps, values, marker, markersize=3, color=colour, lw=1.3, label=_legible(name))
                if name == "loss" and len(values) > 50:
                    axis.lines[-1].set_alpha(0.35)
                    axis.plot(steps, _running_median(values), color=colour, label="running median")
            axis.set(title=f"{stage}: {title}", xlabel="step", ylabel=title)
            if title != "learning rate" and any((line.get_ydata() > 0).any() for line in axis.lines):
                _logarithmic(axis)
            if len(axis.lines) > 1:
                axis.legend(frameon=False, fontsize=9)
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axis.grid(alpha=0.25)
    return figure


def _error_curves(axis: Axes, evaluation: TransientEvaluation) -> None:
    curves = (
        ("persistence", evaluation.baselines["persistence"], GREY, "--"),
        ("this model", evaluation.metrics, BLUE, "-"),
        ("codec alone", evaluation.baselines["codec"], GREEN, ":"),
    )
    for label, sections, colour, style in curves:
        values = np.array(sections["rollout"]["nrmse_by_time"], float)
        # A logarithmic axis has no place for an exact zero, as of a codec that loses nothing.
        label = label if values.any() else f"{label}: 0"
        axis.plot(evaluation.time, np.where(values > 0, values, np.nan), style, color=colour, lw=2, label=label)
    first = [sections["rollout"]["nrmse_by_time"][0] for _, sections, _, _ in curves]
    ceiling = np.nanmax([*evaluation.baselines["persistence"]["rollout"]["nrmse_by_time"], *first, 1e-6])
    trajectories = evaluation.meta["trajectories"]
    axis.set(xlabel="time t", ylabel=f"nRMSE, mean of {trajectories} trajectories")
    _logarithmic(axis)
    # Above the axes, where no curve can run through it.
    axis.legend(
        frameon=False,
        fontsize=8.5,
        handlelength=1.6,
        ncols=3,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        columnspacing=0.9,
    )
    # Two decades above persistence the curve has left the picture: a diverged rollout would flatten all the rest.
    axis.set_ylim(top=min(axis.get_ylim()[1], 100 * float(ceiling)))
    axis.grid(which="major", alpha=0.3)


def _logarithmic(axis: Axes) -> None:
    """A logarithmic axis that also has numbers on it where it spans less than two decades."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    if high < 100 * low:
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _median(evaluation: TransientEvaluation) -> Example:
    return next(example for example in evaluation.examples if example.label == "median")


def _start(evaluation: TransientEvaluation) -> str:
    return f"t = {_median(evaluation).time[0]:.3g}"


def file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)


def _legible(name: str) -> str:
    return name.removeprefix("validation/").replace("_", " ")


def _running_median(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    width = max(3, len(values) // 50) | 1
    padded = np.pad(values, width // 2, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=-1)
