"""A mesh and particles in one training, scored at points that are drawn anew each step: both learn, and a resumed run
ends in the same bits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from commands import CONFIGS
from rich.console import Console

from ups_jax import load_run, simulate
from ups_jax.config import Config, load
from ups_jax.data import open_mixture
from ups_jax.evaluation.evaluate_run import evaluate_run
from ups_jax.runs.checkpoint import Checkpoints, tasks_from_meta
from ups_jax.tracking import read_jsonl
from ups_jax.trainer.train import train
from ups_jax.training.build import abstract_state

QUIET = Console(quiet=True)
STEPS = 60
NAMES = ("heat_mesh", "particles")
TASKS = """[
  {name: heat_mesh, preset: tiny_varied, channels: [u], coefficients: {kappa: log10}},
  {name: particles, preset: tiny, channels: [x, y, u, v], periodic: [x, y], coefficients: {nu: log10}}]"""
SMALL = [
    "latent={dim: 4, nodes: 16}", "operator.spectral={hidden_dim: 8, depth: 1, modes: 2}", "training.batch_size=4",
    "training.eval_every=20", "logging.every_steps=1", "evaluation={plots: false, bootstrap: 10, batch_size: 4}",
    "training.query_sampling={enabled: true, num_queries: 30}", "scheduler.name=constant",
    "optimizer={name: adamw, lr: 1e-2}", "logging.wandb.enabled=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def cfg(data_root: Path) -> Config:
    cfg = load(CONFIGS / "heat_mesh.yaml", [f"data.root={data_root}", f"data.tasks={TASKS}", *SMALL])
    simulate.generate_missing(cfg)
    return cfg


def trained(cfg: Config, path: Path, steps: int) -> list[np.ndarray]:
    """Every leaf of the state after so many steps in a run directory."""
    stages = replace(cfg.stages, operator=replace(cfg.stages.operator, steps=steps))
    train(replace(cfg, stages=stages), "operator", path, console=QUIET)
    with Checkpoints(path / "checkpoints" / "operator", read_only=True) as checkpoints:
        step = checkpoints.steps()[-1]
        state = checkpoints.restore(step, abstract_state(cfg, tasks_from_meta(checkpoints.meta(step)), "operator"))
    assert int(state.step) == steps
    return [
        np.asarray(jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
        for leaf in jax.tree.leaves(state)
    ]


@pytest.fixture(scope="module")
def run(cfg: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    path = tmp_path_factory.mktemp("points") / "run"
    return path, trained(cfg, path, STEPS)


def test_a_resumed_run_ends_in_the_same_bits(run: Any, cfg: Config, tmp_path: Path) -> None:
    trained(cfg, tmp_path / "run", 25)
    again = trained(cfg, tmp_path / "run", STEPS)
    assert len(again) == len(run[1]) > 20
    for one, other in zip(again, run[1], strict=True):
        np.testing.assert_array_equal(one, other)
    curves = [[line["loss"] for line in read_jsonl(path / "metrics.jsonl")] for path in (tmp_path / "run", run[0])]
    assert curves[0] == curves[1] and len(curves[0]) == STEPS


def test_both_learn_and_are_evaluated_and_rolled_out_by_their_names(run: Any, cfg: Config) -> None:
    records = read_jsonl(run[0] / "metrics.jsonl")
    steps = {name: sum(f"{name}/loss" in record for record in records) for name in NAMES}
    assert sum(steps.values()) == STEPS and min(steps.values()) > 20
    for name in NAMES:
        losses = [record[f"{name}/loss"] for record in records if f"{name}/loss" in record]
        assert np.mean(losses[-15:]) < 0.9 * np.mean(losses[:5]), name
    values = evaluate_run(run[0], cfg, console=QUIET)
    assert values["metrics"].keys() == values["baselines"]["persistence"].keys() == set(NAMES)
    assert json.loads((run[0] / "evaluation" / "test.json").read_text())["metrics"].keys() == set(NAMES)
    loaded = load_run(run[0])
    for dataset, params in zip(open_mixture(cfg).datasets, ({"kappa": 0.02}, {"nu": 0.02}), strict=True):
        trajectories = dataset.trajectories("test", limit=1)
        assert trajectories.points is not None
        places = {"point_mask": trajectories.points.mask[0], "inputs": trajectories.inputs[0]}
        if not dataset.task.moving:
            places["coords"] = trajectories.points.coords[0]
        frames = loaded.rollout(
            trajectories.fields[:, :1], 2, params=params, task=dataset.task.name, input_fields=places
        )
        assert frames.shape == (1, 2, *dataset.task.shape, len(dataset.task.channels)) and np.isfinite(frames).all()
