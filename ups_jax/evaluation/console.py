"""The table that a person sees at the end: the result next to what needs no training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from numbers import Real
from operator import itemgetter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ups_jax.evaluation.result import TaskEvaluation, to_json_values
from ups_jax.metrics import ENSEMBLE_METRICS
from ups_jax.tracking import Writer, flat

# Headline columns by the section that a kind of task has: the section that each is taken from, and its number.
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
# What the columns of an ensemble's line are called.
_ENSEMBLE = dict(zip(ENSEMBLE_METRICS, ("CRPS", "spread/skill", "in 50 %", "in 90 %", "correlated for"), strict=True))


def named_sections(measured: TaskEvaluation) -> dict[str, Mapping[str, Any]]:
    """The sections of the model, its variants and each baseline, by the name that a table gives them."""
    kind = "rollout" if "rollout" in measured.metrics else "solution"
    variants = {f"{name} {kind}": sections for name, sections in measured.variants.items()}
    return {"this model": measured.metrics, **variants, **measured.baselines}


def headlines(measured: TaskEvaluation) -> tuple[list[str], dict[str, list[float | None]]]:
    """Columns and rows of the headline table: the model, its variants and each baseline; None where a row has none."""
    section = next(name for name in _HEADLINES if name in measured.metrics)
    bands = [band for band in _BANDS if f"fourier_rmse_{band}" in measured.metrics[section]]
    rows: dict[str, list[float | None]] = {}
    for name, sections in named_sections(measured).items():
        # A variant differs from the model's own rollout from the second step on, and has no one-step section.
        own = [number(sections[own]) if own in sections else None for own, number in _HEADLINES[section].values()]
        rows[name] = [*own, *(sections[section][f"fourier_rmse_{band}"] for band in bands)]
    return [*_HEADLINES[section], *bands], rows


def print_table(console: Console, measured: TaskEvaluation) -> None:
    """nRMSE, and fRMSE in three bands, of this model, its variants and each baseline."""
    columns, rows = headlines(measured)
    numbers = "nRMSE and fRMSE" if _BANDS[0] in columns else "nRMSE"
    table = Table(
        title=f"{numbers} of {measured.task.name}, {measured.meta['trajectories']} trajectories",
        title_justify="left",
        # A terminal of 80 columns holds it.
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
    section = next(name for name in _HEADLINES if name in measured.metrics)
    for name, sections in measured.variants.items():
        own = sections[section]
        if ENSEMBLE_METRICS[0] in own:
            known = {metric: title for metric, title in _ENSEMBLE.items() if metric in own}
            scores = ", ".join(f"{title} {own[metric]:.3g}" for metric, title in known.items())
            alone = f"mean absolute error of this model {measured.metrics[section]['mae']:.3g}"
            console.print(f"{name} of {sections['members']}: {scores}; {alone}", highlight=False)


def track_evaluation(
    writer: Writer, name: str, measured: TaskEvaluation, *, plots: Sequence[Path], files: Sequence[Path]
) -> None:
    """Hand the evaluation `name` of a task to a writer, all of it under `eval/<name>/`.

    The summary has every metric that is one number: of the model under the task's name, of its variants and of the
    baselines under theirs. A metric that is a list, such as the error by time, is a table with a row an entry.
    """
    sections = {measured.task.name: measured.metrics, "variants": measured.variants, "baselines": measured.baselines}
    numbers = {metric: value for metric, value in flat(sections).items() if isinstance(value, Real)}
    writer.summary({"eval": {name: numbers}})
    columns, rows = headlines(measured)
    writer.table(f"eval/{name}/headlines", ["", *columns], [[row, *cells] for row, cells in rows.items()])
    for metric, lists in _lists(measured).items():
        lines = enumerate(zip_longest(*lists.values()), 1)
        writer.table(f"eval/{name}/{metric}", ["step", *lists], [[step, *cells] for step, cells in lines])
    for plot in plots:
        writer.image(f"eval/{name}/{plot.stem}", plot)
    for file in files:
        writer.file(file)


def _lists(measured: TaskEvaluation) -> dict[str, dict[str, list[Any]]]:
    """Every metric that is a list, as `section/metric`: the lists of the headline table's rows that have it."""
    found: dict[str, dict[str, list[Any]]] = {}
    for row, sections in named_sections(measured).items():
        for metric, value in flat(to_json_values(sections)).items():
            if isinstance(value, list):
                found.setdefault(metric, {})[row] = value
    return found
