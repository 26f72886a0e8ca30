"""What scripts/leaderboard.py prints: rows, champions, two runs side by side, and a champion that is taken down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ups_jax.errors import ConfigError
from ups_jax.pipeline.champion import Champions
from ups_jax.pipeline.comparison import config_difference, metric_table, side_of, write_comparison
from ups_jax.pipeline.leaderboard import Leaderboard, Row

_COLUMNS = ("run_id", "stage", "label", "status", "task", "split", "protocol")


def list_rows(console: Console, board: Leaderboard, filters: Sequence[str], sort: str, metrics: Sequence[str]) -> None:
    """The rows that all filters let through, by a metric, those without it last. Raises `ConfigError`."""
    rows = [row for row in board.read() if all(_matches(row, text) for text in filters)]
    rows.sort(key=lambda row: value if (value := row.metrics.get(sort)) is not None else math.inf)
    table = Table(title=f"{board.jsonl}: {len(rows)} rows by {sort}", title_justify="left", show_edge=False)
    for name in (*_COLUMNS, *metrics):
        table.add_column(name, overflow="fold", justify="right" if name in metrics else "left")
    for row in rows:
        numbers = ["" if row.metrics.get(name) is None else f"{row.metrics[name]:.4g}" for name in metrics]
        table.add_row(*(str(getattr(row, name)) for name in _COLUMNS), *numbers)
    console.print(table)


def list_champions(console: Console, champions: Champions) -> None:
    """Every champion, the latest first."""
    for item in champions.all():
        console.print(
            f"{item['task']}  protocol {item['protocol']}  run {item['run_id']}  promoted {item['promoted_at']}  "
            f"nrmse {item['metrics'].get('nrmse')}  {champions.folder(item['task'], item['protocol']) / item['copy']}",
            highlight=False,
            soft_wrap=True,
        )


def compare(console: Console, board: Leaderboard, first: str, second: str, page: Path | None) -> None:
    """Two runs: what differs in their configurations, their numbers with intervals, and a page of it. Raises
    `ConfigError`, `StorageError`."""
    rows = board.read()
    one, other = side_of(rows, first), side_of(rows, second)
    table = Table(title="configuration", title_justify="left", show_edge=False)
    for name in ("key", first, second):
        table.add_column(name, overflow="fold")
    for key, *values in config_difference(one.config, other.config):
        table.add_row(key, *map(str, values))
    console.print(table if table.row_count else "configuration: the same")
    numbers = Table(title="metrics, 95 % interval over the trajectories", title_justify="left", show_edge=False)
    for name in ("metric", first, second, "change"):
        numbers.add_column(name, overflow="fold")
    for cells in metric_table(one, other):
        numbers.add_row(*cells)
    console.print(numbers)
    if page is not None:
        write_comparison(page, one, other)
        console.print(f"page        {page}", highlight=False, soft_wrap=True)


def label_run(console: Console, board: Leaderboard, run_id: str, label: str) -> None:
    """Give all rows of a run a label; `champion` is given by a promotion only. Raises `ConfigError`."""
    rows = [row for row in board.read() if row.run_id == run_id]
    if not rows or label == "champion":
        said = "is not on the leaderboard" if not rows else "becomes champion by scripts/run_fast_to_sota.py only"
        raise ConfigError(f"run {run_id}: {said}; list what there is with scripts/leaderboard.py")
    board.add([_relabelled(row, label) for row in rows])
    console.print(f"labelled    {run_id}: {label} ({len(rows)} rows)", highlight=False, soft_wrap=True)


def demote(
    console: Console, board: Leaderboard, champions: Champions, task: str, protocol: str | None, reason: str
) -> None:
    """Take a champion down, and say so on the leaderboard. Raises `ConfigError`."""
    former, successor = champions.demote(task, protocol, reason)
    rows = board.read()
    changed = [_relabelled(row, "demoted") for row in rows if row.run_id == former["run_id"]]
    if successor is not None:
        changed += [_relabelled(row, "champion") for row in rows if row.run_id == successor["run_id"]]
    board.add(changed)
    console.print(
        f"demoted     {task}: run {former['run_id']}; champion is now "
        f"{'none' if successor is None else 'run ' + successor['run_id']}",
        highlight=False,
        soft_wrap=True,
    )


def _relabelled(row: Row, label: str) -> Row:
    return replace(row, label=label)


def _matches(row: Row, text: str) -> bool:
    name, separator, value = text.partition("=")
    own = {item.name: str(getattr(row, item.name)) for item in fields(row)} | dict(row.tags)
    if not separator or name not in own:
        known = ", ".join(own)
        raise ConfigError(f"--filter {text}: give COLUMN=VALUE, such as task=burgers1d; columns are {known}")
    return own[name] == value
