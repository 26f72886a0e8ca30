"""The process of one row: train, evaluate, print the row's numbers as the last line of the output.

python -m comparison.worker '{"task": ..}'
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from typing import Any

import numpy as np

from comparison.models import MODELS
from comparison.row import Row, source_digest
from comparison.tasks import TASKS
from comparison.training import Trained, train
from ups_jax.compilation import enable_compilation_cache
from ups_jax.data import Dataset, open_dataset
from ups_jax.errors import ConfigError, UserError
from ups_jax.evaluation.evaluate import evaluate
from ups_jax.evaluation.result import finite


class Persistence:
    """Every later frame is the last one given."""

    def rollout(self, u0: np.ndarray, steps: int, cond: np.ndarray, cond_mask: np.ndarray) -> np.ndarray:
        """The `steps` frames after the context `u0`."""
        return np.repeat(u0[:, -1:], steps, axis=1)

    def reconstruct(self, fields: np.ndarray, cond: np.ndarray, cond_mask: np.ndarray) -> np.ndarray:
        """The fields themselves."""
        return fields


def run(row: Row) -> dict[str, Any]:
    """Everything that the table needs of one row."""
    cfg = row.config()
    if cfg.data.context != 1:
        raise ConfigError(f"data.context is {cfg.data.context}: every model of this comparison sees one frame")
    dataset = open_dataset(cfg)
    trained = _train(row, dataset)
    return finite(
        {
            "digest": row.digest(),
            "seed": row.seed,
            "source": source_digest(),
            "data": dataset.fingerprint,
            "parameters": trained.parameters,
            "steps": trained.steps,
            "cpu_seconds": trained.cpu_seconds,
            "milliseconds_per_step": 1e3 * trained.cpu_seconds / trained.steps if trained.steps else None,
            "compile_seconds": trained.compile_seconds,
            "skipped": trained.skipped,
            **_measure(row, trained, dataset),
        }
    )


def _train(row: Row, dataset: Dataset) -> Trained:
    peer = MODELS[row.model]
    if peer.trained_by == "nothing":
        return Trained(predictor=Persistence(), parameters=0, steps=0, cpu_seconds=0.0, compile_seconds=0.0)
    if peer.trained_by == "torch":
        from comparison import torch_fno

        return torch_fno.train(row, peer.sizes[len(dataset.task.shape)], dataset)
    return train(row, peer, dataset)


def _measure(row: Row, trained: Trained, dataset: Dataset) -> dict[str, Any]:
    """One-step and rollout metrics, the latter over the scored frames only; times and correlation over all."""
    cfg, frames = row.config(), TASKS[row.task].scored_frames
    held = dataset.trajectories(row.split)  # type: ignore[arg-type]
    measured = evaluate(trained.predictor, held, dataset.task, cfg.evaluation, context=1, seed=cfg.seed)
    scored = measured
    if frames is not None:
        short = replace(held, fields=held.fields[:, : frames + 1], time=held.time[: frames + 1])
        scored = evaluate(trained.predictor, short, dataset.task, cfg.evaluation, context=1, seed=cfg.seed)
    return {
        "one_step": measured.metrics["one_step"],
        "rollout": scored.metrics["rollout"],
        "correlation_time": measured.metrics["rollout"].get("correlation_time"),
        "trajectories": measured.meta["trajectories"],
        "frames": scored.meta["horizon"],
        "seconds_per_rollout_step": measured.meta["seconds_per_rollout_step"],
    }


if __name__ == "__main__":
    # Before the first array: threads inherit the core that this one is bound to.
    if len(sys.argv) > 2:
        os.sched_setaffinity(0, {int(sys.argv[2])})
    enable_compilation_cache()
    try:
        values = run(Row.from_json(sys.argv[1]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(json.dumps(values, allow_nan=False))
