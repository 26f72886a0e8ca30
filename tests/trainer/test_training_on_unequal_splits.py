"""Training on short trajectories, with validation and test on longer ones: each horizon is that of the file."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import CONFIGS
from rich.console import Console
from shared_programs import SMALL_MODEL

from ups_jax.config import Config, load
from ups_jax.core.errors import ConfigError
from ups_jax.data import open_dataset
from ups_jax.evaluation.evaluate_run import Selection, evaluate_run, evaluation_config
from ups_jax.tracking import read_jsonl
from ups_jax.trainer.encode_latents import encode_dataset
from ups_jax.trainer.train import train

QUIET = Console(quiet=True)
FRAMES = {"train": 5, "val": 7, "test": 9}


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    """A short training on waves, with a file for each split."""
    rng = np.random.default_rng(0)
    for role, frames in FRAMES.items():
        x, t = np.arange(32) / 32, 0.05 * np.arange(frames)
        speed, shift = rng.uniform(0.1, 0.5, (2, 6, 1, 1))
        with h5py.File(tmp_path / f"{role}.hdf5", "w") as file:
            file["tensor"] = np.sin(2 * np.pi * (x - speed * t[:, None] + 2 * shift)).astype(np.float32)
            file["x-coordinate"], file["t-coordinate"] = x.astype(np.float32), t.astype(np.float32)
    path = ", ".join(f"{role}: {tmp_path / role}.hdf5" for role in FRAMES)
    task = f"data.tasks=[{{name: waves, periodic: [x], path: {{{path}}}}}]"
    short = ["stages.operator.steps=2", "training.batch_size=2", "training.eval_every=1", "evaluation.plots=false"]
    return load(CONFIGS / "tiny.yaml", [task, *SMALL_MODEL, *short])


def test_a_run_is_validated_and_evaluated_on_longer_trajectories_than_it_is_trained_on(
    cfg: Config, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(cfg, "operator", run, console=QUIET)
    records = read_jsonl(run / "metrics.jsonl")
    errors = [record["validation/rollout"] for record in records if "validation/rollout" in record]
    assert errors and np.isfinite(errors).all()
    for split, frames in FRAMES.items():
        selection = Selection(split=split)  # type: ignore[arg-type]
        result = evaluate_run(run, evaluation_config(run, []), selection=selection, console=QUIET)
        assert result["meta"]["horizon"] == frames - cfg.data.context
        assert len(result["metrics"]["waves"]["rollout"]["nrmse_by_time"]) == frames - cfg.data.context
        assert result["meta"]["trained_on"] == (6 if split == "train" else 0)


def test_latents_of_different_numbers_of_frames_are_refused(cfg: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="5 or 7 or 9"):
        encode_dataset(None, cfg, open_dataset(cfg), tmp_path / "latents")  # type: ignore[arg-type]
