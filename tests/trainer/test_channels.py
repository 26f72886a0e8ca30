"""Fields of several channels go the whole way: built-in data, training, evaluation, rollouts from and into files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import CONFIGS
from rich.console import Console

from ups_jax import load_run
from ups_jax.cli.predict import RolloutRequest, write_rollout
from ups_jax.config import load
from ups_jax.data import data_path, open_dataset
from ups_jax.data.sources import open_file
from ups_jax.data.sources.base import read_trajectories
from ups_jax.evaluation.evaluate_run import evaluate_run
from ups_jax.trainer.train import train

QUIET = Console(quiet=True)
SMALL = ["data.tasks.0.preset=tiny", "operator.spectral={hidden_dim: 8, depth: 1, modes: 3}", "latent.dim=4",
         "training.batch_size=4", "optimizer={name: adamw, lr: 3e-3}",
         "stages.operator.steps=6", "logging.wandb.enabled=false",
         "evaluation={plots: false, bootstrap: 10, val_trajectories: 2, metric: one_step}"]  # fmt: skip


@pytest.mark.parametrize("name", ["cfd1d", "swe2d"])
def test_three_channels_are_trained_evaluated_and_rolled_out(data_root: Path, tmp_path: Path, name: str) -> None:
    cfg = load(CONFIGS / f"{name}.yaml", [f"data.root={data_root}", *SMALL])
    run = train(cfg, "operator", tmp_path / "run", console=QUIET).run.path
    values = evaluate_run(run, cfg, console=QUIET)
    for section in ("one_step", "rollout"):
        assert np.isfinite(values["metrics"][name][section]["nrmse"])
    persistence = values["baselines"]["persistence"][name]["one_step"]["nrmse"]
    assert values["metrics"][name]["one_step"]["nrmse"] != pytest.approx(persistence, rel=1e-3)
    file, channels = data_path(cfg.data, cfg.data.tasks[0]), cfg.data.tasks[0].channels
    assert json.loads((run / "split.json").read_text())["trajectories"] == open_file(file, "transient").trajectories
    wanted = RolloutRequest(input=str(file), steps=3, output=tmp_path / "out.hdf5", params={})
    write_rollout(run, cfg, wanted, console=QUIET)
    # A file of predictions is data again, its channels by their names.
    states, data = open_file(tmp_path / "out.hdf5", "transient", channels), open_dataset(cfg).source
    predicted = read_trajectories(states, np.arange(2))
    np.testing.assert_array_equal(predicted[:, 0], read_trajectories(data, np.arange(2))[:, 0])
    coefficient = next(iter(cfg.data.tasks[0].coefficients))
    expected = data.coefficient(coefficient)
    assert expected is not None
    np.testing.assert_allclose(states.coefficient(coefficient), expected, rtol=1e-6)
    frames = load_run(run).rollout(predicted[:, 0], 3, params={coefficient: expected[:2]})
    np.testing.assert_allclose(predicted[:, 1:], frames, atol=1e-4)
    # What is declared conserved is so to rounding.
    means = predicted[..., 0].mean(axis=tuple(range(2, predicted.ndim - 1)), dtype=np.float64)
    np.testing.assert_allclose(means, means[:, :1].repeat(4, 1), rtol=1e-5)
