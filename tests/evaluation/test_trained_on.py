"""An evaluation states how many of the measured trajectories the run was trained on, in any file."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import CONFIGS
from rich.console import Console

from ups_jax import evaluate, load_run
from ups_jax.config import load
from ups_jax.data import Dataset, open_dataset
from ups_jax.evaluation import evaluate_run as module
from ups_jax.evaluation.evaluate_run import Selection, evaluate_run, evaluation_config
from ups_jax.evaluation.plots.html_report import render_report
from ups_jax.evaluation.result import TransientEvaluation
from ups_jax.runs.directory import RunDirectory
from ups_jax.runs.training_set import TrainingSet, recorded_training_set, write_training_set


@pytest.fixture(autouse=True)
def instant(monkeypatch: pytest.MonkeyPatch, evaluation_1d: TransientEvaluation) -> None:
    """Replace the predictions and metrics, which these tests do not read."""
    monkeypatch.setattr(
        module,
        "_evaluate_task",
        lambda model, correctors, stage, dataset, trajectories, cfg: replace(
            evaluation_1d, task=dataset.task, meta=dict(evaluation_1d.meta) | {"trajectories": len(trajectories.ids)}
        ),
    )


def opened(data_root: Path, *overrides: str) -> Dataset:
    return open_dataset(load(CONFIGS / "tiny.yaml", [f"data.root={data_root}", *overrides]))


def trained_on(run: Path, dataset: Dataset, split: Any = "test") -> tuple[int | None, list[int] | None, list[str]]:
    meta = evaluate(load_run(run), dataset, split=split)["meta"]
    notes = [note for note in meta["notes"] if "trained on" in note]
    return meta["trained_on"], meta["tasks"]["burgers1d"]["trained_on"], notes


def test_trained_trajectories_are_counted_and_listed(saved_run: Path, data_root: Path, tmp_path: Path) -> None:
    dataset, other = opened(data_root), opened(data_root, "data.split.seed=5")
    assert trained_on(saved_run, dataset) == (0, [], [])
    assert trained_on(saved_run, dataset, "train") == (32, dataset.splits.train.tolist(), [])
    expected = np.intersect1d(other.splits.test, dataset.splits.train).tolist()
    count, ids, (note,) = trained_on(saved_run, other)
    assert count == len(expected) > 0 and ids == expected
    assert f"{count} of the 4 evaluated trajectories ({', '.join(map(str, expected))})" in note
    # Without the hashes, as in a run of an earlier version, only the data of the run are recognised.
    copy = RunDirectory(shutil.copytree(saved_run, tmp_path / "run"))
    copy.training_set_path.unlink()
    assert trained_on(copy.path, dataset) == (0, [], [])
    count, ids, (note,) = trained_on(copy.path, other)
    assert count is ids is None and str(copy.path) in note


def test_a_listed_split_is_that_of_the_run_unless_another_one_is_given(saved_run: Path, tmp_path: Path) -> None:
    run = RunDirectory(shutil.copytree(saved_run, tmp_path / "run"))
    record = run.read_record()
    record["config"]["data"]["split"] |= {"method": "listed", "path": str(tmp_path / "deleted.json")}
    run.write_record(record)
    run.split_path.write_text("{}")
    assert evaluation_config(run.path, []).data.split.path == str(run.split_path)
    assert evaluation_config(run.path, ["data.split.method=random"]).data.split.method == "random"


def test_on_another_grid_nothing_is_known_of_a_run_with_parents(
    saved_run: Path, data_root: Path, tmp_path: Path
) -> None:
    run = RunDirectory(shutil.copytree(saved_run, tmp_path / "run"))
    dataset, checkpoint = opened(data_root), load_run(saved_run).checkpoint
    ids, notes = module._find_trained_ids(run, [checkpoint], dataset, True)
    assert ids.tolist() == dataset.splits.train.tolist() and not notes
    inherited = TrainingSet(fingerprints=frozenset({"2-of-a-parent"}))
    write_training_set(run, TrainingSet.union([recorded_training_set(run) or TrainingSet(), inherited]))
    ids, (note,) = module._find_trained_ids(run, [checkpoint], dataset, True)
    assert not len(ids) and "not known" in note


def test_terminal_report_and_file_state_the_count(saved_run: Path, data_root: Path, tmp_path: Path) -> None:
    cfg = evaluation_config(saved_run, [f"data.root={data_root}", "evaluation.plots=false"])
    cfg = replace(cfg, data=replace(cfg.data, split=replace(cfg.data.split, seed=5)))
    console = Console(width=200)
    with console.capture() as text:
        result = evaluate_run(saved_run, cfg, selection=Selection(output=tmp_path), console=console)
    count = result["meta"]["trained_on"]
    sentence = f"trained on {count} of the 4 evaluated trajectories"
    assert count > 0 and f"\n{sentence}\n" in text.get()
    (file,) = (tmp_path / "evaluation").glob("*.json")
    written = json.loads(file.read_text())
    assert written["meta"]["trained_on"] == count
    for trained, line in (
        ([1, 2], '<p class="bad">trained on 2 of the 4 evaluated'),
        ([], '<p class="note">trained on 0 of the 4 evaluated'),
        (None, '<p class="note">trained on an unknown number of the 4 evaluated'),
    ):
        written["meta"]["tasks"]["burgers1d"]["trained_on"] = trained
        assert line in render_report(written, {}, {"config": {}})
    del written["meta"]["tasks"]
    assert "of the 4 evaluated trajectories</p>" not in render_report(written, {}, {"config": {}})
