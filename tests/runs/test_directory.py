"""The contents of a run directory's records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ups_jax.core.errors import CheckpointError
from ups_jax.runs.directory import FORMAT, RunDirectory, newest_step


def test_the_newest_step_is_that_of_the_checkpoints_folder(tmp_path: Path) -> None:
    assert newest_step(tmp_path / "none") == 0
    for name in ("9", "10", "damaged-11", "12.orbax-checkpoint-tmp"):
        (tmp_path / name).mkdir()
    assert newest_step(tmp_path) == 10


def test_a_record_of_a_later_format_is_refused_and_one_without_a_format_is_read(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write_record({"config": {}, "digests": {}, "stages": {}})
    assert run.read_record()["format"] == FORMAT
    run.record_path.write_text(json.dumps({"config": {}, "digests": {}, "stages": {}}))
    assert "format" not in run.read_record()
    for later in (FORMAT + 1, "2"):
        run.record_path.write_text(json.dumps({"format": later, "config": {}, "digests": {}, "stages": {}}))
        with pytest.raises(CheckpointError):
            run.read_record()
