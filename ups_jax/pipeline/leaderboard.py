"""The leaderboard: a JSONL file that is only ever added to, under a lock, and tables that are made from it.

A row is one evaluation of one run; a later record of the same run and stage takes the place of the earlier one.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields
from html import escape
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ups_jax.core.errors import DataError
from ups_jax.core.files import storage_error, write_atomically
from ups_jax.core.locks import wait_for_lock


@dataclass(frozen=True, kw_only=True)
class Row:
    """One evaluation, of each seed in a file of `results` and of one of `checkpoints`, whose common digest `checkpoint`
    is. `timestamp` has its time zone; a metric that was not finite is None; `tags` are the user's."""

    run_id: str
    stage: str
    timestamp: str
    label: str
    status: str = ""
    commit: str | None = None
    dirty: bool | None = None
    config_hash: str = ""
    eval_key: str = ""
    checkpoint: str = ""
    checkpoints: tuple[str, ...] = ()
    protocol: str = ""
    task: str = ""
    split: str = ""
    horizon: int | None = None
    seed: int | None = None
    params: int | None = None
    device: str = ""
    wall_clock_s: float | None = None
    peak_mem: float | None = None
    notes: str = ""
    results: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        return self.run_id, self.stage


_ADAPTER = TypeAdapter(Row)
_OWN = tuple(item.name for item in fields(Row) if item.name not in ("tags", "metrics"))


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """The files of one leaderboard: `jsonl` is the truth, the others are made from it."""

    jsonl: Path
    csv: Path
    html: Path
    markdown: Path

    @staticmethod
    def from_csv_path(csv_path: Path, html_path: Path | None = None) -> Leaderboard:
        """The files beside a CSV file."""
        return Leaderboard(
            jsonl=csv_path.with_suffix(".jsonl"),
            csv=csv_path,
            html=html_path or csv_path.with_suffix(".html"),
            markdown=csv_path.with_suffix(".md"),
        )

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows that are not there as they are, and make the tables anew. Raises `StorageError`, `DataError`."""
        with self._locked():
            known = {row.key: row for row in self.read()}
            new = [row for row in rows if known.get(row.key) != row]
            if new:
                self._append(new)
            self.render()

    def read(self) -> list[Row]:
        """The rows, in the order in which their runs first came; DataError at a damaged line."""
        try:
            lines = self.jsonl.read_text(encoding="utf-8", errors="replace").split("\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise DataError(f"{self.jsonl}: cannot be read ({error.strerror})") from None
        rows: dict[tuple[str, str], Row] = {}
        # What follows the last line end is nothing, or what a killed process has left of a line.
        for number, line in enumerate(lines[:-1], 1):
            try:
                row = _ADAPTER.validate_json(line)
            except ValidationError:
                raise DataError(f"{self.jsonl}: line {number} is not a row; delete that line") from None
            rows[row.key] = row
        return list(rows.values())

    def render(self) -> None:
        """Make CSV, HTML and Markdown from the rows. Raises `StorageError`."""
        columns, cells = table(self.read())
        for path, text in (
            (self.csv, as_csv(columns, cells)),
            (self.html, as_html(columns, cells)),
            (self.markdown, as_markdown(columns, cells)),
        ):
            write_atomically(path, text)

    def _append(self, rows: Sequence[Row]) -> None:
        text = "".join(json.dumps(asdict(row), allow_nan=False) + "\n" for row in rows)
        try:
            with self.jsonl.open("a+b") as file:
                file.seek(0)
                content = file.read()
                # Half a line of a killed process would swallow the next one.
                file.truncate(content.rfind(b"\n") + 1)
                file.write(text.encode())
        except OSError as error:
            raise storage_error(self.jsonl, error) from None

    def _locked(self) -> AbstractContextManager[None]:
        return wait_for_lock(self.jsonl.with_name(f".{self.jsonl.name}.lock"))


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[Any]]]:
    """Columns and cells: the fixed ones, then the tags, then the metrics, in the order in which they first came."""
    tags = list(dict.fromkeys(name for row in rows for name in row.tags))
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    columns = [*_OWN, *(f"tag:{name}" for name in tags), *(f"metric:{name}" for name in metrics)]
    cells = [
        [
            *(" ".join(value) if isinstance(value := getattr(row, name), tuple) else value for name in _OWN),
            *(row.tags.get(name) for name in tags),
            *(row.metrics.get(name) for name in metrics),
        ]
        for row in rows
    ]
    return columns, cells


def as_csv(columns: Sequence[str], cells: Sequence[Sequence[Any]]) -> str:
    """The table with all digits."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([columns, *(["" if value is None else value for value in row] for row in cells)])
    return buffer.getvalue()


def as_markdown(columns: Sequence[str], cells: Sequence[Sequence[Any]]) -> str:
    """The table with four digits."""
    lines = [columns, ["---"] * len(columns), *([_text(value) for value in row] for row in cells)]
    return "".join(f"| {' | '.join(_in_one_cell(cell) for cell in line)} |\n" for line in lines)


def as_html(columns: Sequence[str], cells: Sequence[Sequence[Any]]) -> str:
    """A page of the table; every cell is escaped."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "\n".join(f"<tr>{''.join(f'<td>{escape(_text(value))}</td>' for value in row)}</tr>" for row in cells)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>Leaderboard</title>\n<style>'
        ":root { color-scheme: light dark; } body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem; }"
        " table { border-collapse: collapse; } th, td { padding: .25rem .7rem; border-bottom: 1px solid #8886;"
        " text-align: left; white-space: nowrap; }</style>\n</head>\n"
        f"<body>\n<h1>Leaderboard</h1>\n<table>\n<tr>{head}</tr>\n{body}\n</table>\n</body>\n</html>\n"
    )


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _in_one_cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
