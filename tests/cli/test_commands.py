"""The main commands as a newcomer runs them, and one clear line for each mistake a newcomer makes."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import CONFIGS

Script = Callable[..., subprocess.CompletedProcess[str]]

SMALL = [
    *("operator.spectral.depth=1", "optimizer={name: adamw, lr: 1e-2}", "stages.operator.epochs=8"),
    "evaluation.bootstrap=50",
]
METRICS = {
    "nrmse", "rmse", "max_error", "vrmse", "conservation_rmse", "boundary_rmse",
    "fourier_rmse_low", "fourier_rmse_mid", "fourier_rmse_high",
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(main: Script, data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "tiny"
    result = main(
        "train.py", "--config", CONFIGS / "tiny.yaml", f"data.root={data_root}", "logging.wandb.enabled=true",
        "--stage", "operator", "--run-dir", run, *SMALL,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == lines[-1] == f"run         {run}"
    assert "CPU" in result.stdout
    assert "32/4/4 train/val/test trajectories" in result.stdout
    for row in ("this model", "latent rollout", "persistence"):
        assert row in result.stdout
    return run


def test_the_main_command_leaves_a_complete_run(trained: Path) -> None:
    record = json.loads((trained / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["stages"]["operator"]["steps"] == record["stages"]["operator"]["total_steps"]
    assert {"config", "digests", "versions", "git", "device"} <= record.keys()
    assert (trained / "report.html").stat().st_size > 50_000
    assert len(list((trained / "plots").glob("*.png"))) >= 4
    assert list((trained / "wandb").glob("offline-run-*"))


def test_the_evaluation_keeps_its_contract_and_beats_persistence(trained: Path) -> None:
    values = json.loads((trained / "evaluation" / "test.json").read_text())
    model, persistence = values["metrics"]["burgers1d"], values["baselines"]["persistence"]["burgers1d"]
    for section in (*model.values(), *persistence.values(), *values["baselines"]["codec"]["burgers1d"].values()):
        assert section.keys() >= METRICS
    latent = values["variants"]["latent"]["burgers1d"]
    assert latent["rollout"].keys() == model["rollout"].keys() and latent["seconds_per_rollout_step"] > 0
    # Its first step is the model's own.
    first = model["rollout"]["nrmse_by_time"][0]
    assert latent["rollout"]["nrmse_by_time"][0] == pytest.approx(first, rel=1e-3)
    assert persistence["rollout"]["correlation_time"] < model["rollout"]["correlation_time"] <= 20 * 0.05 + 1e-6
    assert len(model["rollout"]["nrmse_by_time"]) == 20
    assert model["one_step"]["nrmse"] < 0.2 * persistence["one_step"]["nrmse"]
    assert model["rollout"]["nrmse"] < 0.2 * persistence["rollout"]["nrmse"]
    assert model["rollout"]["conservation_rmse"] < 1e-6
    assert {"steps", "seed", "parameters", "device", "seconds_per_step", "seconds_per_rollout_step", "trajectories",
            "horizon", "protocol", "checkpoint", "wall_clock"} <= values["meta"].keys()  # fmt: skip
    low, high = values["intervals"]["burgers1d"]["rollout"]["nrmse"]
    assert low <= model["rollout"]["nrmse"] <= high


def test_evaluating_again_gives_the_same_numbers_and_another_split_other_ones(
    main: Script, trained: Path, tmp_path: Path
) -> None:
    again = main("evaluate.py", "--run-dir", trained, "--json", tmp_path / "again.json", "evaluation.plots=false")
    assert again.returncode == 0, again.stderr
    first = json.loads((trained / "evaluation" / "test.json").read_text())["metrics"]
    assert json.loads((tmp_path / "again.json").read_text())["metrics"] == first
    val = main("evaluate.py", "--run-dir", trained, "--split", "val", "evaluation.plots=false")
    assert val.returncode == 0, val.stderr
    assert json.loads((trained / "evaluation" / "val.json").read_text())["metrics"] != first


def test_evaluating_on_another_file_leaves_the_model_as_it_is(main: Script, trained: Path, tmp_path: Path) -> None:
    generated = main("generate_data.py", "--task", "burgers1d", "--preset", "tiny", "--seed", 3, "--out", tmp_path)
    assert generated.returncode == 0, generated.stderr
    file = generated.stdout.strip()
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    other_data = f"data.tasks=[{{name: burgers1d, path: {file}}}]"
    result = main("evaluate.py", "--run-dir", copy, other_data, "evaluation.plots=false")
    assert result.returncode == 0, result.stderr
    values = json.loads((copy / "evaluation" / "test.json").read_text())
    assert values["metrics"]["burgers1d"]["one_step"]["nrmse"] < 0.02


def test_a_run_is_evaluated_on_twice_its_points_through_its_own_grid(
    main: Script, trained: Path, data_root: Path
) -> None:
    result = main("evaluate.py", "--run-dir", trained, "data.tasks.0.preset=tiny_double", "evaluation.plots=false")
    assert result.returncode == 0, result.stderr
    assert "the grid it was trained on" in result.stdout
    values = json.loads((trained / "evaluation" / "test-burgers1d_tiny_double.json").read_text())
    trained_grid = json.loads((trained / "evaluation" / "test.json").read_text())
    grid = values["meta"]["grid"]
    assert (grid["way"], grid["trained"], grid["data"]) == ("restricted", [64], [128])
    assert trained_grid["meta"]["grid"]["way"] == "own"
    for section in ("one_step", "rollout"):
        # 64 points resolve these fields, so that the points between tell the same error.
        same = trained_grid["metrics"]["burgers1d"][section]["nrmse"]
        assert values["metrics"]["burgers1d"][section]["nrmse"] == pytest.approx(same, rel=0.02)
        assert 0 < values["baselines"]["codec"]["burgers1d"][section]["nrmse"] < 1e-4
    latent = values["variants"]["latent"]["burgers1d"]["rollout"]["nrmse"]
    assert latent == pytest.approx(trained_grid["variants"]["latent"]["burgers1d"]["rollout"]["nrmse"], rel=0.02)


def damaged_file(path: Path, data_root: Path, change: Callable[[h5py.File], None]) -> Path:
    shutil.copy(next(data_root.glob("burgers1d_tiny*.hdf5")), path)
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def put_nan(file: h5py.File) -> None:
    file["tensor"][7, 3, 5] = np.nan


def test_mistakes_get_one_line_and_their_exit_code(
    main: Script, trained: Path, data_root: Path, tmp_path: Path
) -> None:
    bad = damaged_file(tmp_path / "nan.hdf5", data_root, put_nan)
    tiny, run = CONFIGS / "tiny.yaml", tmp_path / "run"
    cases = [
        (("--config", tiny, "training.batchsize=3"), 2, "training.batch_size"),
        (("--config", tmp_path / "none.yaml"), 2, "none.yaml"),
        (("--config", tiny, "data.tasks.0.path=none.hdf5"), 3, "none.hdf5"),
        (("--config", tiny, f"data.tasks.0.path={bad}"), 3, "nan.hdf5"),
        (("--config", tiny, "data.tasks.0.name=burgers"), 2, "burgers1d"),
    ]
    for arguments, code, named in cases:
        result = main("train.py", *arguments, "--run-dir", run)
        assert (result.returncode, result.stderr.count("\n")) == (code, 1), (arguments, result.stderr)
        assert named in result.stderr and "Traceback" not in result.stderr
    missing = main("evaluate.py", "--run-dir", tmp_path / "nowhere")
    assert (missing.returncode, missing.stderr.count("\n")) == (4, 1)
    assert not (tmp_path / "nowhere").exists()


def test_a_traceback_is_shown_when_asked_for(main: Script, tmp_path: Path) -> None:
    result = main("evaluate.py", "--run-dir", tmp_path / "nowhere", "--traceback")
    assert result.returncode == 4
    assert "Traceback" in result.stderr


@pytest.mark.parametrize(
    "name",
    [
        "train.py",
        "evaluate.py",
        "generate_data.py",
        "profile_step.py",
        "rollout.py",
        "export.py",
        "inspect_data.py",
        "validate.py",
        "verify_run.py",
        "leaderboard.py",
        "run_fast_to_sota.py",
    ],
)
def test_help_reads(main: Script, name: str) -> None:
    result = main(name, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith("usage") and "None" not in result.stdout


def test_profile_step_prints_where_the_time_of_a_step_goes(main: Script, data_root: Path, tmp_path: Path) -> None:
    result = main(
        "profile_step.py", "--config", CONFIGS / "tiny.yaml", "--steps", "2", "--out", tmp_path,
        f"data.root={data_root}", "operator.spectral.depth=1", "optimizer.name=adamw",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    parts = {line.split()[1] for line in result.stdout.splitlines() if line.startswith("│")}
    assert {"operator/core/SpectralBlock", "optimizer", "average"} <= parts
    assert "ms per step" in result.stdout and any(tmp_path.rglob("perfetto_trace.json.gz"))
