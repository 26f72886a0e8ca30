"""The tables of a file of rows: scores in order, missing and non-finite values, and notes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from comparison.notes import notes
from comparison.report import write_tables
from comparison.row import Row
from comparison.source import source_digest
from comparison.store import Store
from comparison.table import tabulate, title

BANDS = {f"fourier_rmse_{band}": 0.1 for band in ("low", "mid", "high")}
COSTS = {"parameters": 10, "steps": 5, "cpu_seconds": 60.0, "source": "s", "data": "d", "skipped": 0}


def transient_row(score: float | None, **more: Any) -> dict[str, Any]:
    section = {"nrmse": score, "nrmse_by_time": [score], **BANDS}
    return COSTS | {"one_step": section, "rollout": section, "trajectories": 8, "frames": 4} | more


def steady_row(score: float, way: str | None) -> dict[str, Any]:
    double = {"nrmse": 2 * score} | ({"way": way} if way else {})
    shape = {"trajectories": 100, "points": [16, 16]}
    return COSTS | {"steady": {"nrmse": score, **BANDS}, "double_resolution": double} | shape


def column(groups: dict[str, list[dict[str, Any]]], heading: str) -> dict[str, str]:
    headings, body = tabulate(groups)
    return {row[0]: row[headings.index(heading)] for row in body}


def test_the_table_orders_by_rollout_and_relates_to_the_best_fno() -> None:
    groups = {
        "ours": [transient_row(0.02), transient_row(0.04)],
        "fno_recipe": [transient_row(0.06)],
        "fno_package": [transient_row(0.12)],
        "pdet_unet": [transient_row(None), transient_row(0.1)],
        "pdet_stack": [transient_row(None)],
    }
    headings, _ = tabulate(groups)
    assert headings[:5] == ["model", "one step", "rollout", "to best FNO", "last frame"]
    assert "latent rollout" not in headings
    ratios = {"ours": "0.50", "fno_recipe": "1.00", "fno_package": "2.00", "pdet_unet": "-", "pdet_stack": "-"}
    assert column(groups, "to best FNO") == ratios
    assert list(column(groups, "rollout")) == list(ratios)
    rollout = column(groups, "rollout")
    assert rollout["ours"] == "0.03 ± 0.01"
    assert (rollout["pdet_unet"], rollout["pdet_stack"]) == ("not finite in 1 of 2", "not finite")


def test_nothing_is_related_to_an_fno_that_is_not_finite() -> None:
    groups = {"ours": [transient_row(0.02)], "fno_recipe": [transient_row(None)]}
    assert set(column(groups, "to best FNO").values()) == {"-"}


def test_a_score_that_some_seeds_lack_is_the_mean_of_the_others_and_says_so() -> None:
    double = {"double_resolution": {"nrmse": 0.5}}
    latent = {"latent_rollout": {"nrmse": None}, "latent_seconds_per_rollout_step": 2e-4}
    groups = {
        "ours": [transient_row(0.1, **double, **latent), transient_row(0.1), transient_row(0.1, **double)],
        "persistence": [transient_row(0.3, latent_rollout=None, milliseconds_per_step=None)],
    }
    assert column(groups, "2x resolution") == {"ours": "0.5 ± 0 (2 of 3)", "persistence": "-"}
    assert column(groups, "latent rollout") == {"ours": "not finite", "persistence": "-"}
    assert column(groups, "latent s/step") == {"ours": "2.0e-04 (1 of 3)", "persistence": "-"}
    assert "ms/step" not in tabulate(groups)[0]


def test_compilation_is_that_of_the_seed_that_found_nothing_in_the_cache() -> None:
    groups = {"ours": [transient_row(0.1, compile_seconds=seconds) for seconds in (9.0, 0.2, 0.3)]}
    assert column(groups, "compile s (cold)") == {"ours": "9"}


def test_a_steady_table_has_both_grids_and_says_how_the_finer_one_was_met() -> None:
    groups = {"ours": [steady_row(0.01, "averaged")], "fno_recipe": [steady_row(0.02, "native")]}
    groups["mean_field"] = [steady_row(0.25, None)]
    headings, body = tabulate(groups)
    assert headings[:5] == ["model", "nRMSE", "to best FNO", "2x resolution", "fRMSE low"]
    assert [row[:4] for row in body] == [
        ["ours", "0.01", "0.50", "0.02"], ["fno_recipe", "0.02", "1.00", "0.04"], ["mean_field", "0.25", "12.50", "0.5"]
    ]  # fmt: skip
    assert "100 solutions on 16 x 16 points" in title("darcy2d", "60 CPU-seconds", groups)
    assert "100 validation solutions" in title("darcy2d", "60 CPU-seconds", groups, split="val")
    assert notes(groups, "s") == [
        "2x resolution averaged to the trained grid, solved there, interpolated: ours",
        "2x resolution solved on the finer grid itself: fno_recipe",
    ]


@pytest.mark.parametrize(("seconds", "factor"), [((60.0, 65.9), None), ((50.0, 60.0), "0.83"), ((62.0, 90.0), "1.50")])
def test_a_model_that_used_another_budget_is_named_with_the_factor(
    seconds: tuple[float, ...], factor: str | None
) -> None:
    groups = {"ours": [transient_row(0.1, cpu_seconds=used) for used in seconds]}
    groups["persistence"] = [transient_row(0.3, steps=0, cpu_seconds=0.0)]
    lines = notes(groups, "s", budget=60.0)
    line = f"CPU-s more than a tenth off the budget, in the seed farthest off: ours x {factor}"
    assert lines == ([] if factor is None else [line])


def test_a_model_with_fewer_seeds_is_named_and_one_that_is_not_trained_is_not() -> None:
    groups = {"ours": [transient_row(0.1)] * 3, "fno_recipe": [transient_row(0.1)] * 2}
    groups["persistence"] = [transient_row(0.3, steps=0)]
    assert notes(groups, "s") == ["fewer than 3 seeds: fno_recipe (2)"]


def test_the_markdown_holds_every_task_of_the_file_and_the_rows_that_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "rows.json")
    ours = Row(task="burgers1d", model="ours", seed=0, budget=60.0)
    other_task = replace(ours, task="ks1d")
    shorter = replace(other_task, budget=20.0)
    persistence = replace(other_task, model="persistence", budget=0.0)
    fno = replace(ours, model="fno_recipe", seed=1)
    for row, score in ((ours, 0.1), (other_task, 0.2), (shorter, 0.3), (persistence, 0.4)):
        store.add(row.key, transient_row(score, digest=row.digest(), source=source_digest()))
    stale = replace(other_task, model="pdet_unet")
    store.add(stale.key, transient_row(0.5, digest="older"))
    store.fail(fno, "error: no memory")
    write_tables([ours], store)
    document = (tmp_path / "rows.md").read_text()
    assert "burgers1d" in capsys.readouterr().out
    burgers, short, long = document.split("\n**")
    assert "Note: fno_recipe seed 1 failed: error: no memory." in burgers
    assert "20 CPU-seconds" in short and "| ours | 0.3 |" in short and "| persistence | 0.4 |" in short
    assert "60 CPU-seconds" in long and "| ours | 0.2 |" in long and "| persistence | 0.4 |" in long
    assert "Note: pdet_unet seed 0 is left out: made with other settings." in long
    store.add(fno.key, transient_row(0.1, digest=fno.digest(), source="older"))
    assert store.failures() == {}
    write_tables([ours], store)
    assert "fno_recipe" in (tmp_path / "rows.md").read_text()
    assert "is left out" not in capsys.readouterr().out
