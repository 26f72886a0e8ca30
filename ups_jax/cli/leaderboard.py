"""List, filter and sort the leaderboard of the pipeline, compare two runs, label runs, and list or demote champions."""

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
from ups_jax.core.terminal import print_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ups_jax.pipeline.champions import Champions
    from ups_jax.pipeline.leaderboard import Leaderboard, Row

_COLUMNS = ("run_id", "stage", "label", "status", "task", "split", "protocol")


def main(argv: list[str] | None = None) -> int:
    """Run `ups-jax leaderboard` with the given arguments and return its exit code."""
    parser = runner.make_parser(__doc__, name="leaderboard")
    parser.add_argument(
        "--leaderboard-csv",
        type=Path,
        default=Path("reports/leaderboard.csv"),
        metavar="F",
        help="leaderboard file (default: %(default)s)",
    )
    parser.add_argument(
        "--champions",
        type=Path,
        default=Path("artifacts/champions"),
        metavar="DIR",
        help="folder of the champions (default: %(default)s)",
    )
    parser.add_argument(
        "--filter",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="list only the rows with this value in this column; may be repeated",
    )
    parser.add_argument("--sort", default="nrmse", metavar="METRIC", help="metric to sort by (default: %(default)s)")
    parser.add_argument(
        "--metrics",
        default="nrmse,conservation_gap,bc_violation,wall_clock",
        help="metrics to show as columns, separated by commas (default: %(default)s)",
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar="RUN",
        help="compare the configurations and metrics of two runs, named by their ids",
    )
    parser.add_argument(
        "--html", type=Path, metavar="OUT", help="with --compare: also write an HTML page with both training curves"
    )
    parser.add_argument(
        "--list-champions", action="store_true", help="list all champions with their evaluation protocols"
    )
    parser.add_argument(
        "--label",
        nargs=2,
        metavar=("RUN", "LABEL"),
        help="set the label of a run; without a champion, new runs have to beat the run labelled baseline",
    )
    parser.add_argument(
        "--demote", metavar="TASK", help="demote the champion of a task; the previous champion replaces it"
    )
    parser.add_argument(
        "--protocol",
        help="with --demote: evaluation protocol (see --list-champions), if the task has several champions",
    )
    parser.add_argument("--reason", default="", help="with --demote: reason, recorded with the demotion")
    parser.add_argument(
        "--publish", type=Path, metavar="RUN_DIR", help="log the gate results of this run to W&B and TensorBoard"
    )
    return runner.run_command(parser, run_leaderboard_action, argv)


def run_leaderboard_action(args: argparse.Namespace) -> None:
    """Perform the action that the options select, such as --demote; without one, print the rows of the leaderboard."""
    from rich.console import Console

    from ups_jax.pipeline.champions import Champions
    from ups_jax.pipeline.leaderboard import Leaderboard

    # In a file or pipe, rich would wrap the table at 80 columns.
    console = Console() if Console().is_terminal else Console(width=220)
    board = Leaderboard.from_csv_path(args.leaderboard_csv)
    champions = Champions(args.champions)
    if args.publish is not None:
        from ups_jax.pipeline.wandb import publish_run

        publish_run(args.publish)
    elif args.demote is not None:
        demote_champion(console, board, champions, args.demote, args.protocol, args.reason)
    elif args.label is not None:
        label_run(console, board, *args.label)
    elif args.list_champions:
        print_champions(console, champions)
    elif args.compare is not None:
        print_comparison(console, board, args.compare[0], args.compare[1], args.html)
    else:
        print_rows(console, board, args.filter, args.sort, args.metrics.split(","))


def print_rows(
    console: Console, board: Leaderboard, filters: Sequence[str], sort_metric: str, metrics: Sequence[str]
) -> None:
    """Print the rows that pass all filters, sorted by a metric; rows without that metric come last.

    Args:
        filters: Conditions of the form `COLUMN=VALUE`.
        sort_metric: Metric to sort by, best value first.
        metrics: Metrics to show as columns.

    Raises:
        ConfigError: A metric or a column does not exist.
    """
    from rich.markup import escape

    from ups_jax.config import GatesConfig
    from ups_jax.pipeline.gates import metric_direction
    from ups_jax.pipeline.scores import METRIC_NAMES

    all_rows = board.read()
    for name in (sort_metric, *metrics):
        if name not in METRIC_NAMES:
            raise ConfigError(f"unknown metric {name}; available are {', '.join(METRIC_NAMES)}")
    conditions = [_parse_filter(all_rows, text) for text in filters]
    rows = [row for row in all_rows if all(_values_by_column(row).get(name) == value for name, value in conditions)]
    sign = -1 if metric_direction(sort_metric, GatesConfig()) == "higher" else 1
    rows.sort(key=lambda row: sign * value if (value := row.metrics.get(sort_metric)) is not None else math.inf)
    table = _empty_table(f"{board.jsonl}: {len(rows)} rows, sorted by {sort_metric}", _COLUMNS)
    for name in metrics:
        table.add_column(name, overflow="fold", justify="right")
    for row in rows:
        numbers = ["" if row.metrics.get(name) is None else f"{row.metrics[name]:.4g}" for name in metrics]
        table.add_row(*(escape(str(getattr(row, name))) for name in _COLUMNS), *numbers)
    console.print(table)


def print_champions(console: Console, champions: Champions) -> None:
    """Print the champions of all tasks, the latest promotion first."""
    for item in champions.read_all():
        copy = champions.folder(item["task"], item["protocol"]) / item["copy"]
        print_line(
            console,
            f"{item['task']}  protocol {item['protocol']}  run {item['run_id']}  promoted {item['promoted_at']}  "
            f"nrmse {item['metrics'].get('nrmse')}  {copy}",
        )


def print_comparison(console: Console, board: Leaderboard, first: str, second: str, html_path: Path | None) -> None:
    """Print the differences between the configurations of two runs, and their metrics with confidence intervals.

    Args:
        first: Id of a run.
        second: Id of the other run.
        html_path: HTML page to write, which also has both training curves, or None.

    Raises:
        ConfigError: A run is not on the leaderboard.
        StorageError: The HTML page cannot be written.
    """
    from rich.markup import escape

    from ups_jax.pipeline.run_comparison import config_difference, load_compared_runs, metric_table, write_comparison

    rows = board.read()
    first_side, second_side = load_compared_runs(rows, first, second)
    table = _empty_table("configuration", ("key", first, second))
    for key, *values in config_difference(first_side.config, second_side.config):
        table.add_row(key, *(escape(str(value)) for value in values))
    console.print(table if table.row_count else "the configurations are equal")
    numbers = _empty_table(
        "metrics with 95 % confidence intervals over the trajectories", ("metric", first, second, "change")
    )
    for cells in metric_table(first_side, second_side):
        numbers.add_row(*cells)
    console.print(numbers)
    if html_path is not None:
        write_comparison(html_path, first_side, second_side)
        print_line(console, f"page        {html_path}")


def label_run(console: Console, board: Leaderboard, run_id: str, label: str) -> None:
    """Set the label of a run in all its rows of the leaderboard.

    Raises:
        ConfigError: The run is not on the leaderboard, or the label is `champion`, which only a promotion sets.
    """
    rows = [row for row in board.read() if row.run_id == run_id]
    if not rows or label == "champion":
        reason = "is not on the leaderboard" if not rows else f"only `{command('pipeline')}` makes a run champion"
        raise ConfigError(f"run {run_id}: {reason}; list the runs with `{command('leaderboard')}`")
    board.add([replace(row, label=label) for row in rows])
    print_line(console, f"labelled    {run_id}: {label} ({len(rows)} rows)")


def demote_champion(
    console: Console, board: Leaderboard, champions: Champions, task: str, protocol: str | None, reason: str
) -> None:
    """Demote the champion of a task, restore the previous champion, and update the labels of both on the leaderboard.

    Args:
        protocol: Evaluation protocol of the champion; may be None if the task has only one champion.
        reason: Reason, recorded with the demotion.

    Raises:
        ConfigError: The task has no champion, or it has several and `protocol` is None.
    """
    with champions.lock():
        # Read first: an unreadable leaderboard must raise before the champion is demoted.
        rows = [row for row in board.read() if row.task == task]
        demoted, successor = champions.demote(task, protocol, reason)
        changed = [replace(row, label="demoted") for row in rows if row.run_id == demoted["run_id"]]
        if successor is not None:
            label = successor["label"]
            changed += [replace(row, label=label) for row in rows if row.run_id == successor["run_id"]]
        board.add(changed)
    champion = "none" if successor is None else f"run {successor['run_id']}"
    print_line(console, f"demoted     {task}: run {demoted['run_id']}; champion is now {champion}")


def _empty_table(title: str, columns: Sequence[str]) -> Table:
    """Return a table with a title and the headers `columns`, to which rows can be added."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", show_edge=False)
    for name in columns:
        table.add_column(escape(name), overflow="fold")
    return table


def _parse_filter(rows: Sequence[Row], text: str) -> tuple[str, str]:
    """Return the column and the value of a filter `COLUMN=VALUE`; raise ConfigError if no row has the column."""
    name, separator, value = text.partition("=")
    from ups_jax.pipeline.leaderboard import Row

    in_rows = list(dict.fromkeys(column for row in rows for column in _values_by_column(row)))
    columns = in_rows or [item.name for item in fields(Row)]
    if not separator or name not in columns:
        raise ConfigError(
            f"--filter {text}: give COLUMN=VALUE, such as task=burgers1d; columns are {', '.join(columns)}"
        )
    return name, value


def _values_by_column(row: Row) -> dict[str, str]:
    """Return a row's values by column; a tag is in the column `tag:NAME`, and in `NAME` if no field has this name."""
    columns = {item.name: str(getattr(row, item.name)) for item in fields(row)}
    return columns | {f"tag:{name}": value for name, value in row.tags.items()} | dict(row.tags) | columns
