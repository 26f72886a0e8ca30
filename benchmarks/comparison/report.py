"""The tables of a file of rows: all of them as Markdown beside it, and on the screen those of a command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from comparison.notes import notes
from comparison.row import Row
from comparison.source import source_digest
from comparison.store import Store
from comparison.table import markdown, show, tabulate, title
from comparison.tasks import TASKS
from ups_jax.core.files import write_atomically

# What one table is of: task, split, and how long its rows were trained.
Kind = tuple[str, str, str]


def write_tables(rows: Sequence[Row], store: Store) -> None:
    """One table a task, split and length: of every row on file whose settings are those of the command."""
    console = Console(width=None if Console().is_terminal else 240)
    stored_rows = _held(rows, store)
    kinds = dict.fromkeys(_kind(row) for row in stored_rows if row.trained)
    # Rows that are not trained belong to the tables of every length; alone they are one.
    kinds |= dict.fromkeys(_kind(row) for row in stored_rows if not any(_belongs(row, kind) for kind in kinds))
    source, parts = source_digest(), []
    for kind in sorted(kinds, key=lambda kind: (list(TASKS).index(kind[0]), *kind[1:])):
        members = [row for row in stored_rows if _belongs(row, kind)]
        groups, absent = _sorted_out(members, store)
        heading = title(kind[0], kind[2], groups, split=kind[1]) if groups else f"{kind[0]}: no finished row"
        headings, body = tabulate(groups) if groups else ([], [])
        remarks = notes(groups, source, budget=max(row.budget for row in members), absent=absent)
        if any(_belongs(row, kind) for row in rows):
            show(console, heading, headings, body)
            for line in remarks:
                console.print(f"note        {line}", highlight=False, markup=False)
        parts.append(markdown(heading, headings, body) + "".join(f"\nNote: {line}.\n" for line in remarks))
    unknown = [row for row in rows if not any(_belongs(row, kind) for kind in kinds)]
    for task, length in dict.fromkeys((row.task, row.length) for row in unknown):
        console.print(f"{task}: no finished row of {length}", highlight=False)
    if parts:
        write_atomically(store.path.with_suffix(".md"), "\n".join(parts))


def _sorted_out(members: Sequence[Row], store: Store) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """Each model's finished rows, and why the others of a table are absent."""
    kept, failed = store.rows(), store.failures()
    groups: dict[str, list[dict[str, Any]]] = {}
    absent = {}
    for row in members:
        name, digest = f"{row.model} seed {row.seed}", row.digest()
        if row.key in kept and kept[row.key]["digest"] == digest:
            groups.setdefault(row.model, []).append(kept[row.key])
        elif row.key in kept:
            absent[name] = "is left out: made with other settings"
        if row.key in failed and failed[row.key]["digest"] == digest:
            absent[name] = f"failed: {failed[row.key]['reason']}"
    return groups, absent


def _held(rows: Sequence[Row], store: Store) -> list[Row]:
    """Every row that the file tells of, with the overrides of the command; keys of former models are passed over."""
    keys = sorted({*store.rows(), *store.failures()})
    shared = {"data_root": rows[0].data_root, "overrides": rows[0].overrides} if rows else {}
    return [row for key in keys if rows and (row := Row.from_key(key, **shared)) is not None]


def _kind(row: Row) -> Kind:
    return row.task, row.split, row.length


def _belongs(row: Row, kind: Kind) -> bool:
    return (row.task, row.split) == kind[:2] and (not row.trained or row.length == kind[2])
