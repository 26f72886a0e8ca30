"""The commands print what is right about small files as other people's tools write them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from foreign.case import CASES, Case, row_start, run_cases
from foreign_files import RESULTS


def faults(cases: Iterable[Case]) -> dict[str, object]:
    """Return what differs from the expectation, and the output, for each case with a fault."""
    return {item.case.label: (item.faults, item.output) for item in run_cases(list(cases)) if item.faults}


def test_an_inspection_prints_what_is_expected() -> None:
    inspections = [replace(case, follow=False) for case in CASES if case.command.startswith("inspect")]
    assert len(inspections) > 60 and not faults(inspections)


def test_every_command_that_does_not_train_prints_what_is_expected_and_its_advice_can_be_followed() -> None:
    assert not faults(case for case in CASES if not case.is_slow)


def test_a_command_that_prints_something_else_is_a_fault() -> None:
    case = next(case for case in CASES if case.command.endswith("letters.hdf5"))
    wrong = replace(case, contains=("channel     w",), lacks=("channel     U",), code=1)
    ((problems, _),) = faults([wrong]).values()
    assert len(problems) == 3


def test_the_stored_table_has_a_row_for_every_command() -> None:
    table = RESULTS.read_text(encoding="utf-8")
    assert len({case.label for case in CASES}) == len(CASES)
    assert [case.label for case in CASES if row_start(case) not in table] == []
