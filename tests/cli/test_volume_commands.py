"""Three space dimensions as a user goes through them: generate, look, train, evaluate, roll out."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import CONFIGS
from pictures import undrawn

from ups_jax.data.sources import open_file
from ups_jax.data.sources.base import read_trajectories

Main = Callable[..., subprocess.CompletedProcess[str]]

TASK = "advection_diffusion3d"
SMALL = [
    "data.tasks.0.preset=tiny", "operator.spectral={hidden_dim: 8, depth: 1, modes: 2}",
    "latent={dim: 4, patch_size: 2}", "optimizer={name: adamw, lr: 1e-2}", "stages.operator.steps=60",
    "training.eval_every=8", "logging.wandb.enabled=false",
    "evaluation={enabled: false, bootstrap: 10}",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(main: Main, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data that the generator's script writes, a run on them and its evaluation."""
    root = tmp_path_factory.mktemp("volume")
    generated = main("generate_data.py", "--task", TASK, "--preset", "tiny", "--out", root)
    assert generated.returncode == 0, generated.stderr
    config = ["--config", CONFIGS / f"{TASK}.yaml", f"data.root={root}", *SMALL]
    for name, *arguments in (("train.py", *config), ("evaluate.py",)):
        with undrawn():
            result = main(name, *arguments, "--run-dir", root / "run")
        assert result.returncode == 0, result.stderr
    return root


def min_frames(path: Path) -> np.ndarray:
    """The first trajectory of a file."""
    return read_trajectories(open_file(path, "transient", ("u",)), np.zeros(1, int))[0]


def test_what_inspection_tells_to_configure_is_the_shipped_configuration(main: Main, folder: Path) -> None:
    seen = main("inspect_data.py", folder / f"{TASK}_tiny.hdf5", "--output", folder / "seen")
    assert seen.returncode == 0, seen.stdout
    output = " ".join(seen.stdout.split())
    assert "axis z 8 points" in output and "periodic: [x, y, z]" in output
    assert "coefficients: {beta_x: linear, beta_y: linear, beta_z: linear, nu: log10}" in output
    assert "conserved=[u]" in output and (folder / "seen" / f"{TASK}_tiny.png").stat().st_size > 5000


def test_a_short_run_beats_persistence_and_conserves_the_mean(folder: Path) -> None:
    values = json.loads((folder / "run" / "evaluation" / "test.json").read_text())
    ours, still = values["metrics"][TASK], values["baselines"]["persistence"][TASK]
    for section in ("one_step", "rollout"):
        assert 0 < ours[section]["nrmse"] < 0.9 * still[section]["nrmse"]
    assert ours["rollout"]["conservation_rmse"] < 1e-5
    plots = {path.name for path in (folder / "run" / "plots").iterdir()}
    assert {f"{TASK}_nrmse.png", f"{TASK}_fields_u.png"} <= plots


def test_a_rollout_starts_from_a_file_and_hears_the_velocity(main: Main, folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "u.npy", min_frames(folder / f"{TASK}_tiny.hdf5")[0])
    arguments = ["--run-dir", folder / "run", "--input", tmp_path / "u.npy", "--steps", "4"]
    frames = []
    for name, beta in (("along", 1.0), ("against", -1.0)):
        params = ["--params", "nu=0.01", f"beta_x={beta}", "beta_y=0", "beta_z=0"]
        result = main("rollout.py", *arguments, *params, "--output", tmp_path / f"{name}.hdf5")
        assert result.returncode == 0, result.stderr
        frames.append(min_frames(tmp_path / f"{name}.hdf5"))
    assert frames[0].shape == (5, 8, 8, 8, 1) and np.isfinite(frames).all()
    np.testing.assert_array_equal(frames[0][0], frames[1][0])
    assert not np.allclose(frames[0][1], frames[1][1], atol=1e-3)
