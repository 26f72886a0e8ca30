"""Say what a run directory holds, and whether all of it is what was written there; exit code 4 where it is not."""

from __future__ import annotations

import argparse
from pathlib import Path

from ups_jax.cli import runner
from ups_jax.core.errors import CheckpointError


def main(argv: list[str] | None = None) -> int:
    parser = runner.parser(__doc__, name="verify")
    parser.add_argument("run", type=Path, metavar="RUN", help="the run directory; nothing in it is changed")
    return runner.run(parser, verify_run, argv)


def verify_run(args: argparse.Namespace) -> None:
    from ups_jax.runs.verify import DAMAGED, verify

    findings = verify(args.run)
    width = max(len(finding.part) for finding in findings)
    for finding in findings:
        print(f"{finding.part:<{width}}  {finding.state:<7}  {finding.text}")
    damaged = sum(finding.state == DAMAGED for finding in findings)
    if damaged:
        raise CheckpointError(
            f"{args.run}: {damaged} of {len(findings)} parts are damaged; the same training command sets a damaged "
            "checkpoint aside and goes on from the one before"
        )
