"""Rows as processes and keys: what a worker runs in, what a row depends on, and what the command refuses."""

from __future__ import annotations

import argparse
import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accuracy
import pytest
from comparison import jobs
from comparison.row import Row
from comparison.runs import rows_of
from comparison.source import source_files
from comparison.store import Store

ROW = Row(task="burgers1d", model="ours", seed=2, budget=60.0)


def test_a_worker_runs_on_one_thread_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    environment = jobs.environment()
    assert (environment["JAX_PLATFORMS"], environment["OMP_NUM_THREADS"]) == ("cpu", "1")


def finish(store: Store, printed: str, messages: str, code: int) -> bool:
    process: Any = SimpleNamespace(returncode=code)
    output, errors = io.StringIO(printed), io.StringIO(messages)
    return jobs.finish(jobs.Job(row=ROW, process=process, output=output, messages=errors, core=0, began=0.0), store)


def test_a_warning_does_not_lose_the_row_and_a_failure_keeps_its_reason(tmp_path: Path) -> None:
    store = Store(tmp_path / "rows.json")
    assert not finish(store, "", "warning\nerror: no such file", 3)
    assert not finish(store, "", "", -9)
    assert store.failures()[ROW.key]["reason"] == "exit code -9 without a message"
    values = {"digest": ROW.digest(), "steps": 0, "rollout": {"nrmse": 0.1}}
    assert finish(store, f"note\n{json.dumps(values)}\nbye\n", "warning: at exit\n", 0)
    assert store.rows() == {ROW.key: values} and store.failures() == {}


@pytest.mark.parametrize(
    "row",
    [ROW, replace(ROW, split="val"), replace(ROW, budget=0.0, fixed_steps=300), replace(ROW, budget=2.5, task="ns2d")],
)
def test_a_row_is_told_by_its_key(row: Row) -> None:
    assert Row.from_key(row.key, data_root="data", overrides=()) == row


def test_keys_of_former_models_and_tasks_are_no_rows() -> None:
    for key in ("burgers1d/former/seed0/60s", "former/ours/seed0/60s", "darcy2d/persistence/seed0/0s", "nonsense"):
        assert Row.from_key(key, data_root="data", overrides=()) is None


def test_a_file_of_the_callers_own_is_another_row_and_has_no_finer_data() -> None:
    with_file = replace(ROW, overrides=("data.tasks.0.path=mine.hdf5",))
    other = replace(ROW, overrides=("data.tasks.0.path=yours.hdf5",))
    assert len({ROW.digest(), with_file.digest(), other.digest()}) == 3
    asked = argparse.Namespace(
        tasks=["burgers1d"], models=["ours"], seeds=1, budget=1.0, split="test", data_root="data",
        set=list(with_file.overrides), double=False, quick=False, fixed_steps=None,
    )  # fmt: skip
    assert [row.double for row in rows_of(asked)] == [False]
    with pytest.raises(accuracy.ConfigError, match=r"mine\.hdf5.*--double"):
        rows_of(argparse.Namespace(**(vars(asked) | {"double": True})))


def test_the_source_is_all_that_makes_a_number_and_nothing_that_shows_one() -> None:
    names = {f"{file.parent.name}/{file.name}" for file in source_files()}
    sources = {"models/operator.py", "data/statistics.py", "training/state.py", "metrics/aggregate.py", "core/task.py"}
    assert sources | {"comparison/torch_fno.py", "comparison/measuring.py", "schema/training.py"} <= names
    assert not names & {"tracking/jsonl.py", "cli/runner.py", "plots/figures.py", "comparison/table.py"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--jobs", "0"], "'0'"),
        (["--seeds", "-1"], "'-1'"),
        (["--budget", "nan"], "'nan'"),
        (["--set", "optimizer.lr=1"], "--out"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = accuracy.main(arguments)
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_validation_rows_go_to_a_file_of_their_own() -> None:
    def path(**arguments: Any) -> str:
        return accuracy.store_path(argparse.Namespace(**({"out": None, "set": [], "quick": False} | arguments))).name

    assert path(split="test") == "accuracy.json"
    assert path(split="val") == "accuracy_val.json"
    assert path(split="val", quick=True) == "accuracy_quick_val.json"
    assert path(split="val", out=Path("mine.json"), set=["a=b"]) == "mine.json"
