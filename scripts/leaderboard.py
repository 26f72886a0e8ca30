"""The leaderboard of scripts/run_fast_to_sota.py: list and filter it, compare two runs, see and demote champions."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ups_jax.cli import runner


def main(argv: list[str] | None = None) -> int:
    parser = runner.parser(__doc__)
    parser.add_argument("--leaderboard-csv", type=Path, default=Path("reports/leaderboard.csv"), metavar="F")
    parser.add_argument("--champions", type=Path, default=Path("artifacts/champions"), metavar="DIR")
    parser.add_argument(
        "--filter", action="append", default=[], metavar="COLUMN=VALUE", help="only rows with this value"
    )
    parser.add_argument(
        "--sort", default="nrmse", metavar="METRIC", help="the metric to sort by (default: %(default)s)"
    )
    parser.add_argument(
        "--metrics", default="nrmse,conservation_gap,bc_violation,wall_clock", help="columns, by commas"
    )
    parser.add_argument("--compare", nargs=2, metavar="RUN", help="two runs by their ids")
    parser.add_argument("--html", type=Path, metavar="OUT", help="with --compare: a page with both training curves")
    parser.add_argument("--list-champions", action="store_true", help="every champion with its protocol")
    parser.add_argument(
        "--label", nargs=2, metavar=("RUN", "LABEL"), help="such as baseline, whom candidates have to beat"
    )
    parser.add_argument("--demote", metavar="TASK", help="take the champion of a task down; the one before it follows")
    parser.add_argument("--protocol", help="with --demote: of a task with several champions, which")
    parser.add_argument("--reason", default="", help="with --demote: why, for the record")
    parser.add_argument("--publish", type=Path, metavar="RUN_DIR", help="send a run's decisions to W&B and TensorBoard")
    return runner.run(parser, leaderboard, argv)


def leaderboard(args: argparse.Namespace) -> None:
    from rich.console import Console

    from ups_jax.cli import leaderboard as listing
    from ups_jax.pipeline.champions import Champions
    from ups_jax.pipeline.leaderboard import Leaderboard

    # A table has more columns than the eighty of a file or a pipe.
    console = Console() if Console().is_terminal else Console(width=220)
    board = Leaderboard.at(args.leaderboard_csv)
    champions = Champions(args.champions)
    if args.publish is not None:
        from ups_jax.pipeline.wandb import publish

        publish(args.publish)
    elif args.demote is not None:
        listing.demote(console, board, champions, args.demote, args.protocol, args.reason)
    elif args.label is not None:
        listing.label_run(console, board, *args.label)
    elif args.list_champions:
        listing.list_champions(console, champions)
    elif args.compare is not None:
        listing.compare(console, board, args.compare[0], args.compare[1], args.html)
    else:
        listing.list_rows(console, board, args.filter, args.sort, args.metrics.split(","))


if __name__ == "__main__":
    sys.exit(main())
