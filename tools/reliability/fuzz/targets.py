"""The targets of fuzzing by name, their shares of all inputs, and what a right result is where a script gives one."""

from __future__ import annotations

from pathlib import Path

from fuzz import configurations, data_files, run_folders
from fuzz.answer import Answer
from fuzz.bases import shared
from fuzz.case import Case

TARGETS = {**configurations.TARGETS, **data_files.TARGETS, **run_folders.TARGETS}
# What their inputs start from.
BASES = {
    "shards": "shards",
    "verification": "run",
    "resuming": "run",
    "evaluation": "run",
    "rollout": "run",
    "generation": "run",
    "training": "run",
    "board": "board",
}
# Those that are cheap have more: thousands of them take minutes.
SHARES = {
    "config": 14,
    "overrides": 12,
    "inspection": 18,
    "opening": 14,
    "described": 16,
    "shards": 12,
    "conversion": 12,
    "points": 16,
    "verification": 5,
    "board": 6,
    "training": 2,
    "resuming": 1,
    "evaluation": 1,
    "rollout": 2,
    "generation": 3,
}


def prepare(target: str) -> None:
    """Make what inputs are drawn from, which is not to be made while one is drawn."""
    configurations.keys()
    if target in BASES:
        shared()[BASES[target]]


def wrong_result(case: Case, result: Answer, folder: Path) -> str | None:
    """Return the fault in the output of a script that exited with code 0, or None."""
    if result.code == 0 and case.script == "validate.py" and not result.out.splitlines()[-1:][0].startswith("valid: "):
        return f"ended well and did not print `valid:`: {result.out[-200:]}"
    return None
