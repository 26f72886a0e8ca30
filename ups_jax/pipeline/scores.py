"""Metrics of an evaluation by name, averaged over seeds, as input of the gates, leaderboard and champions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ups_jax import metrics
from ups_jax.core.errors import DataError
from ups_jax.core.files import read_json
from ups_jax.pipeline.cache_keys import json_digest

# The sections of the configuration `pipeline` by the names of the evaluation steps.
SECTIONS = {"small_eval": "small", "full_eval": "full"}
METRIC_SECTIONS = ("one_step", "rollout", "steady")
# Sections whose metrics are also available without the name of the section.
HEADLINE_SECTIONS = ("rollout", "steady")
METRICS = (*metrics.METRICS, "correlation_time")
ALIASES = {"conservation_gap": "conservation_rmse", "bc_violation": "boundary_rmse"}
GATE_NAMES = (*ALIASES, "ece", "wall_clock")
METRIC_NAMES = (*METRICS, *GATE_NAMES, *(f"{section}/{metric}" for section in METRIC_SECTIONS for metric in METRICS))


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of one configuration, over one or more seeds.

    Attributes:
        results: Content of the evaluation file of each seed.
        files: Path of the evaluation file of each seed.
    """

    results: tuple[Mapping[str, Any], ...]
    files: tuple[Path, ...] = ()

    @staticmethod
    def read(files: Sequence[Path]) -> Evaluation:
        """Read the evaluation file of each seed.

        Raises:
            DataError: If a file is not an evaluation, or not all files have the same protocol.
        """
        try:
            results = tuple(read_json(file) for file in files)
            evaluation = Evaluation(results, tuple(files))
            protocols = {protocol_digest(result) for result in results}
            # Compute the cached properties here, so that an error can name the files.
            _ = evaluation.numbers, evaluation.trivial_numbers, evaluation.trained_on
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            names = ", ".join(map(str, files))
            raise DataError(f"{names}: cannot be read as evaluations ({error!r}); evaluate the run again") from None
        if len(protocols) != 1:
            raise DataError(f"{files[0]}: the seeds were evaluated by different protocols; evaluate all seeds again")
        return evaluation

    @cached_property
    def numbers(self) -> dict[str, float]:
        """The metrics by name, averaged over the seeds."""
        return mean_over_seeds(metric_values(result) for result in self.results)

    @cached_property
    def trivial_numbers(self) -> dict[str, float]:
        """The metrics of the trivial prediction (persistence, or the mean field for a steady task), by name."""
        return trivial_values(self.results[0])

    @cached_property
    def scales(self) -> dict[str, float]:
        """The sizes of the fields behind the metrics in their unit, by name, averaged over the seeds."""
        return mean_over_seeds(metric_scales(result) for result in self.results)

    @cached_property
    def trained_on(self) -> float | None:
        """The largest number of evaluated trajectories that a seed was trained on, None if it is not known."""
        counts = [result["meta"].get("trained_on") for result in self.results]
        return None if None in counts else max(map(float, counts))

    @property
    def protocol(self) -> str:
        """The protocol digest, which is equal for comparable evaluations."""
        return protocol_digest(self.results[0])

    @property
    def task(self) -> str:
        """The names of the tasks, joined by `+`."""
        return "+".join(sorted(self.results[0]["metrics"]))

    @property
    def meta(self) -> Mapping[str, Any]:
        """The metadata in the evaluation file of the first seed."""
        return self.results[0]["meta"]

    @property
    def checkpoint(self) -> str:
        """The digest of the evaluated checkpoint, or with several seeds one digest of all their checkpoints."""
        digests = [str(result["meta"]["checkpoint_digest"]) for result in self.results]
        return digests[0] if len(digests) == 1 else json_digest(sorted(digests))

    @property
    def checkpoints(self) -> frozenset[str]:
        """The digests of the evaluated checkpoints, one per seed."""
        return frozenset(str(result["meta"]["checkpoint_digest"]) for result in self.results)

    @property
    def device(self) -> str:
        """The device on which the first seed was evaluated."""
        return str(self.meta["device"])


def protocol_digest(result: Mapping[str, Any]) -> str:
    """Return a digest of 12 hex digits that is equal for comparable evaluations.

    The digest covers the tasks, the split, the true trajectories, the rollout horizon and the version of the metrics.

    Args:
        result: Content of an evaluation file.
    """
    meta = result["meta"]
    data = meta["data"]
    # Results of the first version do not record it.
    version = meta.get("metric_version", "1")
    values = [sorted(result["metrics"]), data["split"], data["truth"], meta["horizon"], version]
    return json_digest(values)[:12]


def canonical_metric_name(name: str) -> str:
    """Return a metric's name without the prefix `metric:` of older configurations."""
    return name.removeprefix("metric:")


def task_metric_name(name: str, task: str) -> str:
    """Return the name `NAME@TASK` of a metric on one of several tasks."""
    return f"{name}@{task}"


def strip_task(name: str) -> str:
    """Return the name of a metric without the suffix `@TASK`."""
    return name.partition("@")[0]


def metric_values(result: Mapping[str, Any]) -> dict[str, float]:
    """Return all metrics of an evaluation by name.

    With several tasks, `NAME` is the mean over the tasks and `NAME@TASK` the value of one task. Non-finite values are
    NaN.

    Args:
        result: Content of an evaluation file.
    """
    values = _mean_and_task_values(result["metrics"])
    ensembles = result["variants"].get("ensemble", {})
    coverage = [tasks.get("rollout", {}).get("coverage_90", ...) for tasks in ensembles.values()]
    if coverage and ... not in coverage:
        values["ece"] = _mean(abs(_float_or_nan(value) - 0.9) for value in coverage)
    if "seconds_per_rollout_step" in result["meta"]:
        values["wall_clock"] = _float_or_nan(result["meta"]["seconds_per_rollout_step"])
    return values


def trivial_values(result: Mapping[str, Any]) -> dict[str, float]:
    """Return all metrics of the trivial prediction (persistence, or the mean field for a steady task), by name.

    Args:
        result: Content of an evaluation file.
    """
    baselines = result["baselines"]
    return _mean_and_task_values(baselines["persistence"] if "persistence" in baselines else baselines["mean_field"])


def metric_scales(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the size of the fields behind each metric in the unit of the fields, under the names of `metric_values`.

    Args:
        result: Content of an evaluation file; the result is empty for a file of metric version 1.
    """
    tasks = result["meta"].get("tasks", {})
    return _mean_and_task_values(
        {
            task: dict.fromkeys(sections, tasks.get(task, {}).get("scales", {}))
            for task, sections in result["metrics"].items()
        }
    )


def mean_over_seeds(seed_values: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean over the seeds of each metric that every seed has."""
    seeds = list(seed_values)
    shared = [name for name in seeds[0] if all(name in values for values in seeds)]
    return {name: _mean(values[name] for values in seeds) for name in shared}


def finite_or_none(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """Return the metrics with None in place of non-finite values, as JSON needs."""
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}


def _mean_and_task_values(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean of each metric over the tasks and, with several tasks, the value of each as `NAME@TASK`."""
    values = _task_means(tasks)
    for task, sections in tasks.items() if len(tasks) > 1 else ():
        values |= {task_metric_name(name, task): value for name, value in _task_means({task: sections}).items()}
    return values


def _task_means(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean over the tasks of each metric that every task has, under its full and short names."""
    means: dict[str, float] = {}
    for section in METRIC_SECTIONS:
        section_values = [sections[section] for sections in tasks.values() if section in sections]
        if len(section_values) < len(tasks):
            continue
        for metric in METRICS:
            if all(metric in values for values in section_values):
                means[f"{section}/{metric}"] = _mean(_float_or_nan(values[metric]) for values in section_values)
    for section in HEADLINE_SECTIONS:
        means |= {metric: means[f"{section}/{metric}"] for metric in METRICS if f"{section}/{metric}" in means}
    return means | {name: means[metric] for name, metric in ALIASES.items() if metric in means}


def _mean(values: Iterable[float]) -> float:
    """Return the exactly rounded mean of the values, or NaN if one of them is not finite."""
    listed = list(values)
    return math.fsum(listed) / len(listed) if all(map(math.isfinite, listed)) else math.nan


def _float_or_nan(value: int | float | None) -> float:
    """Return a number from a JSON file as a float; None, which stands for a number that is not finite, becomes NaN."""
    return math.nan if value is None else float(value)
