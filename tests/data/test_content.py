"""Trajectories without content are listed by number, when a file is inspected and when it is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from travelling_waves import DT, SPACING, waves
from written_layouts import write_cfd

from ups_jax.data import from_arrays
from ups_jax.data.content import ContentReport, content_report
from ups_jax.data.inspection import describe, inspect
from ups_jax.data.scan import scan_chunk


def line(fields: np.ndarray) -> dict[str, np.ndarray]:
    """Return coordinates and times of the waves."""
    return {"x__coordinate": SPACING * np.arange(fields.shape[2]), "t__coordinate": DT * np.arange(fields.shape[1])}


def report_on(fields: np.ndarray, stride: int = 1) -> ContentReport:
    values = np.asarray(fields, np.float32)
    return content_report(scan_chunk(values, np.empty((len(values), *values.shape[2:-1], 0), np.float32), stride))


def test_each_kind_is_recognised_and_waves_are_none_of_them() -> None:
    fields = waves(frames=20)[0][..., None]
    fields[1] = 0
    fields[2, 12:] = fields[2, 12]
    fields[3, 7:] = 0
    fields[4] = 5.0
    fields[5] = fields[5, :1] * np.exp(-0.5 * np.arange(20))[:, None, None]
    fields[6] += 5000 * fields[6].std()
    fields[7] = 3.0 + 1e-7 * fields[7]
    report = report_on(fields)
    assert np.flatnonzero(report.is_unwritten).tolist() == [1]
    assert report.repeats_from.tolist() == [-1, -1, 12, 7, 0, *[-1] * 7]
    # Trajectory 7 changes by rounding only.
    assert np.flatnonzero(report.is_at_rest).tolist() == [5, 7]
    assert np.flatnonzero(report.is_flat).tolist() == [4, 6, 7]
    assert np.flatnonzero(~report.suits_hints).tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert np.flatnonzero(~report.has_content).tolist() == [1, 2, 3, 4]
    text = "\n".join(report.lines(["u"]))
    for part in (
        "in 1 of 12 trajectories: 1;",
        "2 (from frame 12), 3 (from frame 7), 4 (from frame 0)",
        "trajectories: 5, 7;",
    ):
        assert part in text


def test_a_channel_that_never_changes_is_named_and_gives_no_hints(tmp_path: Path) -> None:
    moving = waves()[0]
    still = np.broadcast_to(np.linspace(1, 2, moving.shape[-1], dtype=np.float32), moving.shape)
    partly = np.where(np.arange(len(moving))[:, None, None] < 2, still, moving)
    report = report_on(np.stack([moving, partly], -1))
    assert np.argwhere(report.is_still).tolist() == [[0, 1], [1, 1]]
    assert np.flatnonzero(~report.suits_hints).tolist() == [0, 1] and report.has_content.all()
    assert not report_on(still[..., None]).is_still.any()
    for name, second, is_usable in (("partly", partly, True), ("still", still, False)):
        path = tmp_path / f"{name}.hdf5"
        write_cfd(path, 1, Vx=moving, density=second, pressure=None, **line(moving))
        inspection = inspect(path)
        assert inspection.is_usable == is_usable
        assert any("density does not change in time" in text for text in describe(inspection))
        assert bool(inspection.hints) == is_usable


@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("stride", [1, 3])
def test_the_report_depends_on_neither_unit_nor_stride(unit: float, stride: int) -> None:
    fields = waves(frames=20)[0][..., None] * np.float32(unit)
    fields[2, 12:] = fields[2, 12]
    fields[5] = fields[5, :1] * np.exp(-0.5 * np.arange(20, dtype=np.float32))[:, None, None]
    report = report_on(fields, stride)
    assert np.flatnonzero(report.repeats_from >= 0).tolist() == [2] and report.repeats_from[2] == 12
    assert np.flatnonzero(report.is_at_rest).tolist() == [5] and not report.is_flat.any()


def test_only_some_numbers_of_a_large_group_are_listed() -> None:
    (line,) = report_on(np.concatenate([waves()[0], np.zeros((30, 9, 32))])[..., None]).lines(["u"])
    assert "30 of 42 trajectories: 12, 13, 14" in line and "and 18 more" in line


def test_an_inspection_lists_them_and_derives_no_hint_from_them(tmp_path: Path) -> None:
    # Trajectories that were never written have a constant mean and equal ends.
    values = np.zeros((4, 5, 8))
    values[0] = np.random.default_rng(0).standard_normal((5, 8))
    write_cfd(tmp_path / "flow.hdf5", 1, Vx=values, density=values, pressure=values)
    inspection = inspect(tmp_path / "flow.hdf5")
    assert not inspection.is_usable and not inspection.hints
    assert any(line.startswith("content ") and "3 of 4 trajectories: 1, 2, 3;" in line for line in describe(inspection))
    # A file with nothing but such trajectories.
    write_cfd(tmp_path / "empty.hdf5", 1, **dict.fromkeys(("Vx", "density", "pressure"), np.zeros((4, 5, 8))))
    assert not inspect(tmp_path / "empty.hdf5").hints


def test_an_inspection_names_points_that_are_nan_in_all_frames(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((4, 5, 8))
    values[:, :, 2:4] = np.nan
    write_cfd(tmp_path / "flow.hdf5", 1, Vx=values)
    lines = list(describe(inspect(tmp_path / "flow.hdf5")))
    assert any("same 2 of 8 points in every frame" in line for line in lines)
    # Removing trajectories would leave none.
    assert not any("remove" in line for line in lines)
    values[:3] = 0
    write_cfd(tmp_path / "flow.hdf5", 1, Vx=values)
    assert any("NaN or Inf in 1 of 4 trajectories: 3;" in line for line in describe(inspect(tmp_path / "flow.hdf5")))


def test_opened_data_has_a_note_on_each_kind_and_hints_from_the_others_only(configure: Any) -> None:
    fields, _ = waves()
    fields[4, 5:] = fields[4, 5]
    dataset = from_arrays(configure(periodic=["x"], conserved=["u"]), fields, DT, origin=(-1.0,), spacing=(SPACING,))
    assert any("1 of 12 trajectories: 4 (from frame 5)" in note for note in dataset.notes)
    assert (
        from_arrays(configure(periodic=["x"], conserved=["u"]), waves()[0], DT, None, (-1.0,), (SPACING,)).notes == ()
    )
    # Every field comes to rest: the declarations are checked, but nothing is hinted at.
    resting = waves()[0][:, :1] * np.exp(-1.5 * np.arange(9))[:, None]
    notes = from_arrays(configure(), resting, DT, None, (-1.0,), (SPACING,)).notes
    assert len(notes) == 1 and "comes to rest" in notes[0]
