"""Validate, train, evaluate small and in full, ask the gates, and promote the run where it is better than the champion.

Started again with the same arguments it goes on where it stopped; what was computed before is not computed again.
Exit code 6: the run is not promoted.
"""

from __future__ import annotations

import argparse

from ups_jax.cli import runner
from ups_jax.cli.pipeline_args import pipeline_parser, request_of


def main(argv: list[str] | None = None) -> int:
    return runner.run(pipeline_parser(str(__doc__)), pipeline, argv)


def pipeline(args: argparse.Namespace) -> None:
    from rich.console import Console

    from ups_jax.cli.pipeline_args import plan_pipeline
    from ups_jax.pipeline.run import run_pipeline

    request = request_of(args)
    (plan_pipeline if args.dry_run else run_pipeline)(request, Console())
