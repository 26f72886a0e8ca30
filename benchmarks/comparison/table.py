"""The rows as one table a task: mean and spread over the seeds, printed and as Markdown.

CPU-s is process time of one thread of the CPU, the budget of every row; "compile s (cold)" is the longest of the
seeds, as the later ones find the program in the cache.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

Values = Mapping[str, Any]
# What `value_at` answers where a row has no such value.
MISSING = object()


@dataclass(frozen=True, kw_only=True)
class Column:
    """A number of a row, by its path; `spread` shows its standard deviation over the seeds as well.

    A score that is None is not finite; a `cost` that is None is none, such as the time of a step where none was made.
    """

    heading: str
    path: tuple[str | int, ...]
    form: str = ".2g"
    spread: bool = False
    cost: bool = False
    over_seeds: Callable[[Sequence[float]], float] = statistics.fmean


# A column that no row fills is left out.
_COSTS = (
    Column(heading="parameters", path=("parameters",), form=",.0f", cost=True),
    Column(heading="steps", path=("steps",), form=".0f", cost=True),
    Column(heading="ms/step", path=("milliseconds_per_step",), form=".3g", cost=True),
    Column(heading="CPU-s", path=("cpu_seconds",), form=".3g", cost=True),
    Column(heading="compile s (cold)", path=("compile_seconds",), form=".2g", cost=True, over_seeds=max),
)
_ROLLOUT_COLUMNS = (
    Column(heading="one step", path=("one_step", "nrmse"), form=".3g", spread=True),
    Column(heading="rollout", path=("rollout", "nrmse"), form=".3g", spread=True),
    Column(heading="last frame", path=("rollout", "nrmse_by_time", -1), form=".3g", spread=True),
    Column(heading="fRMSE low", path=("rollout", "fourier_rmse_low"), spread=True),
    Column(heading="mid", path=("rollout", "fourier_rmse_mid"), spread=True),
    Column(heading="high", path=("rollout", "fourier_rmse_high"), spread=True),
    Column(heading="correlated for", path=("correlation_time",), form=".3g", spread=True),
    Column(heading="latent rollout", path=("latent_rollout", "nrmse"), form=".3g", spread=True),
    Column(heading="2x resolution", path=("double_resolution", "nrmse"), form=".3g", spread=True),
    *_COSTS,
    Column(heading="s/rollout step", path=("seconds_per_rollout_step",), form=".1e", cost=True),
    Column(heading="latent s/step", path=("latent_seconds_per_rollout_step",), form=".1e", cost=True),
)
_STEADY_COLUMNS = (
    Column(heading="nRMSE", path=("steady", "nrmse"), form=".3g", spread=True),
    Column(heading="2x resolution", path=("double_resolution", "nrmse"), form=".3g", spread=True),
    Column(heading="fRMSE low", path=("steady", "fourier_rmse_low"), spread=True),
    Column(heading="mid", path=("steady", "fourier_rmse_mid"), spread=True),
    Column(heading="high", path=("steady", "fourier_rmse_high"), spread=True),
    *_COSTS,
    Column(heading="s/solution", path=("seconds_per_rollout_step",), form=".1e", cost=True),
)
_RATIO = "to best FNO"


def tabulate(groups: Mapping[str, Sequence[Values]]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells, the best score first; `groups` are each model's rows of one task, a row a seed."""
    steady = _steady(groups)
    score = "nRMSE" if steady else "rollout"
    columns = [
        column
        for column in (_STEADY_COLUMNS if steady else _ROLLOUT_COLUMNS)
        if column.heading == score or any(given(rows, column) for rows in groups.values())
    ]
    headings = [column.heading for column in columns]
    place = headings.index(score)
    means = {model: mean(rows, columns[place]) for model, rows in groups.items()}
    fno = min((value for model, value in means.items() if model.startswith("fno")), default=math.inf)
    body = []
    for model in sorted(groups, key=lambda model: means[model]):
        cells = [cell(groups[model], column) for column in columns]
        related = math.isfinite(fno) and math.isfinite(means[model])
        cells.insert(place + 1, f"{means[model] / fno:.2f}" if related else "-")
        body.append([model, *cells])
    headings.insert(place + 1, _RATIO)
    return ["model", *headings], body


def title(task: str, length: str, groups: Mapping[str, Sequence[Values]], *, split: str = "test") -> str:
    """Return the title of a task's table."""
    rows = [row for rows in groups.values() for row in rows]
    seeds = max(len(rows) for rows in groups.values())
    if _steady(groups):
        what = f"solutions on {' x '.join(map(str, rows[0]['points']))} points"
    else:
        what = f"trajectories over {rows[0]['frames']} frames"
    of = {"test": "", "val": "validation "}[split]
    return (
        f"{task}: nRMSE of {rows[0]['trajectories']} {of}{what}, "
        f"{length}, {seeds} seed{'s' if seeds > 1 else ''} (mean ± standard deviation)"
    )


def _steady(groups: Mapping[str, Sequence[Values]]) -> bool:
    return any("steady" in row for rows in groups.values() for row in rows)


def show(console: Console, heading: str, headings: Sequence[str], body: Sequence[Sequence[str]]) -> None:
    """Print a table; as wide as it needs to be where there is no terminal."""
    if not body:
        console.print(heading, highlight=False)
        return
    table = Table(title=heading, title_justify="left")
    for index, name in enumerate(headings):
        table.add_column(name, justify="right" if index else "left", no_wrap=index == 0)
    for row in body:
        table.add_row(*row)
    console.print(table)


def markdown(heading: str, headings: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Return the table as Markdown."""
    if not body:
        return f"**{heading}**\n"
    lines = [f"**{heading}**", "", "| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in body), ""])


def mean(rows: Sequence[Values], column: Column) -> float:
    """Mean over the rows that have the number; infinite where one of them is not finite, or none has it."""
    values = given(rows, column)
    return statistics.fmean(values) if values and None not in values else math.inf


def value_at(row: Any, path: Sequence[str | int]) -> Any:
    """The value at a path of a row: MISSING where the row has none there, None where it is not finite."""
    for part in path:
        if row is None or (isinstance(part, str) and part not in row):
            return MISSING
        row = row[part]
    return row


def cell(rows: Sequence[Values], column: Column) -> str:
    """The text of a column for the rows of all seeds."""
    entries = given(rows, column)
    values = [value for value in entries if value is not None]
    if not entries:
        return "-"
    if not values:
        return "not finite"
    if len(values) < len(entries):
        return f"not finite in {len(entries) - len(values)} of {len(entries)}"
    text = format(column.over_seeds(values), column.form)
    if column.spread and len(values) > 1:
        text += f" ± {statistics.stdev(values):.1g}"
    return text if len(entries) == len(rows) else f"{text} ({len(entries)} of {len(rows)})"


def given(rows: Sequence[Values], column: Column) -> list[float | None]:
    """The numbers of the rows that have one, None where it is not finite."""
    values = [value_at(row, column.path) for row in rows]
    return [value for value in values if value is not MISSING and not (column.cost and value is None)]
