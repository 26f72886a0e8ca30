"""Results of an evaluation: dataclasses for one task, and the evaluation JSON of all tasks of a run.

The modules `evaluate` and `steady` compute the results; `plots` draws them.
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
from ups_jax.metrics import METRIC_VERSION, UNITS


@dataclass(frozen=True, kw_only=True)
class Example:
    """One trajectory for plots, from the last context frame on.

    Attributes:
        label: Rank by nRMSE among the evaluated trajectories: `best`, `median` or `worst`.
        id: Index of the trajectory in its file.
        nrmse: nRMSE of the trajectory's rollout, averaged over time.
        coefficients: PDE coefficients by name, in physical units.
        truth: True fields in physical units.
        prediction: Predicted fields; the first frame is the last context frame.
        point_arrays: Arrays of a point cloud, such as `coords`; empty on a grid.
    """

    label: str
    id: str
    nrmse: float
    coefficients: Mapping[str, float]
    time: Float[np.ndarray, " t"]
    truth: Float[np.ndarray, "t *s c"]
    prediction: Float[np.ndarray, "t *s c"]
    point_arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Spectra:
    """Energy spectra at some times of the rollout, averaged over the trajectories.

    The fields of each channel are divided by its training standard deviation, so that channels of different units have
    the same weight.

    Attributes:
        truth: Spectra of the true fields, by time and wavenumber.
        prediction: Spectra of the predicted fields.
    """

    time: Float[np.ndarray, " m"]
    truth: Float[np.ndarray, "m k"]
    prediction: Float[np.ndarray, "m k"]


@dataclass(frozen=True, kw_only=True)
class TaskEvaluation:
    """The evaluation of one task. A section, such as `one_step` or `rollout`, is a mapping of metrics.

    Attributes:
        task: The task, on the grid of the data.
        metrics: Metrics of the model, as section -> metric.
        baselines: Metrics of baselines, such as persistence, as baseline -> section -> metric.
        variants: Metrics of other ways to predict with the run, such as a corrected rollout, as variant -> section ->
            metric, and `seconds_per_rollout_step` of each variant.
        intervals: 95 % bootstrap intervals of the mean over trajectories, as section -> metric.
        meta: Number of trajectories, horizon, seconds per step, an explanation of the sections, and under `trained_on`
            the ids of the trajectories that the run was trained on (None or missing if they are not known).
        ids: Indices of the trajectories in their file.
        per_trajectory: Metrics of each trajectory, as section -> metric; two evaluations can be compared in pairs.
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
class TransientEvaluation(TaskEvaluation):
    """The metrics of a transient task, with data for plots.

    Attributes:
        time: Times of the predicted frames.
        rollout_nrmse: Mean nRMSE of each trajectory's rollout.
        examples: Best, median and worst trajectory.
        spectra: Energy spectra; None for a point cloud.
    """

    time: Float[np.ndarray, " steps"]
    rollout_nrmse: Float[np.ndarray, " n"]
    examples: Sequence[Example]
    spectra: Spectra | None


@dataclass(frozen=True, kw_only=True)
class PointEvaluation(TransientEvaluation):
    """The metrics of a transient task on a point cloud, with data for plots."""


@dataclass(frozen=True, kw_only=True)
class SteadyExample:
    """One solution of a steady task for plots.

    Attributes:
        label: Rank by nRMSE among the evaluated solutions: `best`, `median` or `worst`.
        id: Index of the solution in its file.
        nrmse: nRMSE of the predicted solution.
        coefficients: PDE coefficients by name, in physical units.
        inputs: Input fields of the solver.
        truth: True solution in physical units.
    """

    label: str
    id: str
    nrmse: float
    coefficients: Mapping[str, float]
    inputs: Float[np.ndarray, "*s i"]
    truth: Float[np.ndarray, "*s c"]
    prediction: Float[np.ndarray, "*s c"]


@dataclass(frozen=True, kw_only=True)
class SteadyEvaluation(TaskEvaluation):
    """The metrics of a steady task, with data for plots.

    Attributes:
        examples: Best, median and worst solution.
    """

    examples: Sequence[SteadyExample]


class EvaluationResult(TypedDict):
    """The contents of an evaluation JSON file.

    Attributes:
        metrics: Metrics of the model, as task -> section (`one_step`, `rollout`, ...) -> metric.
        baselines: Metrics of baselines, such as persistence, as baseline -> task -> section -> metric.
        variants: Metrics of other ways to predict with the run, as variant -> task -> section -> metric.
        intervals: 95 % bootstrap intervals of the mean over trajectories, as task -> section -> metric.
        per_trajectory: Indices and metrics of the trajectories, by task.
        units: Unit of each metric: `1`, `field`, `time` or `s`.
        meta: Checkpoint, data, explanation of the sections, device, notes and timing.
    """

    metrics: dict[str, dict[str, Any]]
    baselines: dict[str, dict[str, Any]]
    variants: dict[str, dict[str, Any]]
    intervals: dict[str, dict[str, Any]]
    per_trajectory: dict[str, dict[str, Any]]
    units: dict[str, str]
    meta: dict[str, Any]


def evaluation_result(evaluations: Sequence[TaskEvaluation], meta: Mapping[str, Any]) -> EvaluationResult:
    """Return the contents of the evaluation JSON file for the tasks of a run.

    Args:
        evaluations: The metrics of each task.
        meta: Further entries for `meta`, such as checkpoint and seed. This function adds the number of trajectories
            (total), how many of them the run was trained on, the horizon (longest) and the time per step (slowest) over
            all tasks, and for each task the size of the fields behind each metric in the unit of the fields.
    """
    task_metas = [item.meta for item in evaluations]
    trained_on: list[list[int] | None] = [item.get("trained_on") for item in task_metas]
    counts = [len(ids) for ids in trained_on if ids is not None]
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
        "units": dict(UNITS),
        "meta": {
            **meta,
            "metric_version": METRIC_VERSION,
            "trajectories": sum(item["trajectories"] for item in task_metas),
            "trained_on": sum(counts) if len(counts) == len(task_metas) else None,
            "horizon": max(item["horizon"] for item in task_metas),
            "seconds_per_rollout_step": max(item["seconds_per_rollout_step"] for item in task_metas),
            "protocol": "; ".join(item["protocol"] for item in task_metas),
            "tasks": {item.task.name: {**item.meta, "scales": metric_scales(item.task)} for item in evaluations},
        },
    }


def trained_on_text(task_meta: Mapping[str, Any]) -> str:
    """Return a sentence with the number of evaluated trajectories that the run was trained on."""
    trained_on, count = task_meta.get("trained_on"), task_meta["trajectories"]
    number = "an unknown number" if trained_on is None else len(trained_on)
    return f"trained on {number} of the {count} evaluated trajectories"


def metric_scales(task: Task) -> dict[str, float]:
    """Return the typical size of each metric in the unit of the fields: their training deviation over its channels."""
    deviations = task.statistics.scale
    conserved = [deviations[channel] for channel in task.conserved] or deviations
    return {
        name: math.hypot(*channels) / math.sqrt(len(channels))
        for name, unit in UNITS.items()
        if unit == "field"
        for channels in [conserved if name == "conservation_rmse" else deviations]
    }


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write values as JSON atomically; a number that is not finite becomes null.

    Raises:
        StorageError: The file cannot be written.
    """
    write_atomically(path, json.dumps(to_json_values(values), indent=2, allow_nan=False) + "\n")


def to_json_values(value: Any) -> Any:
    """Return `value` for JSON: NumPy scalars and arrays as Python numbers and lists, non-finite numbers as None."""
    if isinstance(value, Mapping):
        return {str(key): to_json_values(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return to_json_values(value.tolist())
    if isinstance(value, list | tuple):
        return [to_json_values(item) for item in value]
    if isinstance(value, np.generic):
        return to_json_values(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
