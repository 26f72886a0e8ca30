"""The rows as one table a task: mean and spread over the seeds, printed and as Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

Values = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Column:
    """A number of a row, by its path; `spread` shows its standard deviation over the seeds as well."""

    heading: str
    path: tuple[str | int, ...]
    form: str = ".2g"
    spread: bool = False


# A column that no row fills is left out.
_COSTS = (
    Column(heading="parameters", path=("parameters",), form=",.0f"),
    Column(heading="steps", path=("steps",), form=".0f"),
    Column(heading="ms/step", path=("milliseconds_per_step",), form=".3g"),
    Column(heading="CPU-s", path=("cpu_seconds",), form=".3g"),
    Column(heading="compile s", path=("compile_seconds",), form=".2g"),
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
    Column(heading="s/rollout step", path=("seconds_per_rollout_step",), form=".1e"),
)
_STEADY_COLUMNS = (
    Column(heading="nRMSE", path=("steady", "nrmse"), form=".3g", spread=True),
    Column(heading="2x resolution", path=("double_resolution", "nrmse"), form=".3g", spread=True),
    Column(heading="fRMSE low", path=("steady", "fourier_rmse_low"), spread=True),
    Column(heading="mid", path=("steady", "fourier_rmse_mid"), spread=True),
    Column(heading="high", path=("steady", "fourier_rmse_high"), spread=True),
    *_COSTS,
    Column(heading="s/solution", path=("seconds_per_rollout_step",), form=".1e"),
)
_WAYS = {
    "averaged": "averaged to the trained grid, solved there, interpolated",
    "native": "solved on the finer grid itself",
}
_RATIO, _BEFORE_RATIO = "to best FNO", 2


def tabulate(groups: Mapping[str, Sequence[Values]]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells, the best score first; `groups` are each model's rows of one task, a row a seed."""
    steady = _steady(groups)
    columns = [
        column
        for column in (_STEADY_COLUMNS if steady else _ROLLOUT_COLUMNS)
        if any(_numbers(rows, column.path) for rows in groups.values())
    ]
    score = {model: mean(rows, ("steady" if steady else "rollout", "nrmse")) for model, rows in groups.items()}
    fno = min((value for model, value in score.items() if model.startswith("fno")), default=math.nan)
    body = []
    for model in sorted(groups, key=lambda model: score[model]):
        ratio = score[model] / fno
        cells = [_cell(groups[model], column) for column in columns]
        cells.insert(_BEFORE_RATIO, "-" if not math.isfinite(ratio) else f"{ratio:.2f}")
        body.append([model, *cells])
    headings = [column.heading for column in columns]
    return ["model", *headings[:_BEFORE_RATIO], _RATIO, *headings[_BEFORE_RATIO:]], body


def title(task: str, length: str, groups: Mapping[str, Sequence[Values]]) -> str:
    """What a task's table holds."""
    rows = [row for rows in groups.values() for row in rows]
    seeds = max(len(rows) for rows in groups.values())
    if _steady(groups):
        what = f"solutions on {' x '.join(map(str, rows[0]['points']))} points"
    else:
        what = f"trajectories over {rows[0]['frames']} frames"
    return (
        f"{task}: nRMSE of {rows[0]['trajectories']} {what}, "
        f"{length}, {seeds} seed{'s' if seeds > 1 else ''} (mean ± standard deviation)"
    )


def notes(groups: Mapping[str, Sequence[Values]], source: str) -> list[str]:
    """What a reader must know: rows of other code or other data, and steps that were skipped."""
    lines = []
    stale = [model for model, rows in groups.items() if any(row["source"] != source for row in rows)]
    if stale:
        lines.append(f"made by another state of the code: {', '.join(sorted(stale))}")
    if len({row["data"] for rows in groups.values() for row in rows}) > 1:
        lines.append("the rows were not made on the same data: remove the older ones and run again")
    ways: dict[str, list[str]] = {}
    for model, rows in groups.items():
        for way in sorted({_at(row, ("double_resolution", "way")) for row in rows} - {None}):
            ways.setdefault(way, []).append(model)
    lines += [f"2x resolution {_WAYS[way]}: {', '.join(sorted(models))}" for way, models in sorted(ways.items())]
    for model, rows in groups.items():
        if skipped := sum(row["skipped"] for row in rows):
            lines.append(f"{model}: {skipped} steps were not finite and skipped")
    return lines


def _steady(groups: Mapping[str, Sequence[Values]]) -> bool:
    return any("steady" in row for rows in groups.values() for row in rows)


def show(console: Console, heading: str, headings: Sequence[str], body: Sequence[Sequence[str]]) -> None:
    """Print a table; as wide as it needs to be where there is no terminal."""
    table = Table(title=heading, title_justify="left")
    for index, name in enumerate(headings):
        table.add_column(name, justify="right" if index else "left", no_wrap=index == 0)
    for row in body:
        table.add_row(*row)
    console.print(table)


def markdown(heading: str, headings: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """The same table for a README."""
    lines = [f"**{heading}**", "", "| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in body), ""])


def mean(rows: Sequence[Values], path: Sequence[str | int]) -> float:
    """Mean over the rows; infinite where one of them is not finite."""
    values = _numbers(rows, path)
    return statistics.fmean(values) if len(values) == len(rows) else math.inf


def _cell(rows: Sequence[Values], column: Column) -> str:
    values = _numbers(rows, column.path)
    if not values:
        return "-"
    if len(values) < len(rows):
        return f"not finite in {len(rows) - len(values)} of {len(rows)}"
    text = format(statistics.fmean(values), column.form)
    if column.spread and len(values) > 1:
        text += f" ± {statistics.stdev(values):.1g}"
    return text


def _numbers(rows: Sequence[Values], path: Sequence[str | int]) -> list[float]:
    return [value for row in rows if (value := _at(row, path)) is not None]


def _at(row: Any, path: Sequence[str | int]) -> Any:
    for part in path:
        if row is None or (isinstance(part, str) and part not in row):
            return None
        row = row[part]
    return row
