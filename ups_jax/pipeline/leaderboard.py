"""The leaderboard: a JSONL file of evaluations, and CSV, HTML and Markdown tables that are written from it.

A row is one evaluation of one run. Lines are only appended; a later line replaces an earlier one of the same run and
stage.
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
    """One evaluation of one run, over one or more seeds.

    Attributes:
        stage: Step of the evaluation, such as `full_eval`.
        timestamp: End of the evaluation, with time zone.
        label: Label such as `champion`.
        status: Status of the gate decision on the evaluation.
        commit: Git commit of the training.
        dirty: Whether the training had uncommitted changes.
        config_hash: Digest of the training configuration.
        eval_key: Cache key of the evaluation.
        checkpoint: Digest of the evaluated checkpoint, or with several seeds a digest of `checkpoints`.
        checkpoints: Digest of the evaluated checkpoint of each seed.
        protocol: Protocol digest; evaluations with equal digests are comparable.
        task: Names of the tasks, joined by `+`.
        horizon: Number of rollout steps.
        seed: Seed of the first training.
        params: Number of model parameters.
        wall_clock_s: Training time in seconds.
        peak_mem: Peak memory of the training, in MiB.
        results: Evaluation file of each seed.
        metrics: Metrics by name; None for a value that is not finite.
    """

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
        """Run and stage, which identify the row."""
        return self.run_id, self.stage


_ADAPTER = TypeAdapter(Row)
_FIXED_COLUMNS = tuple(item.name for item in fields(Row) if item.name not in ("tags", "metrics"))


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """The files of one leaderboard.

    Attributes:
        jsonl: File of the rows; the other files are tables that are written from it.
        csv: Table with all digits.
        html: Table as a web page.
        markdown: Table in Markdown.
    """

    jsonl: Path
    csv: Path
    html: Path
    markdown: Path

    @staticmethod
    def from_csv_path(csv_path: Path, html_path: Path | None = None) -> Leaderboard:
        """Return the leaderboard with the CSV table `csv_path`; the paths of its other files differ in the suffix only.

        Args:
            html_path: The HTML file, if it has another path.
        """
        return Leaderboard(
            jsonl=csv_path.with_suffix(".jsonl"),
            csv=csv_path,
            html=html_path or csv_path.with_suffix(".html"),
            markdown=csv_path.with_suffix(".md"),
        )

    def add(self, rows: Sequence[Row]) -> None:
        """Append the rows that are new or changed to the JSONL file, and write all tables.

        Raises:
            StorageError: If a file cannot be written.
            DataError: If the JSONL file is damaged.
        """
        with self._lock():
            existing = {row.key: row for row in self.read()}
            new = [row for row in rows if existing.get(row.key) != row]
            if new:
                self._append_rows(new)
            self.write_tables()

    def read(self) -> list[Row]:
        """Return the latest version of each row, in the order in which the rows were first added.

        Raises:
            DataError: If a line is not a row.
        """
        try:
            lines = self.jsonl.read_text(encoding="utf-8", errors="replace").split("\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise DataError(f"{self.jsonl}: cannot be read ({error.strerror}); make this file readable") from None
        rows: dict[tuple[str, str], Row] = {}
        # The text after the last newline is empty, or an incomplete line that a killed process left.
        for number, line in enumerate(lines[:-1], 1):
            try:
                row = _ADAPTER.validate_json(line)
            except ValidationError:
                raise DataError(f"{self.jsonl}: line {number} is not a leaderboard row; delete this line") from None
            rows[row.key] = row
        return list(rows.values())

    def write_tables(self) -> None:
        """Write the CSV, HTML and Markdown tables of all rows.

        Raises:
            StorageError: If a file cannot be written.
        """
        columns, cells = table_columns_and_cells(self.read())
        for path, text in (
            (self.csv, to_csv(columns, cells)),
            (self.html, to_html(columns, cells)),
            (self.markdown, to_markdown(columns, cells)),
        ):
            write_atomically(path, text)

    def _append_rows(self, rows: Sequence[Row]) -> None:
        """Append rows to the JSONL file, after removing an incomplete last line."""
        text = "".join(json.dumps(asdict(row), allow_nan=False) + "\n" for row in rows)
        try:
            with self.jsonl.open("a+b") as file:
                file.seek(0)
                content = file.read()
                # Remove the incomplete line of a killed process, or the first new row would continue it.
                file.truncate(content.rfind(b"\n") + 1)
                file.write(text.encode())
        except OSError as error:
            raise storage_error(self.jsonl, error) from None

    def _lock(self) -> AbstractContextManager[None]:
        """Return a context manager that locks the leaderboard and first waits while another process has the lock."""
        return wait_for_lock(self.jsonl.with_name(f".{self.jsonl.name}.lock"))


def table_columns_and_cells(rows: Sequence[Row]) -> tuple[list[str], list[list[Any]]]:
    """Return the column names (first fixed columns, then tags, then metrics) and the cells of each row."""
    tags = list(dict.fromkeys(name for row in rows for name in row.tags))
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    columns = [*_FIXED_COLUMNS, *(f"tag:{name}" for name in tags), *(f"metric:{name}" for name in metrics)]
    cells = [
        [
            *(" ".join(value) if isinstance(value := getattr(row, name), tuple) else value for name in _FIXED_COLUMNS),
            *(row.tags.get(name) for name in tags),
            *(row.metrics.get(name) for name in metrics),
        ]
        for row in rows
    ]
    return columns, cells


def to_csv(columns: Sequence[str], cells: Sequence[Sequence[Any]]) -> str:
    """Return a table as CSV text, with all digits of its numbers."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([columns, *(["" if value is None else value for value in row] for row in cells)])
    return buffer.getvalue()


def to_markdown(columns: Sequence[str], cells: Sequence[Sequence[Any]]) -> str:
    """Return a table as Markdown text, with four significant digits."""
    lines = [columns, ["---"] * len(columns), *([_format_cell(value) for value in row] for row in cells)]
    return "".join(f"| {' | '.join(_escape_markdown_cell(cell) for cell in line)} |\n" for line in lines)


def to_html(columns: Sequence[str], cells: Sequence[Sequence[Any]]) -> str:
    """Return a table as an HTML page, with four significant digits and escaped cells."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "\n".join(f"<tr>{''.join(f'<td>{escape(_format_cell(value))}</td>' for value in row)}</tr>" for row in cells)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>Leaderboard</title>\n<style>'
        ":root { color-scheme: light dark; } body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem; }"
        " table { border-collapse: collapse; } th, td { padding: .25rem .7rem; border-bottom: 1px solid #8886;"
        " text-align: left; white-space: nowrap; }</style>\n</head>\n"
        f"<body>\n<h1>Leaderboard</h1>\n<table>\n<tr>{head}</tr>\n{body}\n</table>\n</body>\n</html>\n"
    )


def _format_cell(value: Any) -> str:
    """Return the value of a cell as text, with four significant digits for floats."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _escape_markdown_cell(text: str) -> str:
    """Return the text of a cell on one line, with `|` escaped for a Markdown table."""
    return " ".join(text.replace("|", "\\|").split())
