"""The metrics file of a run: one JSON object a line, the truth about its curves."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ups_jax.core.errors import DataError, StorageError
from ups_jax.tracking.writer import Outcome, Writer


class JsonlWriter(Writer):
    """Appends one line a record to `path`; steps of a stage are strictly increasing, also after a resume.

    Summaries, tables and files have places of their own in a run directory and are left out. Raises `StorageError`
    where the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _storage(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            self._replace(read_jsonl(path))

    def scalars(self, step: int, values: Mapping[str, float], stage: str) -> None:
        """Append and flush one record; a non-finite value becomes null. Raises `ValueError` at a repeated step."""
        if step <= self._last.get(stage, -1):
            raise ValueError(f"{self.path}: step {step} of stage {stage} follows step {self._last[stage]}")
        plain = {name: _finite(float(value)) for name, value in values.items()}
        with _storage(self.path):
            self._file.write(json.dumps({"stage": stage, "step": step, **plain}, allow_nan=False) + "\n")
            self._file.flush()
        self._last[stage] = step

    def truncate(self, stage: str, step: int) -> None:
        """Drop the records of `stage` after `step`, the step that a resume starts from. Atomic."""
        with _storage(self.path):
            self._file.close()
            self._replace(
                [record for record in read_jsonl(self.path) if record["stage"] != stage or record["step"] <= step]
            )

    def close(self, outcome: Outcome = "finished") -> None:
        """Close the file; how a run ended is in its record. What could not be written before is tried again here."""
        with _storage(self.path):
            self._file.close()

    def _replace(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Rewrite the file without the half line that a killed process leaves, and open it for more."""
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path)
        self._last = {record["stage"]: record["step"] for record in records}
        self._file = self.path.open("a", encoding="utf-8")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file without a torn last line. Raises `DataError` at a damaged line before it."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("a record is an object")
            records.append(record)
        except (ValueError, RecursionError):
            if number < len(lines):
                raise DataError(f"{path}: line {number} is no record in JSON; delete that line") from None
    return records


@contextlib.contextmanager
def _storage(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror}); free space or give another folder") from None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
