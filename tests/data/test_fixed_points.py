"""Fixed points of trajectories as steady solutions: which frames they are, what is not at rest, what a run learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from commands import CONFIGS
from rich.console import Console

from ups_jax import load_run
from ups_jax.config import Config, load
from ups_jax.core.errors import ConfigError, DataError
from ups_jax.data import open_dataset
from ups_jax.data.validation import data_problems
from ups_jax.evaluation.evaluate_run import evaluate_run
from ups_jax.trainer.train import train

POINTS, FRAMES = 32, 12


def write(path: Path, rate: float = 1.0, trajectories: int = 120) -> np.ndarray:
    """Fields (N, T, X) that all but the longest wave of decays out of, in PDEBench's tensor layout."""
    rng = np.random.default_rng(0)
    x, t = -1 + 2 / POINTS * np.arange(POINTS), np.arange(FRAMES)
    waves = [np.sin(np.pi * k * x + rng.uniform(0, 6, (trajectories, 1))) for k in (1, 2, 3)]
    sizes = rng.normal(size=(3, trajectories, 1))
    decay = np.exp(-rate * t)[:, None]
    fields = sizes[0, :, None] * waves[0][:, None]
    fields = fields + decay * (sizes[1] * waves[1] + sizes[2] * waves[2])[:, None]
    with h5py.File(path, "w") as file:
        file["tensor"] = fields.astype(np.float32)
        file["x-coordinate"], file["t-coordinate"] = x, 0.1 * np.arange(FRAMES + 1)
    return fields.astype(np.float32)


def config(path: Path, *overrides: str, **task: Any) -> Config:
    entries = {"name": "decay", "path": str(path), "kind": "steady", "solution": "last_frame", "periodic": "[x]"} | task
    text = ", ".join(f"{key}: {value}" for key, value in entries.items())
    return load(CONFIGS / "tiny_steady.yaml", [f"data.tasks=[{{{text}}}]", *overrides])


def test_given_are_first_frames_and_sought_are_last_ones(tmp_path: Path) -> None:
    fields = write(tmp_path / "decay.hdf5")
    for memory in (4.0, 0.0):
        dataset = open_dataset(config(tmp_path / "decay.hdf5", f"data.loader.memory_gib={memory}"))
        assert dataset.task.kind == "steady" and [item.name for item in dataset.task.inputs] == ["initial_u"]
        trajectories = dataset.trajectories("test")
        np.testing.assert_array_equal(trajectories.inputs[..., 0], fields[trajectories.ids, 0])
        np.testing.assert_array_equal(trajectories.fields[:, 0, :, 0], fields[trajectories.ids, -1])


def test_what_has_not_come_to_rest_is_refused_with_the_number_that_would_pass(tmp_path: Path) -> None:
    write(path := tmp_path / "decay.hdf5", rate=0.05)
    with pytest.raises(DataError, match=r"trajectory \d+.*`steady_tolerance`.*0\.01"):
        open_dataset(config(path))
    assert open_dataset(config(path, steady_tolerance=0.1)).source.trajectories == 120
    assert len(data_problems(config(path))) == 1


def test_a_start_without_structure_is_held_against_its_way(tmp_path: Path) -> None:
    write(path := tmp_path / "growing.hdf5")
    with h5py.File(path, "a") as file:
        shape = file["tensor"].shape
        file["tensor"][:] = np.linspace(0, 1, shape[1])[None, :, None] * np.ones(shape)
    with pytest.raises(DataError, match=r"trajectory \d+.*0\.0909"):
        open_dataset(config(path))
    with h5py.File(path, "a") as file:
        # Away and back again: the last frame is the first one, and moves.
        file["tensor"][:, -1] = 0
    with pytest.raises(DataError, match="inf"):
        open_dataset(config(path))


@pytest.mark.parametrize(
    ("task", "message"),
    [({"kind": "transient"}, "kind|steady"), ({"symmetries": "[{reflect: [x], negate: [u]}]"}, "symmetries")],
)
def test_facts_that_cannot_be_are_refused(tmp_path: Path, task: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(tmp_path / "decay.hdf5", **task)


def test_two_frames_have_no_fixed_point(tmp_path: Path) -> None:
    write(path := tmp_path / "decay.hdf5")
    with h5py.File(path, "a") as file:
        fields = file["tensor"][:, :2]
        del file["tensor"], file["t-coordinate"]
        file["tensor"], file["t-coordinate"] = fields, 0.1 * np.arange(3)
    with pytest.raises(DataError, match="2 frames"):
        open_dataset(config(path))


def test_a_run_finds_the_fixed_point_of_fields_that_it_has_not_seen(tmp_path: Path) -> None:
    fields = write(path := tmp_path / "decay.hdf5")
    run = tmp_path / "run"
    cfg = config(
        path, "stages.steady_prior.epochs=20", "evaluation.plots=false", "logging.wandb.enabled=false",
        "optimizer.name=adamw", "operator.spectral.depth=1", "training.eval_every=20",
    )  # fmt: skip
    train(cfg, "steady_prior", run, console=Console(quiet=True))
    values = evaluate_run(run, cfg, console=Console(quiet=True))
    ours, mean = values["metrics"]["decay"], values["baselines"]["mean_field"]["decay"]
    assert ours["steady"]["nrmse"] < 0.2 * mean["steady"]["nrmse"]
    trained = load_run(run)
    solved = trained.step(fields[:4, 0, :, None])[..., 0]
    assert np.sqrt(np.mean((solved - fields[:4, -1]) ** 2) / np.mean(fields[:4, -1] ** 2)) < 0.2
