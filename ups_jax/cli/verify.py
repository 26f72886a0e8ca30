"""Check a run directory for damaged files and list what it contains; exit code 4 if something is damaged."""

from __future__ import annotations

import argparse
from pathlib import Path

from ups_jax.cli import runner
from ups_jax.core.errors import CheckpointError


def main(argv: list[str] | None = None) -> int:
    """Run `ups-jax verify` with the given arguments and return its exit code."""
    parser = runner.parser(__doc__, name="verify")
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory; it is not changed")
    return runner.run(parser, verify_run, argv)


def verify_run(args: argparse.Namespace) -> None:
    """Print the state of each part of a run directory. Raise CheckpointError if a part is damaged."""
    from ups_jax.runs.verify import DAMAGED, verify

    findings = verify(args.run)
    width = max(len(finding.part) for finding in findings)
    for finding in findings:
        print(f"{finding.part:<{width}}  {finding.state:<7}  {finding.text}")
    damaged = sum(finding.state == DAMAGED for finding in findings)
    if damaged:
        raise CheckpointError(
            f"{args.run}: {damaged} of {len(findings)} parts are damaged; repeat the training command to "
            "quarantine a damaged checkpoint and resume from the one before it"
        )
