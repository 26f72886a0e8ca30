"""Console table of an evaluation, and logging of an evaluation to W&B and TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from numbers import Real
from operator import itemgetter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ups_jax.evaluation.result import TaskEvaluation, to_json_values, trained_on_text
from ups_jax.metrics import ENSEMBLE_METRICS
from ups_jax.tracking import Writer, flatten_sections

# Columns of the headline table by the main section of a task: title, source section, and the number in that section.
_HEADLINES: Mapping[str, Mapping[str, tuple[str, Callable[[Mapping[str, Any]], float]]]] = {
    "rollout": {
        "one-step": ("one_step", itemgetter("nrmse")),
        "rollout": ("rollout", itemgetter("nrmse")),
        "last": ("rollout", lambda values: values["nrmse_by_time"][-1]),
    },
    "steady": {
        "nRMSE": ("steady", itemgetter("nrmse")),
        "max error": ("steady", itemgetter("max_error")),
        "boundary": ("steady", itemgetter("boundary_rmse")),
    },
}
_BANDS = ("low", "mid", "high")
# Titles of the ensemble metrics.
_ENSEMBLE_TITLES = dict(
    zip(
        ENSEMBLE_METRICS,
        ("CRPS", "spread/skill ratio", "coverage of 50 % interval", "coverage of 90 % interval", "decorrelation time"),
        strict=True,
    )
)


def sections_by_row(evaluation: TaskEvaluation) -> dict[str, Mapping[str, Any]]:
    """Return by name the metrics of each row of the console table: the model, its variants and the baselines."""
    kind = "rollout" if "rollout" in evaluation.metrics else "solution"
    variants = {f"{name} {kind}": sections for name, sections in evaluation.variants.items()}
    return {"this model": evaluation.metrics, **variants, **evaluation.baselines}


def headline_columns_and_rows(evaluation: TaskEvaluation) -> tuple[list[str], dict[str, list[float | None]]]:
    """Return the column titles of the headline table, and its rows as name -> cells.

    The rows are the model, its variants and the baselines. A cell is None if the row has no such metric.
    """
    main_section = next(name for name in _HEADLINES if name in evaluation.metrics)
    bands = [band for band in _BANDS if f"fourier_rmse_{band}" in evaluation.metrics[main_section]]
    rows: dict[str, list[float | None]] = {}
    for name, sections in sections_by_row(evaluation).items():
        # A variant has no one-step section: it differs from the model only after the first step.
        cells = [
            get_metric(sections[section]) if section in sections else None
            for section, get_metric in _HEADLINES[main_section].values()
        ]
        rows[name] = [*cells, *(sections[main_section][f"fourier_rmse_{band}"] for band in bands)]
    return [*_HEADLINES[main_section], *bands], rows


def print_table(console: Console, evaluation: TaskEvaluation) -> None:
    """Print nRMSE and, on grids, Fourier RMSE by band for the model, its variants and the baselines.

    Lines below the table state how many of the trajectories the run was trained on, the nRMSE of each of several
    channels, and the scores of each ensemble.
    """
    columns, rows = headline_columns_and_rows(evaluation)
    numbers = "nRMSE and fRMSE" if _BANDS[0] in columns else "nRMSE"
    table = Table(
        title=f"{numbers} of {evaluation.task.name}, {evaluation.meta['trajectories']} trajectories",
        title_justify="left",
        # Without edges the table fits into 80 columns.
        show_edge=False,
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    digits = [".1e" if column in _BANDS else ".3g" for column in columns]
    for name, cells in rows.items():
        table.add_row(
            name, *("" if value is None else f"{value:{form}}" for value, form in zip(cells, digits, strict=True))
        )
    console.print(table)
    console.print(trained_on_text(evaluation.meta), highlight=False)
    main_section = next(name for name in _HEADLINES if name in evaluation.metrics)
    by_channel = evaluation.metrics[main_section]["nrmse_by_channel"]
    if len(by_channel) > 1:
        values = ", ".join(f"{channel} {value:.3g}" for channel, value in by_channel.items())
        console.print(f"nRMSE by channel ({main_section}): {values}", highlight=False, markup=False)
    for name, sections in evaluation.variants.items():
        values = sections[main_section]
        if ENSEMBLE_METRICS[0] in values:
            scores = ", ".join(
                f"{title} {values[metric]:.3g}" for metric, title in _ENSEMBLE_TITLES.items() if metric in values
            )
            model_error = f"mean absolute error of this model {evaluation.metrics[main_section]['mae']:.3g}"
            console.print(f"{name} of {sections['members']} members: {scores}; {model_error}", highlight=False)


def track_evaluation(
    writer: Writer, name: str, evaluation: TaskEvaluation, *, plots: Sequence[Path], files: Sequence[Path]
) -> None:
    """Log the evaluation of one task under `eval/<name>/`: metrics, tables, plots and files.

    Scalar metrics are logged to the summary of the run. A metric that is a list, such as the error over time, becomes a
    table with one row per entry.

    Args:
        writer: Logs to W&B or TensorBoard.
        plots: PNG files to log.
        files: Further files to log, such as the JSON.
    """
    sections = {
        evaluation.task.name: evaluation.metrics,
        "variants": evaluation.variants,
        "baselines": evaluation.baselines,
    }
    numbers = {metric: value for metric, value in flatten_sections(sections).items() if isinstance(value, Real)}
    writer.summary({"eval": {name: numbers}})
    columns, rows = headline_columns_and_rows(evaluation)
    writer.table(f"eval/{name}/headlines", ["", *columns], [[row, *cells] for row, cells in rows.items()])
    for metric, lists in _list_valued_metrics(evaluation).items():
        lines = enumerate(zip_longest(*lists.values()), 1)
        writer.table(f"eval/{name}/{metric}", ["step", *lists], [[step, *cells] for step, cells in lines])
    for plot in plots:
        writer.image(f"eval/{name}/{plot.stem}", plot)
    for file in files:
        writer.file(file)


def _list_valued_metrics(evaluation: TaskEvaluation) -> dict[str, dict[str, list[Any]]]:
    """Return the metrics that are lists, such as the error over time: `section/metric` -> table row -> list."""
    lists: dict[str, dict[str, list[Any]]] = {}
    for row, sections in sections_by_row(evaluation).items():
        for metric, value in flatten_sections(to_json_values(sections)).items():
            if isinstance(value, list):
                lists.setdefault(metric, {})[row] = value
    return lists
