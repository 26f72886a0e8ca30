"""The steady prior as a user runs it: train, kill and go on, evaluate on a finer grid, solve from a program."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import CONFIGS, kill_after
from pictures import undrawn

from ups_jax import load_run
from ups_jax.config import from_dict, load
from ups_jax.core.errors import DataError
from ups_jax.data import open_dataset
from ups_jax.models.grid import cell_average
from ups_jax.runs.checkpoint import Checkpoints, tasks_from_meta
from ups_jax.tracking import read_jsonl
from ups_jax.training.build import abstract_state

Script = Callable[..., subprocess.CompletedProcess[str]]

SHORT = [
    *("training.eval_every=4", "logging.every_steps=1", "optimizer={name: adamw, lr: 1e-2}"),
    *("evaluation.bootstrap=50", "--stage", "steady_prior"),
]


@pytest.fixture(scope="module")
def arguments(data_root: Path) -> list[str]:
    return ["--config", str(CONFIGS / "tiny_steady.yaml"), *SHORT, f"data.root={data_root}"]


@pytest.fixture(scope="module")
def trained(main: Script, arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "steady"
    with undrawn():
        result = main("train.py", *arguments, "--run-dir", str(run))
    assert result.returncode == 0, result.stderr
    assert "steady" in result.stdout and "mean_field" in result.stdout
    return run


def newest(run: Path) -> tuple[list[np.ndarray], list[float]]:
    """Every leaf of the newest checkpoint, and the loss of every step."""
    with Checkpoints(run / "checkpoints" / "steady_prior", read_only=True) as checkpoints:
        step = checkpoints.steps()[-1]
        meta = checkpoints.meta(step)
        like = abstract_state(from_dict(meta["config"]), tasks_from_meta(meta), "steady_prior")
        state = checkpoints.restore(step, like)
    plain = [state.params, state.opt_state, state.ema, state.monitor, jax.random.key_data(state.rng)]
    losses = [record["loss"] for record in read_jsonl(run / "metrics.jsonl")]
    return [np.asarray(leaf) for leaf in jax.tree.leaves(plain)], losses


def test_a_run_is_complete_and_beats_the_mean_field(trained: Path) -> None:
    values = json.loads((trained / "evaluation" / "test.json").read_text())
    ours, mean = values["metrics"]["darcy2d"], values["baselines"]["mean_field"]["darcy2d"]
    assert set(ours) == set(mean) == {"steady"}
    assert ours["steady"]["nrmse"] < 0.5 * mean["steady"]["nrmse"]
    low, high = values["intervals"]["darcy2d"]["steady"]["nrmse"]
    assert low <= ours["steady"]["nrmse"] <= high
    assert {path.name for path in (trained / "plots").iterdir()} == {"darcy2d_fields_u.png", "training.png"}
    assert (trained / "report.html").stat().st_size > 50_000


def test_kill_9_and_again_ends_in_the_same_bits(
    script: Script, arguments: list[str], trained: Path, tmp_path: Path
) -> None:
    run = tmp_path / "killed"
    assert kill_after(run, [*arguments, "evaluation.enabled=false"], 50, signal.SIGKILL) == -signal.SIGKILL
    result = script("train.py", *arguments, "evaluation.enabled=false", "--run-dir", str(run))
    assert result.returncode == 0, result.stderr
    assert "resumed" in result.stdout
    (ours, losses), (theirs, true_losses) = newest(run), newest(trained)
    assert losses == true_losses
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


def finer_file(path: Path, source: Path, shift: float = 0.0) -> Path:
    """Write the fields on a grid of twice the resolution, every cell split into four equal ones."""
    with h5py.File(source) as coarse, h5py.File(path, "w") as fine:
        for name in ("nu", "tensor"):
            values = coarse[name][:]
            fine[name] = np.repeat(np.repeat(values, 2, axis=-1), 2, axis=-2)
        for axis in ("x-coordinate", "y-coordinate"):
            points = 2 * len(coarse[axis])
            fine[axis] = ((np.arange(points) + 0.5) / points + shift).astype(np.float32)
    return path


def test_a_finer_file_is_evaluated_on_the_same_test_solutions(
    main: Script, trained: Path, data_root: Path, tmp_path: Path
) -> None:
    file = finer_file(tmp_path / "finer.hdf5", data_root / "darcy2d_tiny.hdf5")
    result = main("evaluate.py", "--run-dir", trained, f"data.tasks.0.path={file}", "evaluation.plots=false")
    assert result.returncode == 0, result.stderr
    fine = json.loads((trained / "evaluation" / "test-finer.json").read_text())
    trained_grid = json.loads((trained / "evaluation" / "test.json").read_text())
    assert "32 x 32 points" in fine["meta"]["protocol"]
    # Of the same test solutions the mean field is as far off; the model adds what interpolation loses of the staircase.
    means = [values["baselines"]["mean_field"]["darcy2d"]["steady"]["nrmse"] for values in (trained_grid, fine)]
    assert means[0] == pytest.approx(means[1], rel=1e-5)
    assert fine["metrics"]["darcy2d"]["steady"]["nrmse"] < trained_grid["metrics"]["darcy2d"]["steady"]["nrmse"] + 0.15
    shifted = finer_file(tmp_path / "shifted.hdf5", data_root / "darcy2d_tiny.hdf5", shift=0.1)
    refused = main("evaluate.py", "--run-dir", trained, f"data.tasks.0.path={shifted}")
    assert (refused.returncode, refused.stderr.count("\n")) == (3, 1), refused.stderr
    assert "0.115625" in refused.stderr


def test_a_program_solves_what_the_evaluation_measured(trained: Path, data_root: Path) -> None:
    run = load_run(trained)
    trajectories = open_dataset(load(CONFIGS / "tiny_steady.yaml", [f"data.root={data_root}"])).trajectories("test")
    solved = run.step(trajectories.inputs)
    errors = np.sqrt(
        ((solved - trajectories.fields[:, 0]) ** 2).mean((1, 2, 3)) / (trajectories.fields[:, 0] ** 2).mean((1, 2, 3))
    )
    values = json.loads((trained / "evaluation" / "test.json").read_text())
    assert errors.mean() == pytest.approx(values["metrics"]["darcy2d"]["steady"]["nrmse"], rel=1e-5)
    finer = np.repeat(np.repeat(trajectories.inputs, 3, axis=1), 3, axis=2)
    np.testing.assert_allclose(
        cell_average(jnp.asarray(run.step(finer)), (3, 3)), solved, atol=0.1 * np.abs(solved).max()
    )
    for wrong, named in ((trajectories.inputs[:, ::2, ::2], "8 x 8.*16 x 16"), (trajectories.inputs[..., 0], "shape")):
        with pytest.raises(DataError, match=named):
            run.step(wrong)
    with pytest.raises(DataError, match="mu"):
        run.step(trajectories.inputs, params={"mu": 1.0})


def test_a_stage_for_another_kind_of_task_is_one_line(main: Script, data_root: Path, tmp_path: Path) -> None:
    cases = [
        ("tiny_steady.yaml", "operator", "--stage steady_prior"),
        ("tiny.yaml", "steady_prior", "--stage operator"),
    ]
    for config, stage, mend in cases:
        result = main(
            "train.py", "--config", CONFIGS / config, "--stage", stage, f"data.root={data_root}", "--run-dir",
            tmp_path / "run",
        )  # fmt: skip
        assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
        assert mend in result.stderr
        assert not (tmp_path / "run").exists()
