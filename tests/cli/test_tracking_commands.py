"""The scripts write to W&B, offline: a complete evaluation, and the processes of a pipeline in one group."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import CONFIGS, command, quiet
from wandb_files import OfflineRun, offline_runs

from ups_jax.tracking.wandb_run import RunContext, read_context

Main = Callable[..., subprocess.CompletedProcess[str]]

SHORT = [
    *("stages.operator.steps=4", "operator.spectral.depth=1", "operator.spectral.hidden_dim=8", "optimizer.name=adamw"),
    *("logging.wandb.enabled=true", "evaluation.enabled=false", "evaluation.bootstrap=10"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipeline")


def variables_of(root: Path) -> dict[str, str]:
    """Variables that would make all starts one W&B run, and the folders where W&B keeps its own files."""
    homes = {f"WANDB_{kind}_DIR": str(root / "home") for kind in ("DATA", "CACHE", "CONFIG")}
    return homes | {"WANDB_RUN_ID": "same", "WANDB_RESUME": "allow"}


def start(root: Path, name: str, *arguments: Any, **variables: str) -> None:
    """Run a script with W&B offline in a process of its own."""
    environment = quiet() | variables_of(root) | variables
    result = subprocess.run(command(name, *arguments), capture_output=True, text=True, timeout=300, env=environment)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr


def call(main: Main, root: Path, name: str, *arguments: Any, **variables: str) -> None:
    """Run a script with W&B offline in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in (variables_of(root) | variables).items():
            patch.setenv(variable, value)
        result = main(name, *arguments)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr


@pytest.fixture(scope="module")
def pipeline(main: Main, root: Path, data_root: Path) -> tuple[list[OfflineRun], RunContext]:
    """Two trainings and an evaluation of the second one, which share a context file; one of them is of this process."""
    context = {"WANDB_CONTEXT_FILE": str(root / "context.json")}
    arguments = ["--config", CONFIGS / "tiny.yaml", f"data.root={data_root}", *SHORT]
    start(root, "train.py", *arguments, "--run-dir", root / "first", **context)
    call(main, root, "train.py", *arguments, "--run-dir", root / "second", **context)
    start(root, "evaluate.py", "--run-dir", root / "second", **context)
    shared = read_context(root / "context.json")
    assert shared is not None
    return [*offline_runs(root / "first"), *offline_runs(root / "second")], shared


def test_processes_that_share_a_context_file_are_runs_of_one_group(
    pipeline: tuple[list[OfflineRun], RunContext], root: Path
) -> None:
    runs, shared = pipeline
    assert [run.name for run in runs] == [f"{root.name}-0", f"{root.name}-0", f"{root.name}-test"]
    # Offline nobody can join a run; without the file the later ones would be of the group `second`.
    assert {run.group for run in runs} == {root.name} == {shared.group}
    assert shared.run_id == runs[0].id and shared.mode == "offline"
    assert len({run.id for run in runs} | {"same"}) == 4
    assert [run.exit_code for run in runs] == [0, 0, 0]


def test_a_tracked_evaluation_is_all_there(pipeline: tuple[list[OfflineRun], RunContext], root: Path) -> None:
    run = pipeline[0][-1]
    values = json.loads((root / "second" / "evaluation" / "test.json").read_text())
    parts = {
        "burgers1d": values["metrics"]["burgers1d"],
        "variants/latent": values["variants"]["latent"]["burgers1d"],
        "baselines/persistence": values["baselines"]["persistence"]["burgers1d"],
    }
    for part, sections in parts.items():
        assert run.summary[f"eval/test/{part}/rollout/nrmse"] == sections["rollout"]["nrmse"]
    assert run.summary["eval/test/variants/latent/seconds_per_rollout_step"] > 0
    assert not any(isinstance(value, list) for value in run.summary.values())
    by_time = table(root / "second", "rollout/nrmse_by_time")
    assert by_time["columns"] == ["step", "this model", "latent rollout", "persistence", "codec"]
    lists = [part["rollout"]["nrmse_by_time"] for part in parts.values()]
    steps = range(1, len(lists[0]) + 1)
    assert [row[:4] for row in by_time["data"]] == [list(row) for row in zip(steps, *lists, strict=True)]
    assert [row[0] for row in table(root / "second", "headlines")["data"]] == by_time["columns"][1:]
    plots = {path.stem for path in (root / "second" / "plots").glob("*.png")}
    kinds = {name: value for name, value in run.summary.items() if name.endswith("/_type")}
    assert plots and {f"eval/test/{plot}/_type" for plot in plots} == {n for n, k in kinds.items() if k == "image-file"}
    assert {"test.json", "report.html"} <= set(run.files)


def test_track_sends_an_evaluation_without_a_pipeline(
    main: Main, pipeline: tuple[list[OfflineRun], RunContext], root: Path
) -> None:
    call(main, root, "evaluate.py", "--run-dir", root / "first", "--split", "val", "--track", "evaluation.plots=false")
    trained, evaluated = offline_runs(root / "first")
    assert evaluated.name == "first-val" and evaluated.group == "first"
    # Trained within the pipeline, it is a run of that.
    assert trained.group == root.name
    assert "eval/val/burgers1d/one_step/nrmse" in evaluated.summary


def table(run: Path, name: str) -> dict[str, Any]:
    """A table of the newest W&B run of a run directory."""
    newest = max((run / "wandb").glob("offline-run-*"), key=os.path.getmtime)
    (path,) = newest.glob(f"files/media/table/eval/test/{name}_*.json")
    return json.loads(path.read_text())
