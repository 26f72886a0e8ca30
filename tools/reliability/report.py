"""Run all faults, the slow ones too, and print the table of their answers in markdown.

    python tools/reliability/report.py > faults.md

Ten minutes on two cores. Tests that fail are told on stderr and have no row.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rows import VARIABLE, table

_FOLDER = Path(__file__).resolve().parents[2] / "tests" / "reliability"
TESTS = [str(_FOLDER / f"test_{name}.py") for name in ("crash_sequences", "scenarios", "every_stage", "secrets")]


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        rows.touch()
        tests = [sys.executable, "-m", "pytest", "-n0", "-q", "-m", "", *TESTS]
        result = subprocess.run(tests, env=os.environ | {VARIABLE: str(rows)}, stdout=sys.stderr)
        print(table(rows))
        return result.returncode


if __name__ == "__main__":
    sys.exit(main())
