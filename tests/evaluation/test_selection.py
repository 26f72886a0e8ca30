"""Evaluations of a part of a split, under a name and in a folder of their own."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from commands import CONFIGS
from rich.console import Console

from ups_jax.core.errors import ConfigError
from ups_jax.evaluation.evaluate_run import Selection, evaluate_run, evaluation_config

QUIET = Console(quiet=True)
FEW = ["evaluation.plots=false", "evaluation.bootstrap=10"]


def test_a_selection_bounds_trajectories_and_frames_and_has_its_own_files(saved_run: Path, tmp_path: Path) -> None:
    cfg = evaluation_config(saved_run, FEW)
    before = sorted(saved_run.rglob("*"))
    chosen = Selection(split="val", trajectories=2, horizon=5, name="small", output=tmp_path)
    values = evaluate_run(saved_run, cfg, selection=chosen, console=QUIET)
    assert (values["meta"]["trajectories"], values["meta"]["horizon"]) == (2, 5)
    per_trajectory = values["per_trajectory"]["burgers1d"]
    assert (
        len(per_trajectory["ids"])
        == len(per_trajectory["rollout"]["nrmse"])
        == len(per_trajectory["one_step"]["nrmse"])
        == 2
    )
    mean = values["metrics"]["burgers1d"]["rollout"]["nrmse"]
    assert sum(per_trajectory["rollout"]["nrmse"]) / 2 == pytest.approx(mean, rel=1e-6)
    assert json.loads((tmp_path / "evaluation" / "small.json").read_text()) == values
    assert sorted(saved_run.rglob("*")) == before
    asked, output = evaluation_config(saved_run, [*FEW, "evaluation.candidates=2"]), io.StringIO()
    full = Selection(split="val", trajectories=2, name="full", output=tmp_path)
    longer = evaluate_run(saved_run, asked, selection=full, console=Console(file=output, width=200))
    assert output.getvalue().count("evaluation.candidates has no effect: no corrector is available for this data") == 1
    assert longer["meta"]["data"]["truth"] != values["meta"]["data"]["truth"]
    assert longer["meta"]["checkpoint_digest"] == values["meta"]["checkpoint_digest"]
    assert longer["meta"]["architecture"] == values["meta"]["architecture"]
    first = values["metrics"]["burgers1d"]["rollout"]["nrmse_by_time"]
    assert longer["metrics"]["burgers1d"]["rollout"]["nrmse_by_time"][:5] == pytest.approx(first, rel=1e-4)


def test_another_configuration_lends_its_evaluation_and_its_files(saved_run: Path, data_root: Path) -> None:
    cfg = evaluation_config(saved_run, [])
    other = evaluation_config(saved_run, ["evaluation.bootstrap=3"], CONFIGS / "tiny.yaml")
    assert cfg.evaluation.batch_size == 3 and other.evaluation.batch_size == 64
    assert other.evaluation.bootstrap == 3 and other.data.root == "data"
    assert other.data.split == cfg.data.split and other.latent == cfg.latent
    with pytest.raises(ConfigError, match="latent"):
        evaluation_config(saved_run, ["latent.dim=3"])
