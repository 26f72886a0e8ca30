"""Whatever a run meets has its defined answer, and in the end the run has the bits of one that met nothing.

The slow ones: `pytest -n0 -m slow tests/reliability/test_crash_sequences.py`, four minutes; the last one needs a user
who may mount.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import crash_sequences
import pytest
from end_state import differences, end_state
from faults import FULL, LIVES
from rows import note

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def expected(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    run = tmp_path_factory.mktemp("lives") / "whole"
    crash_sequences.whole(run, data_root)
    return end_state(run)


@pytest.mark.parametrize(
    "life", ["kills", *(pytest.param(name, marks=pytest.mark.slow) for name in ("stops", "files", "storage"))]
)
def test_every_fault_of_a_life_has_its_answer_and_costs_no_bit(
    data_root: Path, tmp_path: Path, expected: dict[str, Any], life: str
) -> None:
    seen = crash_sequences.live(tmp_path / "run", data_root, LIVES[life])
    for item in seen:
        note(item.row, tmp_path)
    assert [line for item in seen for line in item.not_as_defined] == []
    assert list(differences(expected, end_state(tmp_path / "run"))) == []
    assert [path.name for path in (tmp_path / "run").glob(".*") if path.name != ".lock"] == []


@pytest.mark.slow
def test_a_file_system_that_is_full_has_its_answer_and_costs_no_bit(
    data_root: Path, tmp_path: Path, expected: dict[str, Any]
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted: {mounted.stderr.decode().strip()}")
    try:
        seen = crash_sequences.live(small / "run", data_root, FULL)
        for item in seen:
            note(item.row, small)
        assert [line for item in seen for line in item.not_as_defined] == []
        assert list(differences(expected, end_state(small / "run"))) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)
