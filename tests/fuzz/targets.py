"""The targets of fuzzing by name, their shares of all inputs, and what a right result is where a script gives one."""

from __future__ import annotations

from pathlib import Path

import configurations
from answer import Answer
from case import Case

TARGETS = {**configurations.TARGETS}
SHARES = {"config": 30, "overrides": 20, "training": 2}


def wrong_result(case: Case, given: Answer, folder: Path) -> str | None:
    """What is wrong with what a script gave, where it ended well."""
    if given.code == 0 and case.script == "validate.py" and not given.out.splitlines()[-1:][0].startswith("sound: "):
        return f"ended well and did not say sound: {given.out[-200:]}"
    return None
