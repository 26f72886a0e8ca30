"""One trained solver on the solutions of one steady task: metrics of physical fields, the mean field, an interval."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float

from ups_jax.config import EvaluationConfig
from ups_jax.core.errors import DataError
from ups_jax.core.task import Task
from ups_jax.data import Dataset
from ups_jax.data.dataset import Trajectories
from ups_jax.data.sources.base import read_trajectories
from ups_jax.evaluation.evaluate import Members, Rollout, steady_ensemble
from ups_jax.evaluation.result import SteadyEvaluation, SteadyExample
from ups_jax.metrics.aggregate import (
    bootstrap_interval,
    concatenate_tables,
    fixed_size_chunks,
    score_rows,
    steady_section,
)


def evaluate_steady(
    solve: Rollout,
    held: Trajectories,
    task: Task,
    config: EvaluationConfig,
    *,
    mean_field: Float[np.ndarray, "*s c"],
    seed: int,
    variants: Mapping[str, Rollout] = MappingProxyType({}),
    ensembles: Mapping[str, Members] = MappingProxyType({}),
) -> SteadyEvaluation:
    """Errors of the solutions, beside those of the mean field, which needs no given field at all.

    `variants` are other ways to solve, by name, such as one sample of a corrector; `ensembles` are scored by their
    distribution as well, of `evaluation.members` samples.

    `task` is on the grid of the data. A solution that is not finite makes the mean metrics non-finite and counts in
    `nonfinite`.
    """
    count = len(held.fields)
    if count == 0:
        raise DataError(f"task {task.name}: the split holds no solutions; give a larger share in data.split")
    solutions, seconds = _solutions(solve, held, config.batch_size)
    parts, means = [], []
    for rows, kept in fixed_size_chunks(count, config.batch_size):
        truth = held.fields[rows]
        parts.append(score_rows(solutions[rows], truth, task, kept))
        means.append(score_rows(np.broadcast_to(mean_field, truth.shape), truth, task, kept))
    table = concatenate_tables(parts)
    scores = table["nrmse"].mean(1)
    return SteadyEvaluation(
        task=task,
        metrics={"steady": steady_section(table)},
        baselines={"mean_field": {"steady": steady_section(concatenate_tables(means))}},
        variants={name: _variant(way, held, task, config.batch_size) for name, way in variants.items()}
        | {
            name: steady_ensemble(way, held, task, batch_size=config.batch_size, members=config.members)
            for name, way in ensembles.items()
        },
        intervals={"steady": {"nrmse": bootstrap_interval(scores, config.bootstrap, seed)}},
        meta={
            "trajectories": count,
            "horizon": 1,
            "seconds_per_rollout_step": seconds,
            "protocol": (
                f"{task.name}: steady = each solution on {' x '.join(map(str, task.shape))} points; mean_field = mean "
                "of the data's training solutions at each point; seconds_per_rollout_step = warm wall clock of a "
                f"solution, {min(config.batch_size, count)} at a time"
            ),
        },
        ids=[int(number) for number in held.ids],
        per_trajectory={"steady": {"nrmse": scores}},
        examples=_examples(held, solutions, task, scores),
    )


def mean_solution(dataset: Dataset) -> Float[np.ndarray, "*s c"]:
    """The mean over the training solutions at each point."""
    total = np.zeros((*dataset.task.shape, len(dataset.task.channels)))
    train = dataset.splits.ids("train")
    for ids in np.array_split(train, -(-len(train) // 256)):
        total += read_trajectories(dataset.source, ids)[:, 0].sum(0, dtype=np.float64)
    return (total / len(train)).astype(np.float32)


def _solutions(solve: Rollout, held: Trajectories, batch_size: int) -> tuple[Float[np.ndarray, "n 1 *s c"], float]:
    """All solutions, and the seconds a solution of the first batch once more, when it is compiled."""
    batches = list(fixed_size_chunks(len(held.fields), batch_size))
    solved = [solve(held.inputs[rows], 1, held.cond[rows], held.cond_mask[rows])[:kept] for rows, kept in batches]
    rows, _ = batches[0]
    begin = time.perf_counter()
    solve(held.inputs[rows], 1, held.cond[rows], held.cond_mask[rows])
    return np.concatenate(solved), (time.perf_counter() - begin) / len(rows)


def _variant(solve: Rollout, held: Trajectories, task: Task, batch_size: int) -> dict[str, Any]:
    solutions, seconds = _solutions(solve, held, batch_size)
    parts = [
        score_rows(solutions[rows], held.fields[rows], task, kept)
        for rows, kept in fixed_size_chunks(len(held.fields), batch_size)
    ]
    return {"steady": steady_section(concatenate_tables(parts)), "seconds_per_rollout_step": seconds}


def _examples(
    held: Trajectories, solutions: Float[np.ndarray, "n 1 *s c"], task: Task, scores: Float[np.ndarray, " n"]
) -> list[SteadyExample]:
    """Best, median and worst solution."""
    order = np.argsort(np.where(np.isfinite(scores), scores, np.inf), kind="stable")
    rows = order[[0, (len(order) - 1) // 2, len(order) - 1]]
    return [
        SteadyExample(
            label=label,
            id=str(held.ids[row]),
            nrmse=float(scores[row]),
            coefficients={
                item.name: float(held.cond[row, index])
                for index, item in enumerate(task.coefficients)
                if held.cond_mask[row, index]
            },
            inputs=held.inputs[row],
            truth=held.fields[row, 0],
            prediction=solutions[row, 0],
        )
        for label, row in zip(("best", "median", "worst"), rows, strict=True)
    ]
