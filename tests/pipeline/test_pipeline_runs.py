"""The pipeline with a real training, real evaluations and W&B offline, started once in this process.

Started again, and in the slow tests, it runs as a user runs it: in processes of its own.
"""

from __future__ import annotations

import base64
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from commands import CONFIGS, command, quiet
from pictures import undrawn
from wandb_files import offline_runs

from ups_jax.core.commands import COMMANDS
from ups_jax.inference.trained_model import load_run
from ups_jax.pipeline.run import run_pipeline
from ups_jax.pipeline.subprocess_step import Step, StepResult
from ups_jax.tracking.wandb_run import read_context

Main = Callable[..., subprocess.CompletedProcess[str]]

SHORT = [
    *("stages.operator.steps=24", "operator.spectral.depth=1", "evaluation.bootstrap=10", "optimizer.name=adamw"),
    *("logging.wandb.enabled=true", "gates.tolerances={wall_clock: 1000}", "gates.floors={wall_clock: 1.0}"),
]


def start(root: Path, data_root: Path, *arguments: Any, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("run_fast_to_sota.py", *arguments_of(data_root, *arguments)),
        capture_output=True,
        text=True,
        timeout=500,
        env=quiet() | variables,
        cwd=root,
    )


def arguments_of(data_root: Path, *arguments: Any) -> list[str]:
    defaults = ["--train-config", CONFIGS / "tiny.yaml", "--train-stage", "operator", f"data.root={data_root}", *SHORT]
    return [*map(str, [*defaults, *arguments])]


def run_here(main: Main, step: Step, log: Path, lock: int, show: Callable[[str], None]) -> StepResult:
    """A runner that calls the command of a step, with its arguments and environment, in this process."""
    script, _ = COMMANDS[step.command]
    begin = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in step.environment.items():
            patch.setenv(name, value)
        result = main(script, *step.arguments)
    show(result.stdout + result.stderr)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(result.stdout + result.stderr)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return StepResult(exit_code=result.returncode, seconds=time.monotonic() - begin, peak_memory_mib=peak)


@pytest.fixture(scope="module")
def root(main: Main, tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    """A folder with a first champion."""
    root = tmp_path_factory.mktemp("pipeline")
    with undrawn(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for kind in ("DATA", "CACHE", "CONFIG"):
            patch.setenv(f"WANDB_{kind}_DIR", str(root / "home"))
        patch.setattr("ups_jax.pipeline.run.run_pipeline", partial(run_pipeline, runner=partial(run_here, main)))
        result = main("run_fast_to_sota.py", *arguments_of(data_root, "--run-id", "first", "--skip-dry-run"))
    assert result.returncode == 0, result.stdout + result.stderr
    return root


def test_the_run_directory_holds_it_all(root: Path) -> None:
    run = root / "artifacts" / "runs" / "first"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "promoted" and summary["exit_code"] == 0
    done = {name for name, step in summary["steps"].items() if step["status"] == "done"}
    assert done == {
        "validate_config",
        "validate_data",
        "train",
        "small_eval",
        "full_eval",
        "promotion",
        "report",
        "publish",
    }
    assert all(step["seconds"] > 0 for name, step in summary["steps"].items() if name in done)
    small, full = (json.loads((run / "evaluation" / f"{name}.json").read_text()) for name in ("small", "full"))
    assert (small["meta"]["data"]["split"], full["meta"]["data"]["split"]) == ("val", "test")
    record = json.loads((run / "train" / "metadata.json").read_text())
    assert record["trained"] and record["last_full_eval"]["nrmse"] == full["metrics"]["burgers1d"]["rollout"]["nrmse"]
    assert record["arch"]["digest"] == full["meta"]["architecture"]["digest"]
    assert (run / "plots" / "full" / "film.gif").stat().st_size > 1000


def test_the_same_again_computes_nothing(root: Path, data_root: Path) -> None:
    result = start(root, data_root, "logging.wandb.enabled=false", "--run-id", "again")
    assert result.returncode == 0, result.stdout + result.stderr
    summary = json.loads((root / "artifacts" / "runs" / "again" / "summary.json").read_text())
    assert summary["status"] == "champion"
    assert {summary["steps"][name]["status"] for name in ("train", "small_eval", "full_eval")} == {"reused"}
    assert summary["steps"]["validate_data"]["peak_memory_mib"] > 50


@pytest.mark.slow
def test_a_worse_run_is_refused_in_one_line_with_its_code(root: Path, data_root: Path) -> None:
    worse = start(
        root, data_root, "logging.wandb.enabled=false", "--run-id", "worse", "optimizer.lr=1e-7", "--skip-dry-run"
    )
    assert worse.returncode == 6
    assert re.fullmatch(r"error: run worse is not promoted: nrmse: .* worse than the baseline's .*\n", worse.stderr)
    assert (
        json.loads((root / "artifacts" / "runs" / "worse" / "summary.json").read_text())["steps"]["train"]["status"]
        == "done"
    )


def test_wandb_has_training_evaluations_and_gates_in_one_group(root: Path) -> None:
    run = root / "artifacts" / "runs" / "first"
    shared = read_context(run / "wandb_context.json")
    runs = [*offline_runs(run / "train"), *offline_runs(run)]
    assert [item.name for item in runs] == ["first-0", "first-small", "first-full", "first-gates"]
    assert shared is not None and {item.group for item in runs} == {"first"} == {shared.group}
    assert json.loads((run / "artifacts" / "wandb_run.json").read_text())["id"] == shared.run_id == runs[0].id
    _, small, full, gates = runs
    for name in ("small", "full"):
        assert list(run.glob(f"wandb/offline-run-*/files/media/images/eval/{name}/*.png")), name
    assert "eval/small/burgers1d/rollout/nrmse" in small.summary and "eval/full/burgers1d/rollout/nrmse" in full.summary
    summary = json.loads((run / "summary.json").read_text())
    for name in ("small_eval", "full_eval"):
        decision = summary["gates"][name]
        assert gates.summary[f"gate/{name}/status"] == decision["status"] == "no_baseline"
        (path,) = run.glob(f"wandb/offline-run-*/files/media/table/gate/{name}/answers_*.json")
        rows = json.loads(path.read_text())["data"]
        assert [row[0] for row in rows] == [gate["key"] for gate in decision["gates"]]
    assert gates.summary["pipeline/promoted"] == 1 and "report.html" in gates.files


def test_the_champion_predicts_by_its_task_s_name(
    main: Main, root: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)

    def rollout(task: str) -> subprocess.CompletedProcess[str]:
        options = ["--input", "test:0", "--steps", "3", "--output", f"{task}.hdf5", f"data.root={data_root}"]
        return main("rollout.py", "--champion", task, *options)

    assert rollout("burgers1d").returncode == 0
    with h5py.File(root / "burgers1d.hdf5") as file:
        predicted, digest = file["tensor"][0], file.attrs["checkpoint_digest"]
    run = load_run(root / "artifacts" / "runs" / "first" / "train")
    assert digest == run.digest
    with h5py.File(next(data_root.glob("burgers1d_tiny.hdf5"))) as file:
        row = next(n for n, fields in enumerate(file["tensor"]) if (fields[0] == predicted[0]).all())
        u0, nu = file["tensor"][row : row + 1, 0][..., None], file["parameters/nu"][row]
    np.testing.assert_allclose(run.rollout(u0, 3, {"nu": nu})[0, ..., 0], predicted[1:4], rtol=1e-4, atol=1e-5)
    nobody = rollout("ks1d")
    assert nobody.returncode == 2 and nobody.stderr.count("\n") == 1 and "burgers1d" in nobody.stderr


class Page(HTMLParser):
    """Pictures of a page, and whatever it would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.pictures: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href") and value is not None:
                (self.pictures if value.startswith("data:image") else self.outside).append(value)


def test_the_report_is_one_file_with_gates_film_and_numbers(root: Path) -> None:
    text = (root / "artifacts" / "runs" / "first" / "analysis" / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.outside == ["data:,"] and any(item.startswith("data:image/gif") for item in page.pictures)
    plots = root / "artifacts" / "runs" / "first" / "plots" / "full"
    for name in ("burgers1d_spectrum", "burgers1d_showcase", "training"):
        shown = base64.b64encode((plots / f"{name}.png").read_bytes()).decode()
        assert any(shown in item for item in page.pictures), name
    for part in (
        "is the new champion",
        "persistence",
        "conservation_gap",
        "not applicable",
        "peak memory",
        "weight_decay",
    ):
        assert part in text, part


@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")
def test_the_report_opens_in_chromium_without_a_complaint(root: Path, tmp_path: Path) -> None:
    page = (root / "artifacts" / "runs" / "first" / "analysis" / "report.html").resolve()
    picture = tmp_path / "page.png"
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--v=0",
        "--window-size=1200,3000",
    ]
    options += [f"--screenshot={picture}", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000"]
    result = subprocess.run(["chromium", *options, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and ":CONSOLE" not in result.stderr, result.stderr
    from matplotlib.image import imread

    shown = imread(picture)[..., :3]
    # The film's blue curve is on it.
    blue = (abs(shown - [0.12, 0.47, 0.71]) < 0.05).all(-1)
    assert shown.shape[:2] == (3000, 1200) and blue.sum() > 100


STEPS = ("validate_config", "validate_data", "dry_run", "train", "small_eval", "full_eval", "publish")


@pytest.mark.slow
@pytest.mark.multiprocess
def test_killed_at_each_step_in_turn_it_comes_to_the_same_end(tmp_path: Path, data_root: Path) -> None:
    whole = start(tmp_path, data_root, "--run-id", "whole", "--runs-root", "whole/runs")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    expected = end_state(tmp_path / "whole", "whole")
    for name in STEPS:
        options = ["--run-id", "whole", "--runs-root", f"{name}/runs"]
        line = command("run_fast_to_sota.py", *arguments_of(data_root, *options))
        process = subprocess.Popen(line, cwd=tmp_path, env=quiet(), stdout=subprocess.DEVNULL)
        kill_in(process, tmp_path / name / "runs" / "whole" / "summary.json", name)
        again = start(tmp_path, data_root, *options)
        assert again.returncode == 0, again.stdout + again.stderr
        assert end_state(tmp_path / name, "whole") == expected, name


def kill_in(process: subprocess.Popen[bytes], summary: Path, step: str) -> None:
    """Kill the pipeline a moment after a step was begun."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        steps: dict[str, Any] = json.loads(summary.read_text())["steps"] if summary.exists() else {}
        if steps.get(step, {}).get("status") == "running":
            time.sleep(1.0)
            break
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=60)


def end_state(root: Path, run_id: str) -> dict[str, Any]:
    """Numbers and decisions of a finished run; checkpoints bear their time, so that their digests differ."""
    summary = json.loads((root / "runs" / run_id / "summary.json").read_text())
    (champion,) = (json.loads(path.read_text()) for path in root.glob("champions/*/*/champion.json"))
    gates = {name: decision["status"] for name, decision in summary["gates"].items()}
    numbers = {
        name: {key: value for key, value in evaluation["numbers"].items() if key != "wall_clock"}
        for name, evaluation in champion["evaluations"].items()
    }
    statuses = {name: step["status"].replace("reused", "done") for name, step in summary["steps"].items()}
    return {
        "status": summary["status"],
        "steps": statuses,
        "gates": gates,
        "numbers": numbers,
        "task": champion["task"],
    }
