"""Whatever files and arguments hold, a script gives a right result or one clear error; inputs that once did not, stay.

The fast part draws some hundred inputs. Thousands: `python tools/reliability/fuzzing.py --count 10000`, or
`FUZZ_COUNT=10000 pytest -n0 -m slow tests/reliability/test_fuzz.py`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fuzz import bases, targets
from fuzz.answer import Answer, fault
from fuzz.case import Case
from fuzzing import check, fuzz, rounds

CORPUS = sorted((Path(bases.__file__).parent / "corpus").glob("*.json"))
# Those that need no model, and no seconds each; the slow part has all.
QUICK = {
    "config": 20,
    "overrides": 15,
    "inspection": 25,
    "opening": 15,
    "described": 30,
    "shards": 20,
    "conversion": 20,
    "points": 15,
}


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_what_once_had_no_clear_answer_has_one(path: Path) -> None:
    case = Case.from_json(path.read_text(encoding="utf-8"))
    wrong, code = check(case)
    assert wrong is None and code in case.codes


@pytest.mark.parametrize("target", QUICK)
def test_some_random_inputs_have_clear_answers(target: str) -> None:
    findings = fuzz(target, QUICK[target], 0)
    assert {kind: case.to_json()[:2000] for kind, case in findings.failed.items()} == {}
    assert findings.inputs >= QUICK[target] // 2


@pytest.mark.slow
@pytest.mark.parametrize("target", targets.SHARES)
def test_many_random_inputs_have_clear_answers(target: str) -> None:
    for name, size, number in rounds(int(os.environ.get("FUZZ_COUNT", "2000")), targets.SHARES):
        if name == target:
            findings = fuzz(target, size, number)
            assert {kind: case.to_json()[:2000] for kind, case in findings.failed.items()} == {}


CASE = Case(target="config", script="validate.py", arguments=())
GOOD = Answer(code=2, out="", err="error: c.yaml: no\n", raised=None, changed=(".lock",))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"code": 0, "err": "warning: w\n"}, None),
        ({"raised": "KeyError at x.py:1 f: 'a'"}, "KeyError"),
        ({"code": 1}, "exit code 1"),
        ({"err": ""}, "without one line"),
        ({"err": "error: a\nmore\n"}, "without one line"),
        ({"err": "error: " + "a" * 3000}, "a line too long"),
        ({"err": "Traceback (most recent call last):\n  File\nerror: a\n"}, "a traceback"),
        ({"changed": ("out.hdf5",)}, "and left"),
        ({"code": 0, "err": "", "changed": ("a.tmp",)}, "left"),
        ({"code": 0}, "ended well"),
    ],
)
def test_the_judge_sees_what_is_wrong(change: dict[str, object], said: str | None) -> None:
    wrong = fault(CASE, Answer(**(GOOD.__dict__ | change)))  # type: ignore[arg-type]
    assert wrong is None if said is None else wrong is not None and said in wrong
