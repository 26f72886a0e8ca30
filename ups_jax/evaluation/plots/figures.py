"""Figures of an evaluation: overview, error over time, spectra and training curves; `write_plots` saves all of them.

Every function returns a new matplotlib `Figure` without using pyplot. Figures of fields are in `fields`.
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
    comparison_panels,
    draw_comparison_row,
    example_title,
    fields_figure,
    points_figure,
    save_png,
    solutions_figure,
    truth_and_prediction,
)
from ups_jax.evaluation.result import Example, PointEvaluation, SteadyEvaluation, TransientEvaluation

# The colours of Okabe and Ito (2008), which are distinguishable with colour blindness.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#6E6E6E"
_DPI = 150


def write_plots(
    directory: Path, evaluations: Sequence[TransientEvaluation | SteadyEvaluation], records: Sequence[Mapping[str, Any]]
) -> list[Path]:
    """Save every figure of an evaluation as PNG and return the paths.

    Args:
        records: Lines of metrics.jsonl; if there are none, the training curves are omitted.

    Raises:
        StorageError: A file cannot be written.
    """
    figures: dict[str, Figure] = {}
    for evaluation in evaluations:
        prefix = safe_file_name(evaluation.task.name)
        for name, figure in _task_figures(evaluation).items():
            figures[f"{prefix}_{name}"] = figure
    if records:
        figures["training"] = training_figure(records)
    paths = []
    for name, figure in figures.items():
        paths.append(directory / f"{name}.png")
        save_png(figure, paths[-1], _DPI)
    return paths


def _task_figures(evaluation: TransientEvaluation | SteadyEvaluation) -> dict[str, Figure]:
    """Return the figures of the evaluation of one task by file name without suffix."""
    if isinstance(evaluation, SteadyEvaluation):
        return _channel_figures(solutions_figure, evaluation)
    curves = {"nrmse": nrmse_figure(evaluation)}
    if isinstance(evaluation, PointEvaluation):
        return curves | _channel_figures(points_figure, evaluation)
    field_figures = _channel_figures(fields_figure, evaluation)
    return (
        {"showcase": showcase_figure(evaluation)} | curves | field_figures | {"spectrum": spectrum_figure(evaluation)}
    )


def _channel_figures(
    draw: Callable[[Any, int], Figure], evaluation: TransientEvaluation | SteadyEvaluation
) -> dict[str, Figure]:
    """Return one figure per channel, from `draw(evaluation, channel index)`, by file name without suffix."""
    channels = enumerate(evaluation.task.channels)
    return {f"fields_{safe_file_name(channel)}": draw(evaluation, index) for index, channel in channels}


def showcase_figure(evaluation: TransientEvaluation) -> Figure:
    """Return an overview in one row: truth, prediction and error of the median trajectory, and nRMSE over time.

    The fields are of the first channel. The nRMSE, of the model and two baselines, is the mean over all trajectories.
    """
    task, example = evaluation.task, _median_example(evaluation)
    figure = Figure(figsize=(13.5, 3.6), layout=ConstrainedLayoutEngine(wspace=0.05))
    grid = figure.add_gridspec(1, 4, width_ratios=(1, 1, 1, 1.15))
    axes = [figure.add_subplot(grid[0, column]) for column in range(4)]
    panels = comparison_panels(*truth_and_prediction(task, example, 0))
    draw_comparison_row(figure, axes[:3], task, example.time, panels, task.channels[0], title_size=12)
    _plot_error_curves(axes[3], evaluation)
    figure.suptitle(
        f"{task.name}: {evaluation.meta['horizon']} steps from t = {example.time[0]:.3g}, {example_title(example)}",
        fontsize=12,
    )
    return figure


def nrmse_figure(evaluation: TransientEvaluation) -> Figure:
    """Return a figure of the mean nRMSE over time: of the model's rollout, of persistence and of the codec alone."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.add_subplot()
    _plot_error_curves(axis, evaluation)
    figure.suptitle(f"{evaluation.task.name}: error of the rollout")
    return figure


def spectrum_figure(evaluation: TransientEvaluation) -> Figure:
    """Return a figure of energy spectra of truth and prediction at several times, averaged over the trajectories.

    Energies are of fields divided by their training standard deviation.

    Raises:
        ValueError: The evaluation has no spectra, because its task is on a point cloud.
    """
    task, spectra = evaluation.task, evaluation.spectra
    if spectra is None:
        raise ValueError(f"task {task.name}: energy spectra need a grid, but the task is on a point cloud")
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.add_subplot()
    # Wavenumbers above the Nyquist frequency of the shortest axis are not fully resolved.
    wavenumber = np.arange(1, min(task.shape) // 2 + 1)
    for index, colour in zip(range(len(spectra.time)), (BLUE, GREEN, ORANGE, RED), strict=False):
        truth, prediction = (values[index, wavenumber] for values in (spectra.truth, spectra.prediction))
        axis.plot(wavenumber, truth, color=colour, label=f"t = {spectra.time[index]:.3g}")
        axis.plot(wavenumber, prediction, "o", color=colour, markersize=3.5, markerfacecolor="white")
    top = float(spectra.truth.max()) or 1.0
    energies = np.stack([spectra.truth, spectra.prediction])[..., wavenumber]
    # 1e-14 is the square of float32 round-off; energies far above those of the truth are of a diverged rollout.
    energies = np.clip(energies[np.isfinite(energies)], 1e-14 * top, 1e4 * top)
    axis.set_ylim(0.3 * energies.min(initial=top), 3 * energies.max(initial=top))
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="wavenumber (waves per domain length)",
        ylabel="energy E(k) / training variance",
    )
    axis.plot([], [], color=GREY, label="truth")
    axis.plot([], [], "o", color=GREY, markersize=3.5, markerfacecolor="white", label="prediction")
    axis.legend(frameon=False, fontsize=9)
    axis.grid(alpha=0.25)
    axis.set_title(f"{task.name}: energy spectrum, mean of {evaluation.meta['trajectories']} trajectories")
    return figure


def training_figure(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Return a figure of loss, learning rate and validation nRMSE over training steps, with one row per stage.

    Args:
        records: Lines of metrics.jsonl.
    """
    stages = list(dict.fromkeys(record["stage"] for record in records))
    figure = Figure(figsize=(13.5, 3.4 * len(stages)), layout="constrained")
    grid = figure.subplots(len(stages), 3, squeeze=False)
    for row, stage in zip(grid, stages, strict=True):
        stage_records = [record for record in records if record["stage"] == stage]
        validation = sorted({key for record in stage_records for key in record if key.startswith("validation/")})
        panels = (("loss", ["loss"]), ("learning rate", ["lr"]), ("validation nRMSE", validation))
        for axis, (title, names) in zip(row, panels, strict=True):
            # With several tasks there are more curves than colours; colours then repeat with other markers.
            styles = itertools.product(("o-", "s--", "^:", "v-."), (BLUE, RED, GREEN, ORANGE))
            for name, (validation_style, colour) in zip(names, styles, strict=False):
                points = [(record["step"], record[name]) for record in stage_records if record.get(name) is not None]
                steps, values = np.array(points, float).reshape(-1, 2).T
                style = validation_style if name in validation else "-"
                axis.plot(steps, values, style, markersize=3, color=colour, lw=1.3, label=_curve_label(name))
                if name == "loss" and len(values) > 50:
                    axis.lines[-1].set_alpha(0.35)
                    axis.plot(steps, _running_median(values), color=colour, label="running median")
            axis.set(title=f"{stage}: {title}", xlabel="step", ylabel=title)
            if title != "learning rate" and any((line.get_ydata() > 0).any() for line in axis.lines):
                _use_logarithmic_scale(axis)
            if len(axis.lines) > 1:
                axis.legend(frameon=False, fontsize=9)
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axis.grid(alpha=0.25)
    return figure


def _plot_error_curves(axis: Axes, evaluation: TransientEvaluation) -> None:
    """Plot the mean nRMSE over time of persistence, of the model's rollout and of the codec alone."""
    curves = (
        ("persistence", evaluation.baselines["persistence"], GREY, "--"),
        ("this model", evaluation.metrics, BLUE, "-"),
        ("codec alone", evaluation.baselines["codec"], GREEN, ":"),
    )
    for label, sections, colour, style in curves:
        values = np.array(sections["rollout"]["nrmse_by_time"], float)
        # A logarithmic axis cannot show exact zeros, for example of a lossless codec.
        label = label if values.any() else f"{label}: 0"
        axis.plot(evaluation.time, np.where(values > 0, values, np.nan), style, color=colour, lw=2, label=label)
    first = [sections["rollout"]["nrmse_by_time"][0] for _, sections, _, _ in curves]
    ceiling = np.nanmax([*evaluation.baselines["persistence"]["rollout"]["nrmse_by_time"], *first, 1e-6])
    trajectories = evaluation.meta["trajectories"]
    axis.set(xlabel="time t", ylabel=f"nRMSE, mean of {trajectories} trajectories")
    _use_logarithmic_scale(axis)
    # The legend is above the axes, where it cannot cover a curve.
    axis.legend(
        frameon=False,
        fontsize=8.5,
        handlelength=1.6,
        ncols=3,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        columnspacing=0.9,
    )
    # Errors above 100 times persistence are cut off, because a diverged rollout would flatten all other curves.
    axis.set_ylim(top=min(axis.get_ylim()[1], 100 * float(ceiling)))
    axis.grid(which="major", alpha=0.3)


def _use_logarithmic_scale(axis: Axes) -> None:
    """Make the y axis logarithmic; if it spans less than two decades, label 1, 2 and 5 times powers of ten."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    if high < 100 * low:
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _median_example(evaluation: TransientEvaluation) -> Example:
    """Return the trajectory with the median nRMSE."""
    return next(example for example in evaluation.examples if example.label == "median")


def safe_file_name(name: str) -> str:
    """Return a name with every character that may not be valid in a file name replaced by an underscore."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)


def _curve_label(name: str) -> str:
    """Return the legend label of a metric."""
    return name.removeprefix("validation/").replace("_", " ")


def _running_median(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return the running median over a window of 2 % of the values."""
    width = max(3, len(values) // 50) | 1
    padded = np.pad(values, width // 2, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=-1)
