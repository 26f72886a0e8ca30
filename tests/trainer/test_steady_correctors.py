"""The stages upon a steady prior: samples of its error, in one run, and their distillation."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import CONFIGS
from rich.console import Console
from shared_correctors import reading_once, sharing

from ups_jax.config import Config, load
from ups_jax.data import open_dataset
from ups_jax.evaluation.evaluate_run import evaluate_run
from ups_jax.inference.corrected import CorrectedModel, load_corrector
from ups_jax.inference.trained_model import load_run
from ups_jax.pipeline.train_all_stages import is_finished, train_all
from ups_jax.runs.directory import RunDirectory

SETTINGS = [
    "optimizer={name: adamw, lr: 3e-3}",
    "scheduler={name: constant, warmup: 0}",
    "training.batch_size=8",
    "operator.spectral.depth=1",
    "diffusion.num_steps=2",
    "stages.steady_prior.steps=6",
    "stages.diffusion_residual.steps=4",
    "stages.consistency_distill={steps: 2, tau_schedule: [1]}",
    "evaluation={enabled: false, plots: false, bootstrap: 10, members: 3}",
]
CORRECTORS = ("diffusion_residual", "consistency_distill")

shared_programs = pytest.fixture(scope="module", autouse=True)(sharing)


@pytest.fixture(scope="module")
def cfg(data_root: Path) -> Config:
    return load(CONFIGS / "tiny_steady.yaml", [*SETTINGS, f"data.root={data_root}"])


@pytest.fixture(scope="module")
def run(cfg: Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunDirectory]:
    """A finished run of all stages, which no test changes."""
    trained = train_all(cfg, tmp_path_factory.mktemp("runs") / "steady", console=Console(quiet=True))
    for _ in reading_once(trained.path):
        yield trained


def test_all_stages_of_a_steady_task_are_trained_upon_the_prior(run: RunDirectory, cfg: Config) -> None:
    stages = run.read_record()["stages"]
    assert list(stages) == ["steady_prior", *CORRECTORS] and all(is_finished(run, cfg, stage) for stage in stages)
    assert list(stages["consistency_distill"]["parents"]) == ["steady_prior", "diffusion_residual"]


def test_the_evaluation_has_the_expected_error_of_each_taken_out_and_an_ensemble(
    run: RunDirectory, cfg: Config
) -> None:
    output = io.StringIO()
    values = evaluate_run(run.path, cfg, console=Console(file=output, width=200))
    assert list(values["variants"]) == ["corrector", "distilled", "ensemble"]
    ensemble = values["variants"]["ensemble"]["darcy2d"]
    assert ensemble["members"] == 3 and values["meta"]["ensemble_of"] == "consistency_distill"
    assert ensemble["steady"].keys() >= {"crps", "spread_skill", "coverage_50", "coverage_90"}
    assert "ensemble of 3 members: CRPS" in output.getvalue() and "no effect" not in output.getvalue()
    asked, output = replace(cfg, evaluation=replace(cfg.evaluation, candidates=2)), io.StringIO()
    alone = evaluate_run(run.path, asked, stage="diffusion_residual", console=Console(file=output, width=200))
    assert output.getvalue().count("evaluation.candidates has no effect: a steady task has no time steps") == 1
    assert alone["metrics"]["darcy2d"]["steady"] == values["variants"]["corrector"]["darcy2d"]["steady"]


@pytest.mark.parametrize("stage", CORRECTORS)
def test_samples_differ_by_member_and_by_the_steps_of_their_sampler(run: RunDirectory, cfg: Config, stage: str) -> None:
    steady, trajectories = load_run(run.path), open_dataset(cfg).trajectories("test")
    arguments = trajectories.inputs, 1, trajectories.cond, trajectories.cond_mask
    weights = load_corrector(run.path, stage)
    solver = CorrectedModel(steady, stage, weights)
    members = solver.sample_members(*arguments, members=2)
    np.testing.assert_array_equal(members, solver.sample_members(*arguments, members=2))
    assert np.abs(members[0] - members[1]).max() > 0 and np.abs(solver.rollout_arrays(*arguments) - members).max() > 0
    other = CorrectedModel(steady, stage, weights, sampler_steps=1 if stage == "diffusion_residual" else 2)
    np.testing.assert_array_equal(other.rollout_arrays(*arguments), solver.rollout_arrays(*arguments))
    assert np.abs(other.sample_members(*arguments, members=1) - members[0]).max() > 0
