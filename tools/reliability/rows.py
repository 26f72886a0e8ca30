"""The table of faults and answers: tests note its rows, `report.py` prints them."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import asdict, dataclass
from pathlib import Path

# Names a file that rows are added to, a JSON object a line.
VARIABLE = "FAULTS_ROWS"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table: `again` are steps done again, None where the question does not arise."""

    fault: str
    answer: str
    code: int
    again: int | None = None


def note(row: Row, folder: Path) -> None:
    """Keep a row where a table is being made; paths below `folder` are shortened."""
    if VARIABLE not in os.environ:
        return
    answer = re.sub(rf"{re.escape(str(folder))}(?=/)", "...", row.answer)
    with Path(os.environ[VARIABLE]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(row) | {"answer": answer}) + "\n")


def table(path: Path) -> str:
    """The rows of a file as markdown."""
    lines = ["| fault | answer seen | exit code | steps done again |", "|---|---|---|---|"]
    for text in path.read_text(encoding="utf-8").splitlines():
        row = Row(**json.loads(text))
        code = signal.Signals(-row.code).name if row.code < 0 else str(row.code)
        again = "" if row.again is None else str(row.again)
        lines.append(f"| {row.fault} | {row.answer.replace('|', '/')} | {code} | {again} |")
    return "\n".join(lines)
