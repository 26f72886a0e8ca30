"""The process of one row: train, evaluate, print the row's numbers as one line of JSON.

python -m comparison.worker '{"task": ..}'
"""

from __future__ import annotations

from typing import Any

from comparison.answering import answer
from comparison.measuring import SCORES, Persistence
from comparison.models import MODELS
from comparison.row import Row
from comparison.source import source_digest
from comparison.tasks import TASKS
from comparison.training import Trained, train
from ups_jax.core.errors import ConfigError
from ups_jax.data import Dataset, open_dataset
from ups_jax.evaluation.result import to_json_values


def run(row: Row) -> dict[str, Any]:
    """Everything that the table needs of one row."""
    cfg = row.config()
    if cfg.data.context != 1:
        raise ConfigError(f"data.context is {cfg.data.context}: every model of this comparison sees one frame")
    dataset = open_dataset(cfg)
    trained = _train(row, dataset)
    return to_json_values(
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
            **SCORES[dataset.task.kind](row, trained, dataset),
        }
    )


def _train(row: Row, dataset: Dataset) -> Trained:
    peer = MODELS[row.model]
    if peer.trained_by == "nothing":
        run = Persistence() if dataset.task.kind == "transient" else None
        return Trained(run=run, parameters=0, steps=0, cpu_seconds=0.0, compile_seconds=0.0)
    if peer.trained_by == "torch":
        from comparison import torch_fno

        return torch_fno.train(row, peer.sizes[TASKS[row.task].group], dataset)
    return train(row, peer, dataset)


if __name__ == "__main__":
    answer(lambda text: run(Row.from_json(text)))
