"""Train operator, corrector, distilled corrector and the plain regression corrector, and print one table of all.

Each stage is trained for the same seconds on one thread of the CPU. Finished rows are kept, and so are the runs: an
interrupted stage goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from accuracy import count, seconds
from comparison.stage_row import WAYS, StageRow
from comparison.tasks import TASKS

from ups_jax.cli import runner
from ups_jax.core.errors import ConfigError

_RESULTS = Path(__file__).resolve().parent / "results"
_TASKS = tuple(name for name, task in TASKS.items() if task.kind == "transient")
_FULL = {"budget": 300.0, "tasks": ("ks1d", "ns2d"), "seeds": 3, "fixed_steps": None}
# A measured budget compiles a second program for each stage, which is most of a short run.
_QUICK = {"budget": 3.0, "tasks": ("tiny",), "seeds": 1, "fixed_steps": 100}


def main(argv: list[str] | None = None) -> int:
    parser = runner.make_parser(__doc__)
    parser.add_argument("--budget", type=seconds, help="seconds of training a stage (default: 300)")
    parser.add_argument("--tasks", nargs="+", choices=_TASKS, metavar="TASK", help=f"of {', '.join(_TASKS)}")
    parser.add_argument("--ways", nargs="+", choices=[*WAYS], default=[*WAYS], help=f"of {', '.join(WAYS)}")
    parser.add_argument("--seeds", type=count, help="seeds 0, 1, .. (default: 3)")
    parser.add_argument(
        "--out", type=Path, help="JSON of the rows (default: benchmarks/results/stages[_quick][_val].json)"
    )
    parser.add_argument("--runs", default="runs/stages", metavar="DIR", help="where runs are kept")
    parser.add_argument("--data-root", default="data", metavar="DIR", help="built-in data (default: data)")
    parser.add_argument("--split", choices=["test", "val"], default="test", help="whose trajectories are measured")
    parser.add_argument("--table-only", action="store_true", help="train nothing, print what there is")
    parser.add_argument("--quick", action="store_true", help="a minute in all: 100 steps a stage on tiny data")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="key=value",
        help="overrides, such as diffusion.model_rollout_steps=0; need --out",
    )
    parser.set_defaults(fixed_steps=None)
    return runner.run_command(parser, compare, argv)


def compare(args: argparse.Namespace) -> int:
    from comparison import stage_table
    from comparison.jobs import run_rows
    from comparison.store import Store
    from comparison.table import markdown, show
    from rich.console import Console

    from ups_jax import simulate
    from ups_jax.core.files import write_atomically

    for name, value in (_QUICK if args.quick else _FULL).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.set and args.out is None:
        raise ConfigError("--set makes rows of other settings: give them a file of their own with --out FILE.json")
    kind = ("_quick" if args.quick else "") + ("_val" if args.split == "val" else "")
    store = Store(args.out or _RESULTS / f"stages{kind}.json")
    rows = rows_of(args)
    failed = []
    if not args.table_only:
        for row in {row.task: row for row in rows}.values():
            for config in filter(None, [row.config(), row.long_config() if args.split == "test" else None]):
                for file in simulate.generate_missing(config):
                    print(f"generated   {file}", flush=True)
        failed = run_rows(rows, store, jobs=1)
    groups = stage_table.groups_of(rows, store)
    headings, body = stage_table.tabulate(groups)
    title = f"stages, {rows[0].length} each, {args.split} split, {args.seeds} seeds (mean ± standard deviation)"
    console = Console(width=None if Console().is_terminal else 320)
    show(console, title if body else f"{title}: no finished row", headings, body)
    remarks = stage_table.notes(rows, groups, store)
    for line in remarks:
        console.print(f"note        {line}", highlight=False, markup=False)
    document = markdown(title, headings, body) + "".join(f"\nNote: {line}.\n" for line in remarks)
    write_atomically(store.path.with_suffix(".md"), document)
    return 1 if failed else 0


def rows_of(args: argparse.Namespace) -> list[StageRow]:
    """Task by task and seed by seed, so that an interrupted comparison has whole groups first."""
    shared = {
        "budget": args.budget,
        "fixed_steps": args.fixed_steps,
        "split": args.split,
        "data_root": args.data_root,
        "runs": args.runs,
        "overrides": tuple(args.set),
    }
    return [
        StageRow(task=task, way=way, seed=seed, **shared)
        for task in args.tasks
        for seed in range(args.seeds)
        for way in args.ways
    ]


if __name__ == "__main__":
    sys.exit(main())
