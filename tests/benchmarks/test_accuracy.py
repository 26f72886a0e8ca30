"""The comparison as a command: it goes on where it was interrupted, and needs no extra package."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import accuracy
import pytest
from commands import ROOT, quiet
from comparison.models import MODELS
from comparison.row import Row
from comparison.source import source_digest
from comparison.store import Store
from comparison.tasks import TASKS

HIDE_TORCH = "import sys\nsys.modules['torch'] = sys.modules['neuralop'] = None\n"


def run(*arguments: str, path: Path | None = None, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """The benchmark in its own process; `path` goes in front of PYTHONPATH."""
    env = quiet()
    if path is not None:
        env |= {"PYTHONPATH": f"{path}:{env.get('PYTHONPATH', '')}"}
    command = [sys.executable, str(ROOT / "benchmarks" / "accuracy.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env)


def test_a_finished_row_is_kept_and_a_changed_setting_is_run_again(tmp_path: Path, data_root: Path) -> None:
    out = tmp_path / "rows.json"
    common = ["--tasks", "tiny", "--models", "persistence", "--data-root", str(data_root), "--out", str(out)]
    first = run(*common)
    assert first.returncode == 0, first.stderr
    assert re.search("done +tiny/persistence/seed0", first.stdout)
    written = out.stat().st_mtime_ns
    again = run(*common)
    assert "1 of 1 rows" in again.stdout
    assert "done" not in again.stdout
    assert out.stat().st_mtime_ns == written
    changed = run(*common, "--set", "data.split.test=0.2")
    assert re.search("done +tiny/persistence/seed0", changed.stdout)
    assert len(json.loads(out.read_text())["rows"]) == 1
    stale = run(*common, "--table-only")
    assert "no finished row" in stale.stdout


def test_a_digest_is_of_the_settings_and_not_of_seed_and_place() -> None:
    row = Row(task="burgers1d", model="fno_recipe", seed=0, budget=60.0)
    other_place = Row(task="burgers1d", model="fno_recipe", seed=1, budget=60.0, data_root="elsewhere")
    other_rate = Row(task="burgers1d", model="fno_recipe", seed=0, budget=60.0, overrides=("optimizer.lr=0.5",))
    assert row.digest() == other_place.digest() != other_rate.digest()
    assert Row.from_json(other_rate.to_json()) == other_rate
    assert len({row.key, other_place.key, Row(task="burgers1d", model="fno_recipe", seed=0, budget=20.0).key}) == 3


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("task", ["burgers1d", "ns2d", "darcy2d"])
def test_every_model_has_settings_for_every_kind_of_task_that_it_is_for(model: str, task: str) -> None:
    if {model, TASKS[task].kind} in ({"persistence", "steady"}, {"mean_field", "transient"}):
        assert TASKS[task].group not in MODELS[model].overrides
        return
    cfg = Row(task=task, model=model, seed=3, budget=1.0).config()
    assert cfg.seed == 3


def test_another_seed_takes_over_the_steps_of_a_row_that_kept_its_budget(tmp_path: Path) -> None:
    store = Store(tmp_path / "rows.json")
    row = Row(task="burgers1d", model="ours", seed=0, budget=60.0)
    other = Row(task="burgers1d", model="ours", seed=1, budget=60.0)
    assert store.steps(other) is None
    values = {"digest": row.digest(), "source": source_digest(), "seed": 0, "steps": 5000, "cpu_seconds": 62.0}
    store.add(row.key, values)
    assert store.steps(other) == 5000
    for changed in ({"cpu_seconds": 75.0}, {"source": "other code"}):
        store.add(row.key, values | changed)
        assert store.steps(other) is None


@pytest.mark.slow
def test_quick_runs_without_torch(tmp_path: Path, data_root: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDE_TORCH)
    out = tmp_path / "rows.json"
    result = run("--quick", "--data-root", str(data_root), "--out", str(out), path=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = json.loads(out.read_text())["rows"]
    assert {key.split("/")[1] for key in rows} == {"persistence", "ours", "fno_recipe"}
    best = rows["tiny/ours/seed0/300steps"]["rollout"]["nrmse"]
    assert best < 0.1 * rows["tiny/persistence/seed0/0s"]["rollout"]["nrmse"]
    assert "| ours |" in out.with_suffix(".md").read_text()


def test_torch_peers_are_left_out_with_a_line_where_torch_is_not_installed(
    tmp_path: Path, data_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("torch", "neuralop"):
        monkeypatch.setitem(sys.modules, package, None)
    arguments = ["--tasks", "tiny", "--models", "persistence", "fno_package", "--data-root", str(data_root)]
    # The slow test above trains without torch.
    assert accuracy.main([*arguments, "--out", str(tmp_path / "rows.json"), "--table-only"]) == 0
    assert re.search("fno_package.*torch, neuralop", capsys.readouterr().out)
