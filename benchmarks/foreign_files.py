"""Run the commands on small files as other people's tools write them, and compare what they print with what is right.

The Markdown tables have a row for each command: the files, the lines that matter, and the exit code. The exit code of
this script is 1 if a command prints something else.

    python benchmarks/foreign_files.py
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from foreign import axes, content, formats, grids, layouts, units  # noqa: F401
from foreign.case import CASES, SECTIONS, markdown, run_cases

from ups_jax.cli import runner

RESULTS = Path(__file__).resolve().parent / "results" / "foreign_files.md"


def main(argv: list[str] | None = None) -> int:
    parser = runner.make_parser(__doc__)
    parser.add_argument("--fast", action="store_true", help="leave out the commands that train, and write no table")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="Markdown (default: benchmarks/results/foreign_files.md)"
    )
    return runner.run_command(parser, run, argv)


def run(args: argparse.Namespace) -> int:
    from ups_jax.core.files import write_atomically

    # Most of the time is compilation. Jax reads this when it is imported first, by a command.
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

    cases = sorted(CASES, key=lambda item: SECTIONS.index(item.section))
    results = []
    for result in run_cases([item for item in cases if not (args.fast and item.is_slow)]):
        results.append(result)
        print(f"{'FAULT' if result.faults else 'ok':<6}{result.case.label}", flush=True)
        for line in (*result.faults, *(result.output.splitlines() if result.faults else ())):
            print(f"      {line}")
    faults = sum(bool(result.faults) for result in results)
    print(f"{len(results)} commands, {faults} with faults")
    if not args.fast:
        write_atomically(args.out, markdown(results) + "\n")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
