"""Results of an evaluation: the dataclasses of one task, and the evaluation JSON of all tasks of a run.

`evaluate` and `steady` compute them; `plots` draws them.
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
    """One trajectory for plots, from the last context frame on.

    Attributes:
        label: `best`, `median` or `worst` of the evaluated trajectories.
        id: Index of the trajectory in its file.
        nrmse: Mean nRMSE of its rollout.
        coefficients: PDE coefficients by name, in physical units.
        time: Times of the frames.
        truth: True fields in physical units.
        prediction: Predicted fields; their first frame is the last context frame.
        point_arrays: Arrays of a point cloud; empty for a grid.
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

    Attributes:
        time: Times of the spectra.
        truth: Spectra of the true fields, by wavenumber.
        prediction: Spectra of the predicted fields.
    """

    time: Float[np.ndarray, " m"]
    truth: Float[np.ndarray, "m k"]
    prediction: Float[np.ndarray, "m k"]


@dataclass(frozen=True, kw_only=True)
class TaskEvaluation:
    """The metrics of one task. A section, such as `one_step` or `rollout`, is a mapping of metrics.

    Attributes:
        task: The task, on the grid of the data.
        metrics: Sections of the model.
        baselines: Sections of each baseline, such as persistence.
        variants: Sections of other ways to predict with the same run, such as a corrected rollout, and their
            `seconds_per_rollout_step`.
        intervals: 95 % bootstrap intervals of the mean over trajectories, by section and metric.
        meta: Number of trajectories, horizon, seconds per step, and the evaluation protocol in words.
        ids: Indices of the trajectories in their file.
        per_trajectory: Metrics of each trajectory by section, to compare two evaluations in pairs.
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
        label: `best`, `median` or `worst` of the evaluated solutions.
        id: Index of the solution in its file.
        nrmse: nRMSE of the predicted solution.
        coefficients: PDE coefficients by name, in physical units.
        inputs: Input fields of the solver.
        truth: True solution in physical units.
        prediction: Predicted solution.
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
        metrics: By task, the sections `one_step`, `rollout` and others; a section is a mapping of metrics.
        baselines: By baseline, such as persistence, and task, the same sections.
        variants: By variant, which is another way to predict with the run, and task, the same sections.
        intervals: By task, 95 % bootstrap intervals of the mean over trajectories.
        per_trajectory: By task, the indices of the trajectories and their metrics.
        meta: Checkpoint, data, protocol, device, notes and timing.
    """

    metrics: dict[str, dict[str, Any]]
    baselines: dict[str, dict[str, Any]]
    variants: dict[str, dict[str, Any]]
    intervals: dict[str, dict[str, Any]]
    per_trajectory: dict[str, dict[str, Any]]
    meta: dict[str, Any]


def evaluation_result(evaluations: Sequence[TaskEvaluation], meta: Mapping[str, Any]) -> EvaluationResult:
    """Return the evaluation JSON of one or more tasks.

    Args:
        evaluations: The metrics of each task.
        meta: Further entries for the result's `meta`, such as checkpoint and seed. The number of trajectories (total),
            the horizon (longest) and the time per step (slowest) over all tasks are added.
    """
    task_metas = [item.meta for item in evaluations]
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
            "trajectories": sum(item["trajectories"] for item in task_metas),
            "horizon": max(item["horizon"] for item in task_metas),
            "seconds_per_rollout_step": max(item["seconds_per_rollout_step"] for item in task_metas),
            "protocol": "; ".join(item["protocol"] for item in task_metas),
            "tasks": {item.task.name: dict(item.meta) for item in evaluations},
        },
    }


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write values as JSON atomically; a number that is not finite becomes null.

    Raises:
        StorageError: The file cannot be written.
    """
    write_atomically(path, json.dumps(to_json_values(values), indent=2, allow_nan=False) + "\n")


def to_json_values(value: Any) -> Any:
    """Return `value` as plain JSON values: NumPy scalars and arrays become Python ones, non-finite numbers None."""
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
