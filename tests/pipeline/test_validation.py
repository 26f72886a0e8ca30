"""Validation reports all problems of configurations and data at once, each with its fix."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import CONFIGS

from ups_jax import data, simulate
from ups_jax.config import load
from ups_jax.pipeline.validation import check_config, check_data, check_same_tasks

TINY = CONFIGS / "tiny.yaml"
Script = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_of_the_project_is_sound(path: Path) -> None:
    stage = "steady_prior" if load(path).data.tasks[0].kind == "steady" else "operator"
    assert check_config(path, stage).problems == ()


def test_unknown_keys_and_wrong_values_are_told_together() -> None:
    overrides = ["trainin.batch_size=3", "optimizer.lr=-1", "latent.patch_size=a", "data.tasks.0.perodic=[x]"]
    check = check_config(TINY, "operator", overrides)
    assert len(check.problems) == 4 and check.exit_code == 2
    for part in (
        "did you mean `training",
        "`optimizer.lr`: input should be greater",
        "latent.patch_size",
        "periodic`?",
    ):
        assert any(part in line for line in check.problems), part
    assert all(line.startswith(f"{TINY}: ") and "\n" not in line for line in check.problems)


def test_what_keys_mean_together_is_told_together() -> None:
    overrides = [
        "data.tasks.0.preset=tinny",
        "stages.operator.epochs=0",
        "gates.ratios={conservation_gpa: 1.0}",
        "gates.metric=nmse",
    ]
    lines = check_config(TINY, "all", overrides).problems
    assert len(lines) == 5, lines
    for part in ("did you mean 'tiny'", "stages.operator", "'conservation_gpa'", "'nmse'"):
        assert any(part in line for line in lines), part
    assert "optimizer.lr" in check_config(TINY, "operator", ["optimizer.lr=3"]).notes[0]
    assert check_config(CONFIGS / "tiny_steady.yaml", "operator").problems


def test_an_evaluation_of_another_task_is_told() -> None:
    assert check_same_tasks(TINY, TINY).problems == ()
    assert "use the same tasks" in check_same_tasks(TINY, CONFIGS / "ks1d.yaml").problems[0]


@pytest.fixture
def damaged(data_root: Path, tmp_path: Path) -> Path:
    """Data with three mistakes: NaN, a declared conservation that does not hold, an axis that does not close."""
    simulate.generate_missing(load(TINY, [f"data.root={data_root}"]))
    path = tmp_path / "damaged.hdf5"
    shutil.copy(next(data_root.glob("burgers1d_tiny.hdf5")), path)
    with h5py.File(path, "r+") as file:
        fields = file["tensor"][:]
        fields += np.linspace(0, 5, fields.shape[1])[None, :, None] + np.linspace(0, 50, fields.shape[2])
        fields[7, 3, 5] = np.nan
        file["tensor"][:] = fields
    return path


def test_every_mistake_of_the_data_is_told(damaged: Path) -> None:
    overrides = [f"data.tasks.0.path={damaged}"]
    (check,) = check_data([TINY], overrides).values()
    assert check.exit_code == 3 and check.fingerprint is None
    for part in ("NaN or Inf in 1 frames", "declared conserved", "declared periodic"):
        assert any(part in line for line in check.problems), (part, check.problems)
    (missing,) = check_data([TINY], ["data.tasks.0.path={train: no1.hdf5, test: no2.hdf5}"]).values()
    assert [line.split(":")[0] for line in missing.problems] == ["no1.hdf5", "no2.hdf5"]


def test_every_broken_symmetry_is_reported_by_its_index(data_root: Path) -> None:
    symmetries = "data.tasks.0.symmetries=[{reflect: [x]}, {reflect: [x], negate: [u]}, {negate: [u]}]"
    (result,) = check_data([TINY], [f"data.root={data_root}", symmetries]).values()
    assert [re.findall(r"symmetries\.(\d)", line) for line in result.problems] == [["0"], ["2"]]


def test_sound_data_is_opened_once_for_equal_configurations(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    open_mixture = data.open_mixture
    monkeypatch.setattr(data, "open_mixture", lambda cfg: opened.append(cfg) or open_mixture(cfg))
    checks = check_data([TINY, TINY], [f"data.root={data_root}"])
    assert len(opened) == 1 and checks[TINY].fingerprint is not None


def test_the_script_says_it_all_with_the_code_of_its_kind(script: Script, damaged: Path, tmp_path: Path) -> None:
    wrong = script("validate.py", "--config", TINY, "optimizer.lr=-1", "trainin.x=1")
    assert wrong.returncode == 2 and wrong.stderr.count("error: ") == wrong.stderr.count("\n") == 2
    out = tmp_path / "found.json"
    data = script("validate.py", "--config", TINY, "--json", out, f"data.tasks.0.path={damaged}")
    assert data.returncode == 3 and data.stderr.count("error: ") == data.stderr.count("\n") >= 3
    assert len(json.loads(out.read_text())[str(TINY)]["problems"]) == data.stderr.count("\n")


def test_the_orchestrator_imports_no_jax() -> None:
    names = "run, validation, wandb"
    imports = f"from ups_jax.pipeline import {names}; from ups_jax.cli import leaderboard, pipeline"
    code = f"import sys; {imports}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
