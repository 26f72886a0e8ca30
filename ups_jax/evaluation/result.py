"""What an evaluation finds: the record of one task, and the evaluation JSON of several.

Computing it is `evaluate`; drawing it is `plots`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Float

from ups_jax.core.files import write_atomically
from ups_jax.core.task import Task


@dataclass(frozen=True, kw_only=True)
class Example:
    """One test trajectory from the last context frame on; the first frame of `prediction` is that frame itself.

    `places` are a set of points' entries of a batch."""

    label: str
    id: str
    nrmse: float
    coefficients: Mapping[str, float]
    time: Float[np.ndarray, " t"]
    truth: Float[np.ndarray, "t *s c"]
    prediction: Float[np.ndarray, "t *s c"]
    places: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Spectra:
    """Energy spectra at some times of the rollout, averaged over the trajectories."""

    time: Float[np.ndarray, " m"]
    truth: Float[np.ndarray, "m k"]
    prediction: Float[np.ndarray, "m k"]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the evaluation of any task has: all of it for the JSON.

    `per_trajectory` has the sections' metrics of each of the trajectories `ids` that two evaluations can be compared
    by. `variants` are other ways to roll out the same run, by name: a `rollout` section and `seconds_per_rollout_step`.
    """

    task: Task
    metrics: Mapping[str, Mapping[str, Any]]
    baselines: Mapping[str, Mapping[str, Mapping[str, Any]]]
    variants: Mapping[str, Mapping[str, Any]]
    intervals: Mapping[str, Mapping[str, list[float]]]
    meta: Mapping[str, Any]
    ids: Sequence[int] = ()
    per_trajectory: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Evaluation(Measured):
    """The result of a transient task; beyond the numbers, what the plots show."""

    time: Float[np.ndarray, " steps"]
    rollout_nrmse: Float[np.ndarray, " n"]
    examples: Sequence[Example]
    spectra: Spectra | None


@dataclass(frozen=True, kw_only=True)
class PointEvaluation(Evaluation):
    """The result of a transient task on a set of points, which has no spectra."""


@dataclass(frozen=True, kw_only=True)
class SteadyExample:
    """One test solution with the fields that it was solved for."""

    label: str
    id: str
    nrmse: float
    coefficients: Mapping[str, float]
    inputs: Float[np.ndarray, "*s i"]
    truth: Float[np.ndarray, "*s c"]
    prediction: Float[np.ndarray, "*s c"]


@dataclass(frozen=True, kw_only=True)
class SteadyEvaluation(Measured):
    """The result of a steady task; beyond the numbers, what the plots show."""

    examples: Sequence[SteadyExample]


class EvaluationResult(TypedDict):
    """The evaluation JSON. Each mapping has the names of the tasks as keys, below the name of the baseline or variant.

    Attributes:
        metrics: For each task the sections `one_step`, `rollout` and others, each with a number for each metric.
        baselines: The same sections of each baseline, such as persistence.
        variants: The same sections of each other way to predict with the run.
        intervals: Bootstrap intervals of the mean over trajectories, 95 percent, for each task and metric.
        per_trajectory: Numbers of the trajectories and values of each metric, for each task.
        meta: Checkpoint, data, protocol, device, notes and timing.
    """

    metrics: dict[str, dict[str, Any]]
    baselines: dict[str, dict[str, Any]]
    variants: dict[str, dict[str, Any]]
    intervals: dict[str, dict[str, Any]]
    per_trajectory: dict[str, dict[str, Any]]
    meta: dict[str, Any]


def result(evaluations: Sequence[Measured], meta: Mapping[str, Any]) -> EvaluationResult:
    """The evaluation JSON of one or more tasks; `meta` is what only the caller knows (steps, seed, checkpoint, ..).

    Of several tasks `meta` has the total of trajectories, the longest horizon and the slowest step, and each task's
    own under `tasks`.
    """
    own = [item.meta for item in evaluations]
    return {
        "metrics": {item.task.name: dict(item.metrics) for item in evaluations},
        "baselines": {
            name: {item.task.name: item.baselines[name] for item in evaluations} for name in evaluations[0].baselines
        },
        "variants": {
            name: {item.task.name: item.variants[name] for item in evaluations} for name in evaluations[0].variants
        },
        "intervals": {item.task.name: dict(item.intervals) for item in evaluations},
        "per_trajectory": {item.task.name: {"ids": list(item.ids), **item.per_trajectory} for item in evaluations},
        "meta": {
            **meta,
            "trajectories": sum(item["trajectories"] for item in own),
            "horizon": max(item["horizon"] for item in own),
            "seconds_per_rollout_step": max(item["seconds_per_rollout_step"] for item in own),
            "protocol": "; ".join(item["protocol"] for item in own),
            "tasks": {item.task.name: dict(item.meta) for item in evaluations},
        },
    }


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write valid JSON atomically; a non-finite number becomes null (sections count theirs in `nonfinite`).

    Raises `StorageError` where the file cannot be written.
    """
    write_atomically(path, json.dumps(finite(values), indent=2, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """Plain JSON values: numpy scalars and arrays become Python ones, non-finite numbers None."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return finite(value.tolist())
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, np.generic):
        return finite(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
