"""The numbers of an evaluation by the names that gates and leaderboard use; pure, on the evaluation's JSON.

A name is that of a metric of the headline section (`rollout`, of a steady task `steady`), `section/metric` for any
section, or one of the gates' own: `conservation_gap`, `bc_violation`, `ece`, `wall_clock`. Of several tasks a name is
of the mean, and with `@` and a task behind it (`nrmse@burgers1d`) of that task.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ups_jax import metric_names

# Raised whenever a metric's formula changes, so that numbers of two versions are never compared.
METRIC_VERSION = "1"
SECTIONS = ("one_step", "rollout", "steady")
HEADLINES = ("rollout", "steady")
METRICS = (*metric_names.METRICS, "correlation_time")
RENAMED = {"conservation_gap": "conservation_rmse", "bc_violation": "boundary_rmse"}
GATE_NAMES = (*RENAMED, "ece", "wall_clock")
NAMES = (*METRICS, *GATE_NAMES, *(f"{section}/{metric}" for section in SECTIONS for metric in METRICS))


def canonical(name: str) -> str:
    """A metric's name without the prefix that the original gave it, `metric:nrmse`."""
    return name.removeprefix("metric:")


def of_task(name: str, task: str) -> str:
    """What a number of one of several tasks is called."""
    return f"{name}@{task}"


def without_task(name: str) -> str:
    """The name of the same number of all tasks."""
    return name.partition("@")[0]


def measures(result: Mapping[str, Any]) -> dict[str, float]:
    """Every measured number of an evaluation; of several tasks the mean, and each task's. What is not finite is NaN,
    not left out."""
    found = _by_task(result["metrics"])
    ensembles = result["variants"].get("ensemble", {})
    coverage = [values.get("rollout", {}).get("coverage_90", ...) for values in ensembles.values()]
    if coverage and ... not in coverage:
        found["ece"] = _mean(abs(_number(value) - 0.9) for value in coverage)
    if "seconds_per_rollout_step" in result["meta"]:
        found["wall_clock"] = _number(result["meta"]["seconds_per_rollout_step"])
    return found


def trivial(result: Mapping[str, Any]) -> dict[str, float]:
    """The same numbers of what needs no training: persistence, or the mean field of a steady task."""
    baselines = result["baselines"]
    return _by_task(baselines["persistence"] if "persistence" in baselines else baselines["mean_field"])


def mean_of(several: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean over seeds of what all of them have measured."""
    each = list(several)
    shared = [name for name in each[0] if all(name in values for values in each)]
    return {name: _mean(values[name] for values in each) for name in shared}


def plain(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """For JSON: None for what is not finite."""
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}


def _by_task(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    found = _named(tasks)
    for task, sections in tasks.items() if len(tasks) > 1 else ():
        found |= {of_task(name, task): value for name, value in _named({task: sections}).items()}
    return found


def _named(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for section in SECTIONS:
        own = [sections[section] for sections in tasks.values() if section in sections]
        if len(own) < len(tasks):
            continue
        for metric in METRICS:
            if all(metric in values for values in own):
                found[f"{section}/{metric}"] = _mean(_number(values[metric]) for values in own)
    for section in HEADLINES:
        found |= {metric: found[f"{section}/{metric}"] for metric in METRICS if f"{section}/{metric}" in found}
    return found | {name: found[metric] for name, metric in RENAMED.items() if metric in found}


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed) if all(map(math.isfinite, listed)) else math.nan


def _number(value: Any) -> float:
    """JSON has null for a number that was not finite."""
    return math.nan if value is None else float(value)
