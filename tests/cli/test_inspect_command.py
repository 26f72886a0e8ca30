"""`inspect_data.py` goes on after a bad file, leaves a picture of each good one, and its exit code tells of defects."""

from __future__ import annotations

from pathlib import Path

import h5py
import matplotlib.image
import numpy as np
import pytest
from commands import in_process

Values = np.ndarray


def write(path: Path, values: Values, axes: str) -> Path:
    with h5py.File(path, "w") as file:
        file["density"], file["Vx"] = values, 2 * values
        file["t-coordinate"] = np.arange(values.shape[1] + 1.0)
        for axis, size in zip(axes, values.shape[2:], strict=True):
            file[f"{axis}-coordinate"] = np.arange(float(size))
    return path


@pytest.mark.parametrize("axes", ["x", "xy", "xyz"])
def test_a_picture_is_written_and_nothing_else_beside_what_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], axes: str
) -> None:
    rng = np.random.default_rng(0)
    file = write(tmp_path / "flow.hdf5", rng.normal(size=(3, 4, *(6, 5, 4)[: len(axes)])).astype(np.float32), axes)
    assert in_process("inspect_data.py", file, "--output", tmp_path / "seen") == 0
    output = capsys.readouterr().out
    assert str(file) in output and str(tmp_path / "seen" / "flow.png") in output
    image = matplotlib.image.imread(tmp_path / "seen" / "flow.png")
    assert min(image.shape[:2]) > 200 and np.ptp(image[..., :3]) > 0.5


def test_a_bad_file_is_one_line_and_the_next_one_is_still_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = np.random.default_rng(0).normal(size=(3, 4, 6)).astype(np.float32)
    good = write(tmp_path / "good.hdf5", values, "x")
    values[0, 1, 2] = np.nan
    broken = write(tmp_path / "broken.hdf5", values, "x")
    (tmp_path / "text.hdf5").write_text("no data")
    assert in_process("inspect_data.py", tmp_path / "text.hdf5", good, "--output", tmp_path / "seen") == 3
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "text.hdf5" in captured.err
    assert str(good) in captured.out
    assert in_process("inspect_data.py", broken, "--no-picture") == 3
    assert "1 frames" in capsys.readouterr().out
    assert in_process("inspect_data.py", good, "--no-picture") == 0


def test_a_name_that_is_half_a_formula_is_drawn_as_it_is(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "flow.hdf5", "w") as file:
        file["$\\frac$"] = np.random.default_rng(0).normal(size=(3, 4, 6)).astype(np.float32)
        file["t-coordinate"], file["x-coordinate"] = np.arange(5.0), np.arange(6.0)
    assert in_process("inspect_data.py", tmp_path / "flow.hdf5", "--output", tmp_path / "seen") == 0
    assert (tmp_path / "seen" / "flow.png").exists()
