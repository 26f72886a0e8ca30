"""Training on short trajectories, with validation and test on longer ones: each horizon is that of the file."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from commands import CONFIGS
from rich.console import Console
from shared_programs import SMALL_MODEL

from ups_jax.config import load
from ups_jax.evaluation.evaluate_run import Selection, evaluate_run, evaluation_config
from ups_jax.tracking import read_jsonl
from ups_jax.trainer.train import train

QUIET = Console(quiet=True)
FRAMES = {"train": 5, "val": 7, "test": 9}


def write_waves(path: Path, frames: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, t = np.arange(32) / 32, 0.05 * np.arange(frames)
    phase = 2 * np.pi * (x - rng.uniform(0.1, 0.5, (6, 1, 1)) * t[:, None] + rng.uniform(size=(6, 1, 1)))
    with h5py.File(path, "w") as file:
        file["tensor"] = np.sin(phase).astype(np.float32)
        file["x-coordinate"], file["t-coordinate"] = x.astype(np.float32), t.astype(np.float32)


def test_a_run_is_validated_and_evaluated_on_longer_trajectories_than_it_is_trained_on(tmp_path: Path) -> None:
    for seed, (role, frames) in enumerate(FRAMES.items()):
        write_waves(tmp_path / f"{role}.hdf5", frames, seed)
    path = ", ".join(f"{role}: {tmp_path / role}.hdf5" for role in FRAMES)
    task = f"data.tasks=[{{name: waves, periodic: [x], path: {{{path}}}}}]"
    short = ["stages.operator.steps=2", "training.batch_size=2", "training.eval_every=1", "evaluation.plots=false"]
    cfg = load(CONFIGS / "tiny.yaml", [task, *SMALL_MODEL, *short])
    run = tmp_path / "run"
    train(cfg, "operator", run, console=QUIET)
    assert np.isfinite(
        [item["validation/rollout"] for item in read_jsonl(run / "metrics.jsonl") if "validation/rollout" in item]
    ).all()
    for split, frames in FRAMES.items():
        selection = Selection(split=split)  # type: ignore[arg-type]
        result = evaluate_run(run, evaluation_config(run, []), selection=selection, console=QUIET)
        assert result["meta"]["horizon"] == frames - cfg.data.context
        assert len(result["metrics"]["waves"]["rollout"]["nrmse_by_time"]) == frames - cfg.data.context
        assert result["meta"]["trained_on"] == (6 if split == "train" else 0)
