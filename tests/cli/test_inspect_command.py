"""`inspect_data.py` goes on after a bad file, leaves a picture of each good one, and its exit code tells of defects."""

from __future__ import annotations

from pathlib import Path

import h5py
import matplotlib.image
import numpy as np
import pytest
from commands import in_process

from ups_jax import config
from ups_jax.data import open_dataset

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


def test_a_folder_a_home_and_a_pattern_are_inspected_file_by_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).normal(size=(3, 4, 6)).astype(np.float32)
    for role in ("train", "test"):
        (tmp_path / "set" / role).mkdir(parents=True)
        write(tmp_path / "set" / role / "a.hdf5", values, "x")
    write(tmp_path / "1e-3.hdf5", values, "x")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert in_process("inspect_data.py", tmp_path / "set", "--output", tmp_path / "seen") == 0
    output = capsys.readouterr().out
    assert all(f"file        {tmp_path / 'set' / role / 'a.hdf5'}" in output for role in ("train", "test"))
    # No picture replaces another one.
    assert sorted(path.name for path in (tmp_path / "seen").iterdir()) == ["a-2.png", "a.png"]
    for argument, count in (("~/set", 2), ("~/set/*/a.hdf5", 2), ("~/1e-3.hdf5", 1), ("~/set/train", 1), ("~", 1)):
        assert in_process("inspect_data.py", argument, "--no-picture") == 0, argument
        assert capsys.readouterr().out.count("file        ") == count
    for argument, message in (("~/none*.hdf5", "no file matches"), ("~/seen", "no data files")):
        assert in_process("inspect_data.py", argument, "--no-picture") == 3
        assert message in capsys.readouterr().err


def test_the_printed_configuration_of_a_file_whose_name_is_a_number_opens_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).normal(size=(10, 4, 6)).astype(np.float32)
    monkeypatch.chdir(tmp_path)
    for name in ("1e-3.hdf5", "1e5", "on"):
        write(Path(name), values, "x")
        assert in_process("inspect_data.py", name, "--no-picture") == 0
        text = capsys.readouterr().out.partition("\nconfig\n")[2]
        dataset = open_dataset(config.from_dict(config.yaml.parse(text)))
        assert dataset.source.name == name
