"""An evaluation never holds a whole split: it reads chunks, and gives the numbers of an evaluation in memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from commands import CONFIGS
from rich.console import Console

from ups_jax import simulate
from ups_jax.config import EvaluationConfig, load
from ups_jax.core.task import Statistics, Task
from ups_jax.data import open_dataset
from ups_jax.evaluation import evaluate
from ups_jax.evaluation.evaluate import evaluate_predictor, rows_per_chunk
from ups_jax.evaluation.evaluate_run import Selection, evaluate_run, evaluation_config, truth_digest

TASK = Task(
    name="still", channels=("u",), axes=("x",), shape=(16,), origin=(0.0,), spacing=(1 / 16,), periodic=(True,), dt=0.5,
    statistics=Statistics(mean=(0.0,), std=(1.0,), delta_std=(0.1,)),
)  # fmt: skip
FIELDS = np.random.default_rng(0).normal(size=(11, 6, 16, 1)).astype(np.float32)
ROW_BYTES = FIELDS[0].nbytes


@dataclass
class CountedRows:
    """Rows that record how many are read at once."""

    values: np.ndarray
    reads: list[int] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def __getitem__(self, rows: Any) -> np.ndarray:
        self.reads.append(len(rows))
        return self.values[rows]


class Shrinks:
    """Predicts that the field shrinks; the calls' numbers of rows are recorded."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def rollout_arrays(self, u0: np.ndarray, steps: int, cond: np.ndarray, cond_mask: np.ndarray) -> np.ndarray:
        self.rows.append(len(u0))
        return u0[:, -1:] * 0.9 ** np.arange(1, steps + 1, dtype=np.float32)[None, :, None, None]

    def reconstruct(self, fields: np.ndarray, cond: np.ndarray, cond_mask: np.ndarray) -> np.ndarray:
        return fields


def members(u0: np.ndarray, steps: int, cond: np.ndarray, cond_mask: np.ndarray, *, members: int) -> np.ndarray:
    scales = np.linspace(0.8, 1, members, dtype=np.float32)[:, None, None, None, None]
    return scales * np.repeat(u0[None, :, -1:], steps, axis=2)


def evaluated(fields: Any) -> Any:
    trajectories = SimpleNamespace(
        fields=fields, cond=np.zeros((11, 0), np.float32), cond_mask=np.zeros((11, 0), np.float32),
        time=0.5 * np.arange(6), ids=np.arange(11),
    )  # fmt: skip
    predictor = Shrinks()
    config = EvaluationConfig(bootstrap=5, members=4)
    variants = {"latent": predictor.rollout_arrays}
    result = evaluate_predictor(
        predictor, trajectories, TASK, config, context=1, seed=0, variants=variants, ensembles={"ensemble": members}
    )
    return result, predictor


def test_chunks_are_bounded_by_the_size_of_their_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, predictor = evaluated(FIELDS)
    assert max(predictor.rows) == 55
    monkeypatch.setattr(evaluate, "_CHUNK_BYTES", 3 * ROW_BYTES)
    rows = CountedRows(FIELDS)
    chunked, predictor = evaluated(rows)
    # Three examples are read at once. A chunk of windows (context and next frame) spans up to two trajectories.
    assert max(rows.reads) == 3 and max(predictor.rows) == 4
    for section in ("one_step", "rollout"):
        for name, value in whole.metrics[section].items():
            assert chunked.metrics[section][name] == pytest.approx(value, rel=1e-5, abs=1e-7)
    for name in ("latent", "ensemble"):
        for metric, value in whole.variants[name]["rollout"].items():
            assert chunked.variants[name]["rollout"][metric] == pytest.approx(value, rel=1e-5, abs=1e-7)
    for one, other in zip(whole.examples, chunked.examples, strict=True):
        assert one.id == other.id
        np.testing.assert_array_equal(one.truth, other.truth)
        np.testing.assert_allclose(one.prediction, other.prediction, rtol=1e-6)


def test_windows_read_every_trajectory_about_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = CountedRows(FIELDS)
    trajectories = SimpleNamespace(
        fields=rows, cond=np.zeros((11, 0), np.float32), cond_mask=np.zeros((11, 0), np.float32), ids=np.arange(11)
    )
    evaluate._one_step_table(Shrinks(), trajectories, TASK, 2, 1)
    assert sum(rows.reads) <= 2 * 11 and max(rows.reads) <= 2


def test_a_chunk_has_at_least_one_row_and_at_most_a_batch() -> None:
    assert rows_per_chunk(FIELDS, 64) == 64
    large = CountedRows(np.broadcast_to(np.float32(0), (8, 100, 512, 512, 2)))
    assert rows_per_chunk(large, 64) == 1 and rows_per_chunk(large, 64, frames=2) == 4


def test_a_limit_of_the_configuration_applies_unless_the_selection_has_one(saved_run: Path, tmp_path: Path) -> None:
    few = ["evaluation.plots=false", "evaluation.bootstrap=10", "evaluation.trajectories=2"]
    cfg, quiet = evaluation_config(saved_run, few), Console(quiet=True)
    values = evaluate_run(saved_run, cfg, selection=Selection(output=tmp_path), console=quiet)
    assert values["meta"]["trajectories"] == 2
    values = evaluate_run(saved_run, cfg, selection=Selection(output=tmp_path, trajectories=1), console=quiet)
    assert values["meta"]["trajectories"] == 1


@pytest.mark.parametrize("name", ["tiny.yaml", "tiny_steady.yaml"])
def test_the_digest_of_the_truth_is_that_of_the_whole_arrays(data_root: Path, name: str) -> None:
    """Only evaluations with equal digests are compared, also with evaluations of earlier versions."""
    cfg = load(CONFIGS / name, [f"data.root={data_root}"])
    simulate.generate_missing(cfg)
    dataset = open_dataset(cfg)
    for frames in (None, 5):
        whole = dataset.trajectories("test")
        hashed = hashlib.sha256(whole.fields[:, :frames].tobytes())
        for values in (whole.inputs, whole.time[:frames], whole.ids):
            hashed.update(values.tobytes())
        assert truth_digest(dataset.stored_trajectories("test", None, frames)) == hashed.hexdigest()[:12]
