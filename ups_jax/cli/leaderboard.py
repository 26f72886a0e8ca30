"""The leaderboard of the pipeline: list and filter it, compare two runs, see and demote champions."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ups_jax.cli import runner
from ups_jax.core.commands import command
from ups_jax.core.errors import ConfigError
from ups_jax.core.terminal import say

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ups_jax.pipeline.champions import Champions
    from ups_jax.pipeline.leaderboard import Leaderboard, Row

_COLUMNS = ("run_id", "stage", "label", "status", "task", "split", "protocol")


def main(argv: list[str] | None = None) -> int:
    parser = runner.parser(__doc__, name="leaderboard")
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
    return runner.run(parser, print_leaderboard, argv)


def print_leaderboard(args: argparse.Namespace) -> None:
    from rich.console import Console

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
        demote(console, board, champions, args.demote, args.protocol, args.reason)
    elif args.label is not None:
        label_run(console, board, *args.label)
    elif args.list_champions:
        list_champions(console, champions)
    elif args.compare is not None:
        compare(console, board, args.compare[0], args.compare[1], args.html)
    else:
        list_rows(console, board, args.filter, args.sort, args.metrics.split(","))


def list_rows(console: Console, board: Leaderboard, filters: Sequence[str], sort: str, metrics: Sequence[str]) -> None:
    """The rows that all filters let through, by a metric, those without it last. Raises `ConfigError`."""
    from rich.markup import escape

    from ups_jax.config import GatesConfig
    from ups_jax.pipeline.gates import direction
    from ups_jax.pipeline.scores import NAMES

    every = board.read()
    for name in (sort, *metrics):
        if name not in NAMES:
            raise ConfigError(f"{name}: is no metric; there are {', '.join(NAMES)}")
    wanted = [_condition(every, text) for text in filters]
    rows = [row for row in every if all(_cells(row).get(name) == value for name, value in wanted)]
    sign = -1 if direction(sort, GatesConfig()) == "higher" else 1
    rows.sort(key=lambda row: sign * value if (value := row.metrics.get(sort)) is not None else math.inf)
    table = _table(f"{board.jsonl}: {len(rows)} rows by {sort}", _COLUMNS)
    for name in metrics:
        table.add_column(name, overflow="fold", justify="right")
    for row in rows:
        numbers = ["" if row.metrics.get(name) is None else f"{row.metrics[name]:.4g}" for name in metrics]
        table.add_row(*(escape(str(getattr(row, name))) for name in _COLUMNS), *numbers)
    console.print(table)


def list_champions(console: Console, champions: Champions) -> None:
    """Every champion, the latest first."""
    for item in champions.all():
        copy = champions.folder(item["task"], item["protocol"]) / item["copy"]
        say(
            console,
            f"{item['task']}  protocol {item['protocol']}  run {item['run_id']}  promoted {item['promoted_at']}  "
            f"nrmse {item['metrics'].get('nrmse')}  {copy}",
        )


def compare(console: Console, board: Leaderboard, first: str, second: str, page: Path | None) -> None:
    """Two runs: what differs in their configurations, their numbers with intervals, and a page of it. Raises
    `ConfigError`, `StorageError`."""
    from rich.markup import escape

    from ups_jax.pipeline.run_comparison import config_difference, metric_table, sides_of, write_comparison

    rows = board.read()
    one, other = sides_of(rows, first, second)
    table = _table("configuration", ("key", first, second))
    for key, *values in config_difference(one.config, other.config):
        table.add_row(key, *(escape(str(value)) for value in values))
    console.print(table if table.row_count else "configuration: the same")
    numbers = _table("metrics, 95 % interval over the trajectories", ("metric", first, second, "change"))
    for cells in metric_table(one, other):
        numbers.add_row(*cells)
    console.print(numbers)
    if page is not None:
        write_comparison(page, one, other)
        say(console, f"page        {page}")


def label_run(console: Console, board: Leaderboard, run_id: str, label: str) -> None:
    """Give all rows of a run a label; `champion` is given by a promotion only. Raises `ConfigError`."""
    rows = [row for row in board.read() if row.run_id == run_id]
    if not rows or label == "champion":
        said = "is not on the leaderboard" if not rows else f"only `{command('pipeline')}` makes a run champion"
        raise ConfigError(f"run {run_id}: {said}; list what there is with `{command('leaderboard')}`")
    board.add([replace(row, label=label) for row in rows])
    say(console, f"labelled    {run_id}: {label} ({len(rows)} rows)")


def demote(
    console: Console, board: Leaderboard, champions: Champions, task: str, protocol: str | None, reason: str
) -> None:
    """Take a champion down, and say so on the leaderboard. Raises `ConfigError`."""
    with champions.locked():
        # A leaderboard that cannot be read is told before anything is changed.
        rows = [row for row in board.read() if row.task == task]
        former, successor = champions.demote(task, protocol, reason)
        changed = [replace(row, label="demoted") for row in rows if row.run_id == former["run_id"]]
        if successor is not None:
            label = successor["label"]
            changed += [replace(row, label=label) for row in rows if row.run_id == successor["run_id"]]
        board.add(changed)
    now = "none" if successor is None else f"run {successor['run_id']}"
    say(console, f"demoted     {task}: run {former['run_id']}; champion is now {now}")


def _table(title: str, columns: Sequence[str]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", show_edge=False)
    for name in columns:
        table.add_column(escape(name), overflow="fold")
    return table


def _condition(rows: Sequence[Row], text: str) -> tuple[str, str]:
    """Column and value of a filter. Raises `ConfigError` for a column that no row has."""
    name, separator, value = text.partition("=")
    from ups_jax.pipeline.leaderboard import Row

    known = list(dict.fromkeys(column for row in rows for column in _cells(row))) or [item.name for item in fields(Row)]
    if not separator or name not in known:
        names = ", ".join(known)
        raise ConfigError(f"--filter {text}: give COLUMN=VALUE, such as task=burgers1d; columns are {names}")
    return name, value


def _cells(row: Row) -> dict[str, str]:
    """A row's columns; a tag is `tag:NAME`, and NAME where no column is called so."""
    columns = {item.name: str(getattr(row, item.name)) for item in fields(row)}
    return columns | {f"tag:{name}": value for name, value in row.tags.items()} | dict(row.tags) | columns
