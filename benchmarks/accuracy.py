"""Train every model on every task for the same CPU-seconds or steps, and print one table a task; keep finished rows.

A row is one thread of the CPU, on machines with an accelerator as well: process time is the budget.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path

from comparison.models import MODELS
from comparison.tasks import DEFAULT_TASKS, TASKS

from ups_jax.cli import runner
from ups_jax.core.errors import ConfigError

_RESULTS = Path(__file__).resolve().parent / "results"
_FULL = {"budget": 60.0, "tasks": DEFAULT_TASKS, "models": tuple(MODELS), "seeds": 3, "jobs": 1, "fixed_steps": None}
# Measuring how many steps a budget holds compiles a second program, which is most of a short run.
_QUICK = {
    "budget": 3.0,
    "tasks": ("tiny",),
    "models": ("persistence", "ours", "fno_recipe"),
    "seeds": 1,
    "jobs": min(2, os.cpu_count() or 1),
    "fixed_steps": 300,
}


def main(argv: list[str] | None = None) -> int:
    parser = runner.make_parser(__doc__)
    parser.add_argument("--budget", type=seconds, help="CPU-seconds of training a row (default: 60)")
    parser.add_argument(
        "--steps", type=count, dest="fixed_steps", metavar="N", help="train each row for N steps instead of the budget"
    )
    parser.add_argument("--tasks", nargs="+", choices=[*TASKS], metavar="TASK", help=f"of {', '.join(TASKS)}")
    parser.add_argument("--models", nargs="+", choices=[*MODELS], metavar="MODEL", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--seeds", type=count, help="seeds 0, 1, .. of each model (default: 3)")
    parser.add_argument("--jobs", type=count, help="rows side by side, each on a core of its own (default: 1)")
    parser.add_argument(
        "--out",
        type=Path,
        help="JSON of the rows; tables go beside it (default: benchmarks/results/accuracy[_quick][_val].json)",
    )
    parser.add_argument("--data-root", default="data", metavar="DIR", help="built-in data (default: data)")
    parser.add_argument("--split", choices=["test", "val"], default="test", help="whose trajectories are measured")
    parser.add_argument("--table-only", action="store_true", help="train nothing, print what there is")
    parser.add_argument("--quick", action="store_true", help="a minute in all: 300 steps of ours and FNO on tiny data")
    parser.add_argument(
        "--double",
        action="store_true",
        help="measure on twice the points an axis for every task, and run finished rows that lack it again; without "
        "this it is measured where that data exists or is made in under a minute (not burgers1d_fine, ns2d, darcy2d)",
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="key=value", help="overrides, such as optimizer.lr=1e-3; need --out"
    )
    return runner.run_command(parser, compare, argv)


def compare(args: argparse.Namespace) -> int:
    from comparison.jobs import run_rows
    from comparison.report import write_tables
    from comparison.runs import prepare, rows_of
    from comparison.store import Store

    defaults = _QUICK if args.quick else _FULL
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    store = Store(store_path(args))
    rows = rows_of(args)
    failed = []
    if not args.table_only:
        prepare(rows)
        failed = run_rows(rows, store, args.jobs)
    write_tables(rows, store)
    return 1 if failed else 0


def store_path(args: argparse.Namespace) -> Path:
    """A file for each kind of number, so that a trial never replaces the rows of the full comparison."""
    if args.out is not None:
        return args.out
    if args.set:
        raise ConfigError("--set makes rows of other settings: give them a file of their own with --out FILE.json")
    kind = ("_quick" if args.quick else "") + ("_val" if args.split == "val" else "")
    return _RESULTS / f"accuracy{kind}.json"


def count(text: str) -> int:
    """A whole number of a command line, 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def seconds(text: str) -> float:
    """A positive number of a command line."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value


if __name__ == "__main__":
    sys.exit(main())
