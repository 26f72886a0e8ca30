"""List the parts of a run directory and check each for damage; the exit code is 4 if a part is damaged."""

from __future__ import annotations

import argparse
from pathlib import Path

from ups_jax.cli import runner
from ups_jax.core.errors import CheckpointError


def main(argv: list[str] | None = None) -> int:
    """Run `ups-jax verify` with the given arguments and return its exit code."""
    parser = runner.make_parser(__doc__, name="verify")
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory, which is not changed")
    return runner.run_command(parser, verify_run, argv)


def verify_run(args: argparse.Namespace) -> None:
    """Print whether each part of a run directory is intact. Raise CheckpointError if a part is damaged."""
    from ups_jax.runs.verify import DAMAGED, verify

    findings = verify(args.run)
    width = max(len(finding.part) for finding in findings)
    for finding in findings:
        print(f"{finding.part:<{width}}  {finding.state:<7}  {finding.text}")
    damaged = sum(finding.state == DAMAGED for finding in findings)
    if damaged:
        raise CheckpointError(
            f"{args.run}: {damaged} of {len(findings)} parts are damaged; repeat the training command to "
            "quarantine damaged checkpoints and resume from the latest intact one"
        )
