"""The tables of a command's rows, on the screen and as Markdown beside the JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from comparison.row import Row, source_digest
from comparison.store import Store
from comparison.table import markdown, notes, show, tabulate, title
from ups_jax.files import write_atomically


def write_tables(rows: Sequence[Row], store: Store) -> None:
    """One table a task, of the rows that are there and were made with the present settings."""
    kept = store.rows()
    console = Console(width=None if Console().is_terminal else 240)
    parts = []
    for task in dict.fromkeys(row.task for row in rows):
        groups: dict[str, list[dict[str, Any]]] = {}
        asked = [row for row in rows if row.task == task]
        for row in asked:
            values = kept.get(row.key)
            if values is not None and values["digest"] == row.digest():
                groups.setdefault(row.model, []).append(values)
        if not groups:
            console.print(f"{task}: no finished row", highlight=False)
            continue
        longest = max(asked, key=lambda row: row.budget)
        length = f"{longest.budget:g} CPU-seconds" if longest.fixed_steps is None else f"{longest.fixed_steps} steps"
        heading = title(task, length, groups)
        headings, body = tabulate(groups)
        show(console, heading, headings, body)
        remarks = notes(groups, source_digest())
        for line in remarks:
            console.print(f"note        {line}", highlight=False)
        parts.append(markdown(heading, headings, body) + "".join(f"\nNote: {line}.\n" for line in remarks))
    if parts:
        write_atomically(store.path.with_suffix(".md"), "\n".join(parts))
