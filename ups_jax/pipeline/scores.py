"""A candidate's evaluation as the gates see it: numbers by name, over the seeds, and what they may be compared with."""

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
from ups_jax.pipeline.cache_keys import digest_of

# The two evaluations, by the names of their steps and of their sections in `pipeline`.
SECTIONS = {"small_eval": "small", "full_eval": "full"}
# Raised whenever a metric's formula changes, so that numbers of two versions are never compared.
METRIC_VERSION = "1"
METRIC_SECTIONS = ("one_step", "rollout", "steady")
HEADLINES = ("rollout", "steady")
METRICS = (*metrics.METRICS, "correlation_time")
RENAMED = {"conservation_gap": "conservation_rmse", "bc_violation": "boundary_rmse"}
GATE_NAMES = (*RENAMED, "ece", "wall_clock")
METRIC_NAMES = (*METRICS, *GATE_NAMES, *(f"{section}/{metric}" for section in METRIC_SECTIONS for metric in METRICS))


@dataclass(frozen=True)
class Evaluation:
    """The evaluation JSON of one or more seeds of one configuration, and the files that it was read from."""

    results: tuple[Mapping[str, Any], ...]
    files: tuple[Path, ...] = ()

    @staticmethod
    def read(files: Sequence[Path]) -> Evaluation:
        """From files; DataError where one cannot be read or its seeds were not measured on the same trajectories."""
        try:
            results = tuple(read_json(file) for file in files)
            found = Evaluation(results, tuple(files))
            protocols = {protocol(result) for result in results}
            # Worked out and kept here, where a file that lacks them can be named.
            _ = found.numbers, found.trivial
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            names = ", ".join(map(str, files))
            raise DataError(f"{names}: is no evaluation that can be compared ({error!r}); evaluate again") from None
        if len(protocols) != 1:
            raise DataError(f"{files[0]}: the seeds were evaluated on other trajectories; use --redo-full-eval")
        return found

    @cached_property
    def numbers(self) -> dict[str, float]:
        """Every measured number, mean over the seeds."""
        return mean_over_seeds(metric_values(result) for result in self.results)

    @cached_property
    def trivial(self) -> dict[str, float]:
        """The same of what needs no training."""
        return trivial_values(self.results[0])

    @property
    def protocol(self) -> str:
        return protocol(self.results[0])

    @property
    def task(self) -> str:
        """The names of the tasks."""
        return "+".join(sorted(self.results[0]["metrics"]))

    @property
    def meta(self) -> Mapping[str, Any]:
        return self.results[0]["meta"]

    @property
    def checkpoint(self) -> str:
        """The digest of the evaluated checkpoint; of several seeds' one of theirs."""
        digests = [str(result["meta"]["checkpoint_digest"]) for result in self.results]
        return digests[0] if len(digests) == 1 else digest_of(sorted(digests))

    @property
    def checkpoints(self) -> frozenset[str]:
        """The digests of the evaluated checkpoints, one of each seed."""
        return frozenset(str(result["meta"]["checkpoint_digest"]) for result in self.results)

    @property
    def device(self) -> str:
        return str(self.meta["device"])


def protocol(result: Mapping[str, Any]) -> str:
    """Twelve hex digits over what decides whether two evaluations may be compared: the tasks, the split, what is to be
    predicted and how far, and the version of the metrics."""
    meta = result["meta"]
    data = meta["data"]
    facts = [sorted(result["metrics"]), data["split"], data["truth"], meta["horizon"], METRIC_VERSION]
    return digest_of(facts)[:12]


def canonical_name(name: str) -> str:
    """A metric's name without the prefix that the original gave it, `metric:nrmse`."""
    return name.removeprefix("metric:")


def of_task(name: str, task: str) -> str:
    """What a number of one of several tasks is called."""
    return f"{name}@{task}"


def without_task(name: str) -> str:
    """The name of the same number of all tasks."""
    return name.partition("@")[0]


def metric_values(result: Mapping[str, Any]) -> dict[str, float]:
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


def trivial_values(result: Mapping[str, Any]) -> dict[str, float]:
    """The same numbers of what needs no training: persistence, or the mean field of a steady task."""
    baselines = result["baselines"]
    return _by_task(baselines["persistence"] if "persistence" in baselines else baselines["mean_field"])


def mean_over_seeds(several: Iterable[Mapping[str, float]]) -> dict[str, float]:
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
    for section in METRIC_SECTIONS:
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
