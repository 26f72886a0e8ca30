"""The table of faults and answers, from real runs: markdown on stdout, for BUILD_NOTES.

    python tests/faults/report.py > faults.md

Takes as long as `pytest tests/faults`, the slow scenes included: ten minutes on two cores.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
from pathlib import Path

import lives
import runs
from answers import LIVES
from scenes import FAST, SHORT, SLOW, Place, Row


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "programs"))
        print("| fault | answer seen | exit code | steps done again |\n|---|---|---|---|", flush=True)
        for life, faults in LIVES.items():
            for seen in lives.live(folder / life, folder / "data", faults):
                show(Row(fault=seen.fault.name, answer=_answer(seen), code=seen.code, again=seen.again), folder)
        whole = folder / "whole"
        assert runs.run(runs.training("operator", whole, folder / "data", *SHORT)).code == 0
        for scene, play in (FAST | SLOW).items():
            own = folder / "scenes" / scene
            own.mkdir(parents=True)
            show(play(Place(folder=own, data_root=folder / "data", whole=whole)), folder)


def show(row: Row, folder: Path) -> None:
    answer = re.sub(rf"{re.escape(str(folder))}\S*/(run|{'|'.join(LIVES)})\b", "RUN", row.answer)
    code = signal.Signals(-row.code).name if row.code < 0 else str(row.code)
    again = "" if row.again is None else str(row.again)
    print(f"| {row.fault} | {answer.replace('|', '/')} | {code} | {again} |", flush=True)


def _answer(seen: lives.Seen) -> str:
    """Of a killed start what the pattern of its answer matched, or that the next one went on; else its last line."""
    if seen.code >= 0:
        return seen.said.strip().splitlines()[0]
    found = re.search(seen.fault.says, seen.said) if seen.fault.says else None
    return found[0] if found else "the next start goes on from the last save"


if __name__ == "__main__":
    sys.exit(main())
