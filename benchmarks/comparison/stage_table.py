"""The rows of stages as one table: of each task the ways to predict, and how far each is from the operator alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from comparison.source import source_digest
from comparison.stage_row import WAYS, StageRow
from comparison.store import Store
from comparison.table import Column, Values, cell, given

_BANDS = ("low", "mid", "high")
COLUMNS = (
    Column(heading="one step", path=("one_step", "nrmse"), form=".3g", spread=True),
    Column(heading="rollout", path=("rollout", "nrmse"), form=".3g", spread=True),
    *(Column(heading=f"fRMSE {band}", path=("rollout", f"fourier_rmse_{band}"), spread=True) for band in _BANDS),
    *(Column(heading=f"spectrum {band}", path=("rollout", f"spectrum_error_{band}"), spread=True) for band in _BANDS),
    Column(heading="correlated for", path=("correlation_time",), form=".3g", spread=True),
    Column(heading="MAE", path=("rollout", "mae"), form=".3g", spread=True),
    Column(heading="CRPS", path=("ensemble", "crps"), form=".3g", spread=True),
    Column(heading="mean's rollout", path=("ensemble", "nrmse"), form=".3g"),
    Column(heading="spread/skill", path=("ensemble", "spread_skill"), spread=True),
    Column(heading="in 50 %", path=("ensemble", "coverage_50")),
    Column(heading="in 90 %", path=("ensemble", "coverage_90")),
    Column(heading="s/rollout step", path=("seconds_per_rollout_step",), form=".2e", cost=True),
    Column(heading="x operator", path=("times_operator",), cost=True),
    Column(heading="a member x", path=("member_times_operator",), cost=True),
    Column(heading="parameters", path=("parameters",), form=",.0f", cost=True),
    Column(heading="steps", path=("steps",), form=".0f", cost=True),
    Column(heading="train s", path=("cpu_seconds",), form=".3g", cost=True),
)


def groups_of(rows: Sequence[StageRow], store: Store) -> dict[tuple[str, str], list[Values]]:
    """The finished rows of each task and way, with the cost of a rollout step in those of the operator's."""
    kept = store.rows()
    groups: dict[tuple[str, str], list[Values]] = {}
    for row in rows:
        if store.finished(row):
            groups.setdefault((row.task, row.way), []).append(kept[row.key])
    operators = {
        (task, values["seed"]): values for (task, way), items in groups.items() if way == "operator" for values in items
    }
    return {
        (task, way): [values | _related(values, operators.get((task, values["seed"]))) for values in items]
        for (task, way), items in groups.items()
    }


def tabulate(groups: Mapping[tuple[str, str], Sequence[Values]]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells, task by task, the ways in their order; a column that no row fills is left out."""
    columns = [column for column in COLUMNS if any(given(rows, column) for rows in groups.values())]
    order = sorted(groups, key=lambda key: (key[0], list(WAYS).index(key[1])))
    body = [[task, way, *(cell(groups[task, way], column) for column in columns)] for task, way in order]
    return ["task", "way", *(column.heading for column in columns)], body


def notes(rows: Sequence[StageRow], groups: Mapping[tuple[str, str], Sequence[Values]], store: Store) -> list[str]:
    """Return the notes below the table, one line each."""
    lines = []
    for task in dict.fromkeys(row.task for row in rows):
        task_rows = [values for (name, _), items in groups.items() if name == task for values in items]
        if task_rows:
            first = task_rows[0]
            lines.append(
                f"{task}: {first['trajectories']} trajectories over {first['frames']} frames; correlated for: "
                f"{first['correlation_trajectories']} over {first['correlation_frames']}"
            )
        if len({values["data"] for values in task_rows}) > 1:
            lines.append(f"{task}: the rows were not made on the same data")
    source = source_digest()
    stale = sorted(
        {f"{task}/{way}" for (task, way), task_rows in groups.items() if any(v["source"] != source for v in task_rows)}
    )
    lines += [f"made by another state of the code: {', '.join(stale)}"] if stale else []
    failed = store.failures()
    lines += [
        f"{row.key} failed: {failed[row.key]['reason']}"
        for row in rows
        if row.key in failed and failed[row.key]["digest"] == row.digest()
    ]
    return lines


def _related(values: Values, operator: Values | None) -> dict[str, float]:
    if operator is None:
        return {}
    alone = operator["seconds_per_rollout_step"]
    related = {"times_operator": values["seconds_per_rollout_step"] / alone}
    if "seconds_per_sampled_step" in values:
        related["member_times_operator"] = values["seconds_per_sampled_step"] / alone
    return related
