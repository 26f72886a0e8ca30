"""Predictions as a user makes them: from a test trajectory and from files, and one line for each mistake."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray
from commands import command, quiet

from ups_jax.core.locks import lock_file
from ups_jax.runs.directory import RunDirectory

Script = Callable[..., subprocess.CompletedProcess[str]]


def test_a_test_trajectory_is_predicted_compared_and_pictured(
    main: Script, saved_run: Path, data_root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "out.hdf5"
    result = main(
        "rollout.py", "--run-dir", saved_run, "--input", "test:3", "--steps", "18", "--output", out, "--images",
        "--dt", "0.05", f"data.root={data_root}", "--params", "nu=0.02",
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    printed = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert list(printed) == ["run", "input", "output", "nrmse", "last", "correlated", "image"]
    assert "test trajectory 3" in printed["input"] and printed["output"] == str(out)
    assert sorted(path.name for path in out.parent.iterdir()) == ["out.hdf5", "out.mp4", "out.png"]
    with xarray.open_dataset(out, engine="h5netcdf") as states:
        assert dict(states.sizes) == {"trajectory-coordinate": 1, "t-coordinate": 19, "x-coordinate": 64}
        assert np.isfinite(states["tensor"]).all() and states.attrs["params"] == '{"nu": [0.02]}'


def test_mistakes_are_one_line_with_their_exit_code(main: Script, saved_run: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "short.npy", np.zeros((2, 32), np.float32))
    np.save(tmp_path / "u0.npy", np.zeros((2, 64), np.float32))
    fixed = ["--run-dir", saved_run, "--steps", "2", "--output", tmp_path / "out.hdf5", "--params", "nu=0.01"]
    cases = [
        (["--input", tmp_path / "short.npy"], 3, "x=64"),
        (["--input", tmp_path / "u0.npy", "--members", "4"], 2, "--members 4"),
        (["--input", tmp_path / "u0.npy", "--run-dir", tmp_path], 4, str(tmp_path)),
    ]
    for arguments, code, named in cases:
        result = main("rollout.py", *fixed, *arguments)
        assert (result.returncode, result.stderr.count("\n")) == (code, 1), (arguments, result.stderr)
        assert named in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["short.npy", "u0.npy"]


def test_a_second_writer_of_an_output_is_refused_and_the_reader_of_a_run_that_trains_is_not(
    main: Script, saved_run: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "u0.npy", np.zeros((1, 64), np.float32))
    arguments = ["--run-dir", saved_run, "--input", tmp_path / "u0.npy", "--steps", "2", "--params", "nu=0.01"]
    line = ["rollout.py", *arguments, "--output", tmp_path / "out.hdf5"]
    with lock_file(tmp_path / "out.hdf5", "wait"):
        result = main(*line)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert re.search(rf"out\.hdf5.*{os.getpid()}.*{os.uname().nodename}", result.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["u0.npy"]
    with RunDirectory(saved_run).lock():
        result = main(*line)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.hdf5", "u0.npy"]


def test_params_that_are_no_numbers_are_told_by_name(main: Script, saved_run: Path, tmp_path: Path) -> None:
    result = main(
        "rollout.py", "--run-dir", saved_run, "--input", "test:0", "--steps", "1", "--output", tmp_path / "o.hdf5",
        "--params", "nu=small",
    )  # fmt: skip
    assert result.returncode == 2 and "'nu=small'" in result.stderr


def test_a_full_disk_is_one_line(saved_run: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: 50 trajectories of 101 frames are 1.3 MB."""
    np.save(tmp_path / "u0.npy", np.zeros((50, 64), np.float32))
    arguments = ["--run-dir", str(saved_run), "--input", str(tmp_path / "u0.npy"), "--steps", "100"]
    result = subprocess.run(
        ["bash", "-c", 'ulimit -f 1024; exec "$@"', "-", *command("rollout.py", *arguments), "--output",
         str(tmp_path / "out.hdf5"), "--params", "nu=0.01", "--batch-size", "25"],
        capture_output=True, text=True, timeout=200, env=quiet(),
    )  # fmt: skip
    assert (result.returncode, result.stderr.count("\n")) == (7, 1), result.stderr
    assert "out.hdf5.partial" in result.stderr
    assert not (tmp_path / "out.hdf5").exists()
