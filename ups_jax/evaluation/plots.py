"""Figures of an evaluation: fields, error over time, spectra, training curves, and the README's showcase.

Every function returns a matplotlib `Figure` of its own and leaves pyplot alone; `write_plots` saves them all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, NullFormatter

from ups_jax.errors import StorageError
from ups_jax.evaluation.result import Evaluation, Example
from ups_jax.task import Task

# Okabe and Ito's colours, which people with any colour vision tell apart.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#6E6E6E"
FIELD_MAP, ERROR_MAP, MISSING = "viridis", "RdBu_r", "#BBBBBB"
_DPI = 150
_SNAPSHOTS = 5


def write_plots(directory: Path, evaluations: Sequence[Evaluation], records: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Save every figure as PNG in `directory`: those of each task, then the training curves where there are records.

    Raises `StorageError` where a file cannot be written.
    """
    figures: dict[str, Figure] = {}
    for evaluation in evaluations:
        name = re.sub(r"[^\w.-]", "_", evaluation.task.name)
        figures[f"{name}_showcase"] = showcase(evaluation)
        figures[f"{name}_nrmse"] = nrmse_over_time(evaluation)
        for index, channel in enumerate(evaluation.task.channels):
            figures[f"{name}_fields_{re.sub(r'[^A-Za-z0-9_.-]', '_', channel)}"] = fields(evaluation, index)
        figures[f"{name}_spectrum"] = spectrum(evaluation)
    if records:
        figures["training"] = training_curves(records)
    paths = []
    for name, figure in figures.items():
        path = directory / f"{name}.png"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=_DPI)
        except OSError as error:
            raise StorageError(f"{path}: cannot be written ({error.strerror}); free space") from None
        paths.append(path)
    return paths


def showcase(evaluation: Evaluation, channel: int = 0) -> Figure:
    """The median test trajectory: truth, prediction, error and its nRMSE beside persistence, in one row."""
    task, example = evaluation.task, _median(evaluation)
    figure = Figure(figsize=(13.5, 3.6), layout=ConstrainedLayoutEngine(wspace=0.05))
    grid = figure.add_gridspec(1, 4, width_ratios=(1, 1, 1, 1.15))
    axes = [figure.add_subplot(grid[0, column]) for column in range(4)]
    truth, prediction = _planes(task, example, channel)
    limits, error_limits = _limits(truth), _error_limits(truth, prediction)
    panels = (("truth", truth, FIELD_MAP, limits), ("prediction", prediction, FIELD_MAP, limits))
    for axis, (title, values, colours, norm) in zip(
        axes, (*panels, ("prediction − truth", prediction - truth, ERROR_MAP, error_limits)), strict=False
    ):
        if len(task.shape) == 1:
            _space_time(axis, task, example, values, colours, norm)
        else:
            _snapshot(axis, task, values[-1], colours, norm)
            title = f"{title}, t = {example.time[-1]:.3g}"
        axis.set_title(title)
    for axis in axes[1:3]:
        axis.set_ylabel("")
    _colour_bar(figure, axes[1], FIELD_MAP, limits, task.channels[channel])
    _colour_bar(figure, axes[2], ERROR_MAP, error_limits, f"error of {task.channels[channel]}")
    _error_curves(axes[3], evaluation)
    figure.suptitle(
        f"{task.name}: {evaluation.meta['horizon']} steps from {_start(evaluation)}, {_describe(example)}", fontsize=12
    )
    return figure


def fields(evaluation: Evaluation, channel: int = 0) -> Figure:
    """Truth, prediction and error of the best, median and worst trajectory.

    In one space dimension as images over time and space, otherwise as snapshots (of three axes the middle plane).
    Truth and prediction share their colour limits; the error has symmetric ones.
    """
    return (_fields_1d if len(evaluation.task.shape) == 1 else _fields_2d)(evaluation, channel)


def nrmse_over_time(evaluation: Evaluation) -> Figure:
    """Mean nRMSE of the rollout over time with persistence above and the codec's floor below, logarithmic."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.add_subplot()
    _error_curves(axis, evaluation)
    figure.suptitle(f"{evaluation.task.name}: error of the rollout")
    return figure


def spectrum(evaluation: Evaluation) -> Figure:
    """Energy spectra of truth (lines) and prediction (dots) at several times, averaged over the trajectories."""
    task, spectra = evaluation.task, evaluation.spectra
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
            for name, colour in zip(names, (BLUE, RED, GREEN, ORANGE), strict=False):
                points = [(record["step"], record[name]) for record in own if record.get(name) is not None]
                steps, values = np.array(points, float).reshape(-1, 2).T
                marker = "o-" if name in validation else "-"
                axis.plot(steps, values, marker, markersize=3, color=colour, lw=1.3, label=_legible(name))
                if name == "loss" and len(values) > 50:
                    axis.lines[-1].set_alpha(0.35)
                    axis.plot(steps, _running_median(values), color=colour, label="running median")
            axis.set(title=f"{stage}: {title}", xlabel="step", ylabel=title)
            if title != "learning rate" and any((line.get_ydata() > 0).any() for line in axis.lines):
                axis.set_yscale("log")
            if len(axis.lines) > 1:
                axis.legend(frameon=False, fontsize=9)
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axis.grid(alpha=0.25)
    return figure


def _fields_1d(evaluation: Evaluation, channel: int) -> Figure:
    task = evaluation.task
    figure = Figure(figsize=(11, 8.6), layout="constrained")
    blocks = figure.subfigures(len(evaluation.examples), 1, squeeze=False).ravel()
    for block, example in zip(blocks, evaluation.examples, strict=True):
        truth, prediction = _planes(task, example, channel)
        limits, error_limits = _limits(truth), _error_limits(truth, prediction)
        axes = block.subplots(1, 3)
        _space_time(axes[0], task, example, truth, FIELD_MAP, limits)
        _space_time(axes[1], task, example, prediction, FIELD_MAP, limits)
        _space_time(axes[2], task, example, prediction - truth, ERROR_MAP, error_limits)
        for axis, title in zip(axes, ("truth", "prediction", "prediction − truth"), strict=True):
            axis.set_title(title, fontsize=10)
        for axis in axes[1:]:
            axis.set_ylabel("")
        _colour_bar(block, axes[1], FIELD_MAP, limits, task.channels[channel])
        _colour_bar(block, axes[2], ERROR_MAP, error_limits, f"error of {task.channels[channel]}")
        block.suptitle(f"{task.name}, {_describe(example)}", fontsize=11)
    return figure


def _fields_2d(evaluation: Evaluation, channel: int) -> Figure:
    task = evaluation.task
    figure = Figure(figsize=(11.5, 20), layout="constrained")
    blocks = figure.subfigures(len(evaluation.examples), 1, squeeze=False).ravel()
    for block, example in zip(blocks, evaluation.examples, strict=True):
        truth, prediction = _planes(task, example, channel)
        limits, error_limits = _limits(truth), _error_limits(truth, prediction)
        picks = np.unique(np.linspace(0, len(truth) - 1, _SNAPSHOTS).round().astype(int))
        axes = block.subplots(3, len(picks), sharex=True, sharey=True, squeeze=False)
        rows = (
            ("truth", truth, FIELD_MAP, limits),
            ("prediction", prediction, FIELD_MAP, limits),
            ("error", prediction - truth, ERROR_MAP, error_limits),
        )
        for row, (name, values, colours, norm) in zip(axes, rows, strict=True):
            for axis, pick in zip(row, picks, strict=True):
                _snapshot(axis, task, values[pick], colours, norm)
                axis.label_outer()
            row[0].set_ylabel(f"{name}\n{task.axes[1]}")
        for axis, pick in zip(axes[0], picks, strict=True):
            axis.set_title(f"t = {example.time[pick]:.3g}", fontsize=10)
        _colour_bar(block, list(axes[:2].ravel()), FIELD_MAP, limits, task.channels[channel])
        _colour_bar(block, list(axes[2]), ERROR_MAP, error_limits, f"error of {task.channels[channel]}")
        block.suptitle(f"{task.name}, {_describe(example)}", fontsize=11)
    return figure


def _error_curves(axis: Axes, evaluation: Evaluation) -> None:
    curves = (
        ("persistence", evaluation.baselines["persistence"], GREY, "--"),
        ("this model", evaluation.metrics, BLUE, "-"),
        ("codec alone", evaluation.baselines["codec"], GREEN, ":"),
    )
    for label, sections, colour, style in curves:
        values = np.array(sections["rollout"]["nrmse_by_time"], float)
        # A logarithmic axis has no place for an exact zero.
        axis.plot(evaluation.time, np.where(values > 0, values, np.nan), style, color=colour, lw=2, label=label)
    ceiling = max(*evaluation.baselines["persistence"]["rollout"]["nrmse_by_time"], 1e-6)
    trajectories = evaluation.meta["trajectories"]
    axis.set(xlabel="time t", ylabel=f"nRMSE, mean of {trajectories} trajectories", yscale="log")
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
    axis.set_ylim(top=min(axis.get_ylim()[1], 100 * ceiling))
    axis.grid(which="major", alpha=0.3)
    axis.yaxis.set_minor_formatter(NullFormatter())


def _space_time(
    axis: Axes, task: Task, example: Example, values: Float[np.ndarray, "t x"], colours: str, norm: Normalize
) -> None:
    centres = task.origin[0] + task.spacing[0] * np.arange(task.shape[0])
    axis.set_facecolor(MISSING)
    axis.pcolormesh(
        example.time,
        centres,
        np.ma.masked_invalid(values.T),
        cmap=colours,
        norm=norm,
        shading="nearest",
        rasterized=True,
    )
    axis.set(xlabel="time t", ylabel=f"position {task.axes[0]}")


def _snapshot(axis: Axes, task: Task, values: Float[np.ndarray, "x y"], colours: str, norm: Normalize) -> None:
    edges = [
        (origin - 0.5 * step, origin + (size - 0.5) * step)
        for origin, step, size in zip(task.origin, task.spacing, task.shape, strict=True)
    ]
    axis.set_facecolor(MISSING)
    image = np.ma.masked_invalid(values.T)
    axis.imshow(image, origin="lower", extent=(*edges[0], *edges[1]), cmap=colours, norm=norm, interpolation="nearest")
    axis.set(xlabel=task.axes[0], ylabel=task.axes[1])


def _colour_bar(figure: Figure | SubFigure, axes: Any, colours: str, norm: Normalize, label: str) -> None:
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, pad=0.02, aspect=25)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)


def _planes(task: Task, example: Example, channel: int) -> list[Float[np.ndarray, "t ..."]]:
    """Truth and prediction of a channel; of three space axes the middle plane of the last."""
    # In float64, where the difference of two diverged float32 values does not overflow.
    planes = [values[..., channel].astype(np.float64) for values in (example.truth, example.prediction)]
    return [values[..., task.shape[2] // 2] for values in planes] if len(task.shape) == 3 else planes


def _limits(truth: np.ndarray) -> Normalize:
    return Normalize(float(truth.min()), float(truth.max()))


def _error_limits(truth: np.ndarray, prediction: np.ndarray) -> Normalize:
    """Symmetric, up to the largest error, but not beyond the span of the truth: a blow-up would hide all the rest."""
    error = np.abs(prediction - truth)
    bound = min(float(error[np.isfinite(error)].max()), float(np.ptp(truth)) or np.inf) or 1e-12
    return Normalize(-bound, bound)


def _median(evaluation: Evaluation) -> Example:
    return next(example for example in evaluation.examples if example.label == "median")


def _describe(example: Example) -> str:
    parts = [f"{example.label} test trajectory (id {example.id})"]
    parts += [f"{name} = {value:.3g}" for name, value in example.coefficients.items()]
    return ", ".join([*parts, f"rollout nRMSE {example.nrmse:.3g}"])


def _start(evaluation: Evaluation) -> str:
    return f"t = {_median(evaluation).time[0]:.3g}"


def _legible(name: str) -> str:
    return name.removeprefix("validation/").replace("_", " ")


def _running_median(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    width = max(3, len(values) // 50) | 1
    padded = np.pad(values, width // 2, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=-1)
