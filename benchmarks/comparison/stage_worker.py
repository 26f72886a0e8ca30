"""The process of one row of stages: train what its run still lacks, measure, print the numbers as one line of JSON.

python -m comparison.stage_worker '{"task": ..}'
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import optax
from rich.console import Console

from comparison.answering import answer
from comparison.measuring import correlation, evaluation, first_frames
from comparison.source import source_digest
from comparison.stage_row import WAYS, StageRow
from comparison.tasks import TASKS
from ups_jax.data import open_dataset
from ups_jax.evaluation.result import to_json_values
from ups_jax.inference.corrected import CorrectedModel, load_corrector
from ups_jax.inference.trained_model import load_run
from ups_jax.pipeline.train_all_stages import is_finished
from ups_jax.runs.directory import RunDirectory
from ups_jax.trainer.train import train


def run(row: StageRow) -> dict[str, Any]:
    """Everything that the table needs of one row."""
    path = _trained(row)
    dataset, trained = open_dataset(row.config()), load_run(path)
    way, trajectories = WAYS[row.way], dataset.trajectories(row.split)  # type: ignore[arg-type]
    predictor: Any = trained
    ensembles, parameters = {}, optax.tree.size(trained.weights)
    if len(way.stages) > 1:
        weights = load_corrector(path, way.stages[-1])
        predictor = CorrectedModel(trained, way.stages[-1], weights, sampler_steps=way.sampler_steps)
        parameters += optax.tree.size(weights.params)
        ensembles = {"ensemble": predictor.sample_members} if predictor.is_stochastic else {}
    whole = evaluation(row, predictor, trajectories, dataset)
    scored = evaluation(
        row, predictor, first_frames(trajectories, TASKS[row.task].scored_frames), dataset, ensembles=ensembles
    )
    stages = RunDirectory(path).read_record()["stages"]
    return to_json_values(
        {
            "digest": row.digest(),
            "seed": row.seed,
            "source": source_digest(),
            "data": dataset.fingerprint,
            "parameters": parameters,
            "steps": sum(stages[stage]["steps"] for stage in way.stages),
            "stage_steps": {stage: stages[stage]["steps"] for stage in way.stages},
            "cpu_seconds": sum(stages[stage]["steps"] * stages[stage]["seconds_per_step"] for stage in way.stages),
            "one_step": whole.metrics["one_step"],
            "rollout": scored.metrics["rollout"],
            "whole_rollout": whole.metrics["rollout"],
            **_ensemble(scored.variants),
            **correlation(row, predictor, whole, dataset),
            "trajectories": scored.meta["trajectories"],
            "frames": scored.meta["horizon"],
            "seconds_per_rollout_step": whole.meta["seconds_per_rollout_step"],
        }
    )


def _ensemble(variants: Any) -> dict[str, Any]:
    if "ensemble" not in variants:
        return {"ensemble": None}
    metrics = variants["ensemble"]
    return {
        "ensemble": metrics["rollout"],
        "members": metrics["members"],
        "seconds_per_sampled_step": metrics["seconds_per_rollout_step"] / metrics["members"],
    }


def _trained(row: StageRow) -> Path:
    """The row's run with all of its stages: each begins in a copy of the run of those before it."""
    for count, stage in enumerate(WAYS[row.way].stages, 1):
        path, partial = row.run_path(count), row.run_path(count).with_suffix(".partial")
        if count > 1 and not path.exists():
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(row.run_path(count - 1), partial)
            os.replace(partial, path)
        if not is_finished(RunDirectory(path), row.config(), stage):
            train(row.config(), stage, path, console=Console(stderr=True))
    return path


if __name__ == "__main__":
    answer(lambda text: run(StageRow.from_json(text)))
