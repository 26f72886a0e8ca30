"""The commands print what is right about small files as other people's tools write them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from foreign.case import CASES, Result, row_start, run_cases
from foreign_files import RESULTS


@pytest.fixture(scope="module")
def results() -> list[Result]:
    """Results of all commands that do not train."""
    return list(run_cases([case for case in CASES if not case.is_slow]))


def test_every_command_prints_what_is_expected(results: list[Result]) -> None:
    faults = {result.case.label: (result.faults, result.output) for result in results if result.faults}
    assert len(results) > 80 and not faults


def test_a_command_that_prints_something_else_is_a_fault() -> None:
    case = next(case for case in CASES if case.command.endswith("letters.hdf5"))
    wrong = replace(case, contains=("channel     w",), lacks=("channel     U",), code=1)
    (result,) = run_cases([wrong])
    assert len(result.faults) == 3


def test_the_stored_table_has_a_row_for_every_command() -> None:
    table = RESULTS.read_text(encoding="utf-8")
    assert [case.label for case in CASES if row_start(case) not in table] == []
