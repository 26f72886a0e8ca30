"""Faults that come from outside of a run, one scene each.

The slow ones: `pytest -n0 -m slow tests/reliability/test_scenarios.py`, six minutes.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import runs
from rows import note
from scenarios import FAST, SHORT, SLOW, Place

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def whole(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("scenes") / "whole"
    result = runs.run(runs.training("operator", run, data_root, *SHORT))
    assert result.code == 0, result.err
    return run


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_fault_from_outside_has_its_answer(name: str, data_root: Path, whole: Path, tmp_path: Path) -> None:
    row = (FAST | SLOW)[name](Place(folder=tmp_path, data_root=data_root, whole=whole))
    assert row.answer
    note(row, tmp_path)
