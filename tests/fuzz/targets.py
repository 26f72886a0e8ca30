"""The targets of fuzzing by name, their shares of all inputs, and what a right result is where a script gives one."""

from __future__ import annotations

from pathlib import Path

import configurations
import data_files
import run_folders
from answer import Answer
from case import Case

TARGETS = {**configurations.TARGETS, **data_files.TARGETS, **run_folders.TARGETS}
# Those that are cheap have more: thousands of them take minutes.
SHARES = {
    "config": 12,
    "overrides": 12,
    "inspection": 14,
    "opening": 10,
    "described": 12,
    "shards": 8,
    "conversion": 8,
    "verification": 10,
    "board": 10,
    "training": 2,
    "resuming": 1,
    "evaluation": 1,
    "rollout": 2,
    "generation": 2,
}


def wrong_result(case: Case, given: Answer, folder: Path) -> str | None:
    """What is wrong with what a script gave, where it ended well."""
    if given.code == 0 and case.script == "validate.py" and not given.out.splitlines()[-1:][0].startswith("sound: "):
        return f"ended well and did not say sound: {given.out[-200:]}"
    return None
