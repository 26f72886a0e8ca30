"""Meshes and particles as a user runs them: train, evaluate, roll out, and what is refused."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import CONFIGS

from ups_jax import load_run, simulate
from ups_jax.config import load
from ups_jax.core.errors import DataError
from ups_jax.data.sources import open_file
from ups_jax.data.sources.base import read_trajectories

Main = Callable[..., subprocess.CompletedProcess[str]]

SMALL = [
    "latent.dim=8", "latent.nodes=16", "operator.spectral.hidden_dim=8", "operator.spectral.depth=1",
    "operator.spectral.modes=3", "training.eval_every=4", "logging.wandb.enabled=false", "optimizer.name=adamw",
    "evaluation.bootstrap=10",
]  # fmt: skip


def train(main: Main, root: Path, run: Path, task: str, preset: str, *more: str) -> None:
    result = main(
        "train.py", "--config", str(CONFIGS / f"{task}.yaml"), "--run-dir", str(run), f"data.root={root}", *SMALL,
        f"data.tasks.0.preset={preset}", "stages.operator.epochs=12", *more,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def plate(main: Main, data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "plate"
    train(main, data_root, run, "heat_mesh", "tiny_varied", "evaluation.plots=false")
    return run


@pytest.fixture(scope="module")
def swarm(main: Main, data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "swarm"
    train(main, data_root, run, "particles", "tiny")
    return run


BOTH = ["plate", pytest.param("swarm", marks=pytest.mark.slow)]


@pytest.mark.parametrize("name", BOTH)
def test_a_run_beats_persistence_and_has_what_points_can_have(request: pytest.FixtureRequest, name: str) -> None:
    run = request.getfixturevalue(name)
    task = {"plate": "heat_mesh", "swarm": "particles"}[name]
    values = json.loads((run / "evaluation" / "test.json").read_text())
    ours, still = values["metrics"][task], values["baselines"]["persistence"][task]
    assert ours["rollout"]["nrmse"] < 0.5 * still["rollout"]["nrmse"]
    assert {"nrmse", "rmse", "max_error", "vrmse", "mae", "nrmse_by_time"} <= set(ours["rollout"])
    assert not any("fourier" in key or "boundary" in key or "spectrum" in key for key in ours["rollout"])
    assert values["baselines"]["codec"][task]["rollout"]["nrmse"] == 0 and values["variants"] == {}


@pytest.mark.slow
def test_every_channel_has_a_picture(swarm: Path) -> None:
    plots = {path.name for path in (swarm / "plots").iterdir()}
    assert plots == {"training.png", "particles_nrmse.png", *(f"particles_fields_{field}.png" for field in "uvxy")}
    assert (swarm / "report.html").stat().st_size > 50_000


@pytest.mark.parametrize("name", BOTH)
def test_a_rollout_is_a_file_of_points_that_starts_another(
    request: pytest.FixtureRequest, main: Main, data_root: Path, tmp_path: Path, name: str
) -> None:
    run, first, second = request.getfixturevalue(name), tmp_path / "first.h5", tmp_path / "second.h5"
    arguments = ["--run-dir", str(run), f"data.root={data_root}"]
    result = main("rollout.py", *arguments, "--input", "test:1", "--steps", "4", "--output", str(first))
    assert result.returncode == 0, result.stderr
    assert "nrmse" in result.stdout
    trained = load_run(run)
    channels = trained.task.channels
    source = open_file(first, "transient", channels)
    assert (source.frames, source.trajectories) == (5, 1)
    states = read_trajectories(source, np.zeros(1, int))
    assert np.isfinite(states).all()
    # The file starts a rollout itself, and it is the same one.
    result = main("rollout.py", *arguments, "--input", str(first), "--steps", "4", "--output", str(second))
    assert result.returncode == 0, result.stderr
    assert np.array_equal(read_trajectories(open_file(second, "transient", channels), np.zeros(1, int)), states)
    places = source.points(np.zeros(1, int))
    where = {"point_mask": places.mask[0], "inputs": source.read_input_fields(np.zeros(1, int))[0]}
    if not trained.task.moving:
        where["coords"] = places.coords[0]
    name = trained.task.coefficients[0].name
    again = trained.rollout(states[:, :1], 4, {name: source.coefficient(name)}, input_fields=where)
    np.testing.assert_allclose(again, states[:, 1:], rtol=1e-4, atol=1e-5)


def test_other_points_of_the_same_box_are_stepped_as_well(plate: Path) -> None:
    run = load_run(plate)
    rng = np.random.default_rng(0)
    places = {"coords": rng.random((30, 2)), "inputs": np.zeros((30, 2))}
    frames = run.rollout(rng.normal(size=(2, 30, 1)), 3, {"kappa": 0.02}, input_fields=places)
    assert frames.shape == (2, 3, 30, 1) and np.isfinite(frames).all()
    for wrong, message in (
        ({"coords": places["coords"]}, "inputs"),
        (places | {"coords": np.zeros((30, 3))}, "coords"),
        (places | {"cells": np.zeros(3)}, "cells"),
        (places | {"coords": np.full((30, 2), np.nan)}, "NaN"),
    ):
        with pytest.raises(DataError, match=message):
            run.rollout(rng.normal(size=(2, 30, 1)), 3, {"kappa": 0.02}, input_fields=wrong)


def refused(result: subprocess.CompletedProcess[str], code: int, message: str) -> None:
    assert result.returncode == code, result.stdout + result.stderr
    assert message in result.stderr and len(result.stderr.strip().splitlines()) <= 2


def test_what_needs_a_grid_is_refused_in_a_line(main: Main, plate: Path, data_root: Path, tmp_path: Path) -> None:
    config = [
        "--config",
        str(CONFIGS / "heat_mesh.yaml"),
        f"data.root={data_root}",
        "data.tasks.0.preset=tiny_varied",
        *SMALL,
    ]
    new = ["--run-dir", str(tmp_path / "run")]
    refused(main("train.py", *config, *new, "training.lambda_h1=0.1"), 2, "training.lambda_h1")
    later = ["--stage", "diffusion_residual", "stages.diffusion_residual.epochs=1"]
    refused(main("train.py", *config, "--run-dir", str(plate), *later), 2, "has scattered points")
    refused(main("export.py", "--run-dir", str(plate), "--output", str(tmp_path / "out")), 2, "point cloud")
    arguments = ["--run-dir", str(plate), f"data.root={data_root}", "--steps", "2", "--output", str(tmp_path / "o.h5")]
    refused(main("rollout.py", *arguments, "--input", "test:0", "--images"), 2, "on scattered points")
    np.save(tmp_path / "u.npy", np.zeros((1, 80, 1)))
    refused(main("rollout.py", *arguments, "--input", str(tmp_path / "u.npy")), 3, "has no point positions")
    particles = data_root / "particles_tiny.hdf5"
    simulate.generate_missing(load(CONFIGS / "particles.yaml", [f"data.root={data_root}", "data.tasks.0.preset=tiny"]))
    refused(main("rollout.py", *arguments, "--input", str(particles)), 3, "add the positions x, y")
    with h5py.File(data_root / "heat_mesh_tiny_varied.hdf5") as file, h5py.File(tmp_path / "bare.h5", "w") as bare:
        bare.attrs["layout"] = "points"
        for name in ("points", "mask", "time", "fields/u"):
            bare[name] = file[name][:]
    refused(main("rollout.py", *arguments, "--input", str(tmp_path / "bare.h5")), 3, "the run was trained with")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["heat_mesh", "particles"])
def test_the_configurations_end_far_below_persistence(task: str, script: Main, tmp_path: Path) -> None:
    """`pytest -n0 -m slow tests/cli/test_point_commands.py`: three minutes each on one core."""
    run = tmp_path / "run"
    result = script(
        "train.py", "--config", str(CONFIGS / f"{task}.yaml"), "--stage", "operator", "--run-dir", str(run),
        f"data.root={tmp_path}", timeout=1800,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    values = json.loads((run / "evaluation" / "test.json").read_text())
    ours, still = (
        section[task]["rollout"]["nrmse"] for section in (values["metrics"], values["baselines"]["persistence"])
    )
    assert ours < 0.1 * still
