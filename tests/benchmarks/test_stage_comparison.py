"""The comparison of stages: which rows share a run, what makes one stale, and what its table says."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT, quiet
from comparison.source import source_digest
from comparison.stage_row import WAYS, StageRow
from comparison.stage_table import groups_of, notes, tabulate
from comparison.store import Store

ROW = StageRow(task="ks1d", way="corrector", seed=1, budget=60.0)


def values_of(row: StageRow, **more: Any) -> dict[str, Any]:
    bands = {f"{kind}_{band}": 0.1 for kind in ("fourier_rmse", "spectrum_error") for band in ("low", "mid", "high")}
    section = {"nrmse": 0.1, "mae": 0.2, **bands}
    identity = {"digest": row.digest(), "seed": row.seed, "source": source_digest(), "data": "d", "steps": 5}
    costs = {"parameters": 10, "cpu_seconds": 60.0, "seconds_per_rollout_step": 1e-3, "correlation_time": 3.0}
    extent = {"trajectories": 8, "frames": 4, "correlation_trajectories": 8, "correlation_frames": 20}
    return identity | costs | extent | {"one_step": section, "rollout": section, "ensemble": None} | more


def test_ways_that_begin_alike_share_the_run_that_they_begin_with() -> None:
    first = {way: replace(ROW, way=way).run_path(1) for way in WAYS}
    assert len({path for way, path in first.items() if way != "operator_twice"}) == 1
    assert first["operator_twice"] != first["operator"]
    second = {way: replace(ROW, way=way).run_path(2) for way in ("corrector", "distilled_1", "regression")}
    assert second["corrector"] == second["distilled_1"] != second["regression"]
    assert replace(ROW, way="distilled_1").run_path(3) == replace(ROW, way="distilled_2").run_path(3)
    assert replace(ROW, seed=2).run_path(1) != first["corrector"] != replace(ROW, budget=30.0).run_path(1)


def test_a_digest_is_of_what_the_ways_stages_read() -> None:
    other = replace(ROW, overrides=("diffusion.model_rollout_steps=3",))
    assert other.digest() != ROW.digest() == replace(ROW, seed=2, data_root="x").digest()
    alone = replace(ROW, way="operator")
    assert replace(alone, overrides=other.overrides).digest() == alone.digest()
    assert replace(other, way="operator").run_path(1) == ROW.run_path(1)
    keys = [replace(ROW, way=way, **more).key for way in WAYS for more in ({}, {"split": "val"}, {"fixed_steps": 9})]
    assert len(set(keys)) == len(keys)
    assert StageRow.from_json(other.to_json()) == other


def test_the_stages_of_a_way_are_given_its_budget() -> None:
    cfg = replace(ROW, way="distilled_1").config()
    assert all(getattr(cfg.stages, stage).max_seconds == 60 for stage in WAYS["distilled_1"].stages)
    assert replace(ROW, way="operator_twice").config().stages.operator.max_seconds == 120
    steps = replace(ROW, way="operator_twice", fixed_steps=10).config().stages.operator
    assert (steps.steps, steps.max_seconds) == (20, None)
    assert replace(ROW, way="regression").config().diffusion.objective == "regression"


def test_the_table_has_the_ways_in_order_and_their_cost_in_the_operators(tmp_path: Path) -> None:
    store = Store(tmp_path / "rows.json")
    rows = [replace(ROW, way=way, seed=seed) for seed in (0, 1) for way in ("corrector", "operator")]
    scored = {"crps": 0.07, "nrmse": 0.09, "spread_skill": 0.5, "coverage_50": 0.4, "coverage_90": 0.8}
    for row in rows:
        slower = {"seconds_per_rollout_step": 2e-3 * (1 + row.seed), "ensemble": scored}
        store.add(row.key, values_of(row, **slower) if row.way == "corrector" else values_of(row))
    groups = groups_of(rows, store)
    headings, body = tabulate(groups)
    cells = {row[1]: dict(zip(headings, row, strict=True)) for row in body}
    assert list(cells) == ["operator", "corrector"]
    assert cells["corrector"]["x operator"] == "3" and cells["operator"]["x operator"] == "1"
    assert (cells["corrector"]["CRPS"], cells["operator"]["CRPS"]) == ("0.07 ± 0", "-")
    assert notes(rows, groups, store) == ["ks1d: 8 trajectories over 4 frames; correlated for: 8 over 20"]
    store.fail(rows[0], "error: no memory")
    store.add(rows[1].key, values_of(rows[1], source="older"))
    lines = notes(rows, groups_of(rows, store), store)
    assert lines[1:] == ["made by another state of the code: ks1d/operator", f"{rows[0].key} failed: error: no memory"]
    stale = [replace(row, overrides=("training.batch_size=2",)) for row in rows]
    assert groups_of(stale, store) == {}


@pytest.mark.slow
def test_a_comparison_that_was_interrupted_goes_on_with_the_rows_and_runs_that_there_are(
    tmp_path: Path, data_root: Path
) -> None:
    out = tmp_path / "rows.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "stages.py"), "--quick", "--out", str(out)]
    command += ["--data-root", str(data_root), "--runs", str(tmp_path / "runs")]

    def run(*ways: str) -> str:
        result = subprocess.run([*command, "--ways", *ways], capture_output=True, text=True, timeout=600, env=quiet())
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert "done        tiny/operator/seed0" in run("operator")
    first = json.loads(out.read_text())["rows"]["tiny/operator/seed0/100steps"]
    output = run("operator", "corrector", "distilled_1")
    assert "1 of 3 rows" in output
    rows = json.loads(out.read_text())["rows"]
    assert rows["tiny/operator/seed0/100steps"] == first
    assert rows["tiny/corrector/seed0/100steps"]["stage_steps"] == {"operator": 100, "diffusion_residual": 100}
    assert rows["tiny/corrector/seed0/100steps"]["ensemble"]["crps"] > 0
    assert "| tiny | distilled_1 |" in out.with_suffix(".md").read_text()
    assert len(list((tmp_path / "runs").glob("*/operator-*"))) == 1
