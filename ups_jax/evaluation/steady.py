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
from ups_jax.data.scan import trajectory_chunks
from ups_jax.evaluation.evaluate import (
    EnsembleFunction,
    RolloutFunction,
    SolutionArrays,
    rows_per_chunk,
    steady_ensemble_section,
)
from ups_jax.evaluation.result import SteadyEvaluation, SteadyExample
from ups_jax.metrics.aggregate import (
    Table,
    bootstrap_interval,
    concatenate_tables,
    fixed_size_chunks,
    score_rows,
    steady_section,
)


def evaluate_steady(
    solve: RolloutFunction,
    trajectories: SolutionArrays,
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
    count = trajectories.fields.shape[0]
    batch_size = rows_per_chunk(trajectories.fields, config.batch_size)
    if count == 0:
        raise DataError(f"task {task.name}: the split contains no solutions; increase its share in `data.split`")
    table, seconds = _timed_table(solve, trajectories, task, batch_size)
    mean_field_table, _ = _timed_table(
        lambda u0, steps, cond, cond_mask: np.broadcast_to(mean_field, (len(u0), 1, *mean_field.shape)),
        trajectories,
        task,
        batch_size,
    )
    scores = table["nrmse"].mean(1)
    return SteadyEvaluation(
        task=task,
        metrics={"steady": steady_section(table)},
        baselines={"mean_field": {"steady": steady_section(mean_field_table)}},
        variants={
            name: _evaluate_variant(solve_variant, trajectories, task, batch_size)
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
                f"compilation, {min(batch_size, count)} solutions per batch"
            ),
        },
        ids=[int(index) for index in trajectories.ids],
        per_trajectory={"steady": {"nrmse": scores}},
        examples=_best_median_worst(solve, trajectories, task, scores, batch_size),
    )


def mean_solution(dataset: Dataset) -> Float[np.ndarray, "*s c"]:
    """Return the mean of the training solutions at each point."""
    total = np.zeros((*dataset.task.shape, len(dataset.task.channels)))
    train = dataset.splits.ids("train")
    for _, fields in trajectory_chunks(dataset.source, train):
        total += fields[:, 0].sum(0, dtype=np.float64)
    return (total / len(train)).astype(np.float32)


def _timed_table(
    solve: RolloutFunction, trajectories: SolutionArrays, task: Task, batch_size: int
) -> tuple[Table, float]:
    """Return the metrics of the solutions, and the seconds per solution without compilation."""
    tables: list[Table] = []
    for rows, real_rows in fixed_size_chunks(trajectories.fields.shape[0], batch_size):
        arguments = (trajectories.inputs[rows], 1, trajectories.cond[rows], trajectories.cond_mask[rows])
        tables.append(score_rows(solve(*arguments), trajectories.fields[rows], task, real_rows))
    # Timed with the last batch once more, whose shape is already compiled.
    begin = time.perf_counter()
    solve(*arguments)
    return concatenate_tables(tables), (time.perf_counter() - begin) / len(rows)


def _evaluate_variant(
    solve: RolloutFunction, trajectories: SolutionArrays, task: Task, batch_size: int
) -> dict[str, Any]:
    """Return the `steady` section of a variant, and its seconds per solution without compilation."""
    table, seconds = _timed_table(solve, trajectories, task, batch_size)
    return {"steady": steady_section(table), "seconds_per_rollout_step": seconds}


def _best_median_worst(
    solve: RolloutFunction, trajectories: SolutionArrays, task: Task, nrmse: Float[np.ndarray, " n"], batch_size: int
) -> list[SteadyExample]:
    """Return the solutions with the best, median and worst nRMSE, which are computed again."""
    order = np.argsort(np.where(np.isfinite(nrmse), nrmse, np.inf), kind="stable")
    rows = order[[0, (len(order) - 1) // 2, len(order) - 1]]
    inputs, truth = trajectories.inputs[rows], trajectories.fields[rows]
    # Padded to the size of the batches, so that nothing is compiled again.
    size = min(batch_size, len(order))
    padded = np.resize(np.arange(len(rows)), -(-len(rows) // size) * size).reshape(-1, size)
    solutions = np.concatenate(
        [solve(inputs[part], 1, trajectories.cond[rows[part]], trajectories.cond_mask[rows[part]]) for part in padded]
    )
    return [
        SteadyExample(
            label=label,
            id=str(trajectories.ids[row]),
            nrmse=float(nrmse[row]),
            coefficients={
                item.name: float(trajectories.cond[row, column])
                for column, item in enumerate(task.coefficients)
                if trajectories.cond_mask[row, column]
            },
            inputs=inputs[index],
            truth=truth[index, 0],
            prediction=solutions[index, 0],
        )
        for index, (label, row) in enumerate(zip(("best", "median", "worst"), rows, strict=True))
    ]
