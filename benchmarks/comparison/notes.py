"""The notes below a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from comparison.table import Values, value_at

_CLOSE = 0.1
_WAYS = {
    "averaged": "averaged to the trained grid, solved there, interpolated",
    "native": "solved on the finer grid itself",
}


def notes(
    groups: Mapping[str, Sequence[Values]], source: str, *, budget: float = 0.0, absent: Mapping[str, str] | None = None
) -> list[str]:
    """One line a thing; `groups` are each model's rows, `source` the present code, `absent` why others are not there.

    `budget` are the CPU-seconds that each row was given; 0 where it was given steps.
    """
    rows = [row for of_model in groups.values() for row in of_model]
    lines = []
    if stale := [model for model, of_model in groups.items() if any(row["source"] != source for row in of_model)]:
        lines.append(f"made by another state of the code: {', '.join(sorted(stale))}")
    if len({row["data"] for row in rows}) > 1:
        lines.append("the rows were not made on the same data: remove the older ones and run again")
    lines += _seeds(groups) + (_budgets(groups, budget) if budget else []) + _ways(groups) + _correlated(rows)
    for model, of_model in groups.items():
        if skipped := sum(row["skipped"] for row in of_model):
            lines.append(f"{model}: {skipped} steps were not finite and skipped")
    return lines + [f"{row} {why}" for row, why in sorted((absent or {}).items())]


def _seeds(groups: Mapping[str, Sequence[Values]]) -> list[str]:
    # What is not trained has one row for all seeds.
    counts = {model: len(rows) for model, rows in groups.items() if any(row["steps"] for row in rows)}
    most = max(counts.values(), default=0)
    fewer = [f"{model} ({count})" for model, count in sorted(counts.items()) if count < most]
    return [f"fewer than {most} seeds: {', '.join(fewer)}"] if fewer else []


def _budgets(groups: Mapping[str, Sequence[Values]], budget: float) -> list[str]:
    deviations = []
    for model, rows in sorted(groups.items()):
        factors = [row["cpu_seconds"] / budget for row in rows if row["steps"]]
        farthest = max(factors, key=lambda factor: abs(math.log(factor)), default=1.0)
        if abs(farthest - 1) > _CLOSE:
            deviations.append(f"{model} x {farthest:.2f}")
    return (
        [f"CPU-s more than a tenth off the budget, in the seed farthest off: {', '.join(deviations)}"]
        if deviations
        else []
    )


def _ways(groups: Mapping[str, Sequence[Values]]) -> list[str]:
    ways: dict[str, list[str]] = {}
    for model, rows in groups.items():
        for way in _WAYS:
            if any(value_at(row, ("double_resolution", "way")) == way for row in rows):
                ways.setdefault(way, []).append(model)
    return [f"2x resolution {_WAYS[way]}: {', '.join(sorted(models))}" for way, models in sorted(ways.items())]


def _correlated(rows: Sequence[Values]) -> list[str]:
    """Over which trajectories the time of correlation was taken, where they are not those of the other scores."""
    others = {
        (row["correlation_trajectories"], row["correlation_frames"])
        for row in rows
        if "correlation_frames" in row
        and (row["correlation_trajectories"], row["correlation_frames"]) != (row["trajectories"], row["frames"])
    }
    return [
        f"correlated for: of {trajectories} trajectories over {frames} frames"
        for trajectories, frames in sorted(others)
    ]
