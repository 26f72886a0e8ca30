"""Run all faults, the slow ones too, and print the table of their answers in markdown, for BUILD_NOTES.

    python tests/faults/report.py > faults.md

Ten minutes on two cores. Tests that fail are told on stderr and have no row.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rows import VARIABLE, table


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        rows.touch()
        tests = [sys.executable, "-m", "pytest", "-n0", "-q", "-m", "", str(Path(__file__).parent)]
        result = subprocess.run(tests, env=os.environ | {VARIABLE: str(rows)}, stdout=sys.stderr)
        print(table(rows))
        return result.returncode


if __name__ == "__main__":
    sys.exit(main())
