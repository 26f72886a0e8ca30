"""Evaluation of a solver on a steady task: metrics in physical units, a baseline and a bootstrap interval."""

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
from ups_jax.evaluation.evaluate import EnsembleFunction, RolloutFunction, steady_ensemble_section
from ups_jax.evaluation.result import SteadyEvaluation, SteadyExample
from ups_jax.metrics.aggregate import (
    bootstrap_interval,
    concatenate_tables,
    fixed_size_chunks,
    score_rows,
    steady_section,
)


def evaluate_steady(
    solve: RolloutFunction,
    trajectories: Trajectories,
    task: Task,
    config: EvaluationConfig,
    *,
    mean_field: Float[np.ndarray, "*s c"],
    seed: int,
    variants: Mapping[str, RolloutFunction] = MappingProxyType({}),
    ensembles: Mapping[str, EnsembleFunction] = MappingProxyType({}),
) -> SteadyEvaluation:
    """Return the metrics of a solver on a steady task, and of the baseline `mean_field`, which ignores the inputs.

    A solution that is not finite makes the mean metrics non-finite and is counted in `nonfinite`.

    Args:
        solve: Function that returns the solutions for input fields.
        trajectories: Input fields and true solutions of a split.
        task: The task, on the grid of the data.
        config: Batch size, number of bootstrap samples and of ensemble members.
        mean_field: Mean of the training solutions at each point, from `mean_solution`.
        seed: Seed of the bootstrap.
        variants: Further solvers to evaluate, by name.
        ensembles: Functions that sample solutions, by name; the ensemble's mean and distribution are evaluated.

    Raises:
        DataError: The split is empty.
    """
    count = len(trajectories.fields)
    if count == 0:
        raise DataError(f"task {task.name}: the split contains no solutions; increase its share in `data.split`")
    solutions, seconds = _timed_solutions(solve, trajectories, config.batch_size)
    solver_tables, mean_field_tables = [], []
    for rows, real_rows in fixed_size_chunks(count, config.batch_size):
        truth = trajectories.fields[rows]
        solver_tables.append(score_rows(solutions[rows], truth, task, real_rows))
        mean_field_tables.append(score_rows(np.broadcast_to(mean_field, truth.shape), truth, task, real_rows))
    table = concatenate_tables(solver_tables)
    scores = table["nrmse"].mean(1)
    return SteadyEvaluation(
        task=task,
        metrics={"steady": steady_section(table)},
        baselines={"mean_field": {"steady": steady_section(concatenate_tables(mean_field_tables))}},
        variants={
            name: _evaluate_variant(solve_variant, trajectories, task, config.batch_size)
            for name, solve_variant in variants.items()
        }
        | {
            name: steady_ensemble_section(
                ensemble, trajectories, task, batch_size=config.batch_size, members=config.members
            )
            for name, ensemble in ensembles.items()
        },
        intervals={"steady": {"nrmse": bootstrap_interval(scores, config.bootstrap, seed)}},
        meta={
            "trajectories": count,
            "horizon": 1,
            "seconds_per_rollout_step": seconds,
            "protocol": (
                f"{task.name}: steady = solution on {' x '.join(map(str, task.shape))} points; mean_field = mean of "
                "the training solutions at each point; seconds_per_rollout_step = wall time per solution after "
                f"compilation, {min(config.batch_size, count)} solutions per batch"
            ),
        },
        ids=[int(index) for index in trajectories.ids],
        per_trajectory={"steady": {"nrmse": scores}},
        examples=_best_median_worst(trajectories, solutions, task, scores),
    )


def mean_solution(dataset: Dataset) -> Float[np.ndarray, "*s c"]:
    """Return the mean of the training solutions at each point."""
    total = np.zeros((*dataset.task.shape, len(dataset.task.channels)))
    train = dataset.splits.ids("train")
    for ids in np.array_split(train, -(-len(train) // 256)):
        total += read_trajectories(dataset.source, ids)[:, 0].sum(0, dtype=np.float64)
    return (total / len(train)).astype(np.float32)


def _timed_solutions(
    solve: RolloutFunction, trajectories: Trajectories, batch_size: int
) -> tuple[Float[np.ndarray, "n 1 *s c"], float]:
    """Return the solutions of all trajectories, and the seconds per solution without compilation."""
    batches = list(fixed_size_chunks(len(trajectories.fields), batch_size))
    solutions = [
        solve(trajectories.inputs[rows], 1, trajectories.cond[rows], trajectories.cond_mask[rows])[:real_rows]
        for rows, real_rows in batches
    ]
    # Timed with the first batch once more, whose shape is already compiled.
    rows, _ = batches[0]
    begin = time.perf_counter()
    solve(trajectories.inputs[rows], 1, trajectories.cond[rows], trajectories.cond_mask[rows])
    return np.concatenate(solutions), (time.perf_counter() - begin) / len(rows)


def _evaluate_variant(
    solve: RolloutFunction, trajectories: Trajectories, task: Task, batch_size: int
) -> dict[str, Any]:
    """Return the metrics of the solutions of `solve`, and the seconds per solution without compilation."""
    solutions, seconds = _timed_solutions(solve, trajectories, batch_size)
    tables = [
        score_rows(solutions[rows], trajectories.fields[rows], task, real_rows)
        for rows, real_rows in fixed_size_chunks(len(trajectories.fields), batch_size)
    ]
    return {"steady": steady_section(concatenate_tables(tables)), "seconds_per_rollout_step": seconds}


def _best_median_worst(
    trajectories: Trajectories, solutions: Float[np.ndarray, "n 1 *s c"], task: Task, nrmse: Float[np.ndarray, " n"]
) -> list[SteadyExample]:
    """Return the solutions with the best, median and worst nRMSE."""
    order = np.argsort(np.where(np.isfinite(nrmse), nrmse, np.inf), kind="stable")
    rows = order[[0, (len(order) - 1) // 2, len(order) - 1]]
    return [
        SteadyExample(
            label=label,
            id=str(trajectories.ids[row]),
            nrmse=float(nrmse[row]),
            coefficients={
                item.name: float(trajectories.cond[row, index])
                for index, item in enumerate(task.coefficients)
                if trajectories.cond_mask[row, index]
            },
            inputs=trajectories.inputs[row],
            truth=trajectories.fields[row, 0],
            prediction=solutions[row, 0],
        )
        for label, row in zip(("best", "median", "worst"), rows, strict=True)
    ]
