"""The metrics file of a run: one JSON object per line, the reference for its training curves."""

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
    """Appends one line per record to a file; the steps of a stage increase strictly, also after a resume.

    Summaries, tables and files are not written here: a run directory stores them separately.

    Args:
        path: The JSONL file. It is created if it is missing; an incomplete last line is removed.

    Raises:
        StorageError: If the file cannot be written.
        DataError: If a line before the last one is not valid.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _storage(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            self._replace(read_jsonl(path))

    def scalars(self, step: int, values: Mapping[str, float], stage: str) -> None:
        """Append and flush one record; non-finite values become null.

        Raises:
            ValueError: If `step` is not larger than the last step of the stage.
        """
        if step <= self._last_steps.get(stage, -1):
            raise ValueError(
                f"{self.path}: step {step} of stage {stage} is not after its last step {self._last_steps[stage]}"
            )
        plain = {name: _finite(float(value)) for name, value in values.items()}
        with _storage(self.path):
            self._file.write(json.dumps({"stage": stage, "step": step, **plain}, allow_nan=False) + "\n")
            self._file.flush()
        self._last_steps[stage] = step

    def truncate(self, stage: str, step: int) -> None:
        """Drop the records of `stage` after `step`, the step that a resume starts from; the file changes atomically."""
        with _storage(self.path):
            self._file.close()
            self._replace(
                [record for record in read_jsonl(self.path) if record["stage"] != stage or record["step"] <= step]
            )

    def close(self, outcome: Outcome = "finished") -> None:
        """Flush and close the file; the outcome is not written, because the run record contains it."""
        with _storage(self.path):
            self._file.close()

    def _replace(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Rewrite the file with these records and open it for appending.

        This removes the incomplete line that a killed process leaves.
        """
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path)
        self._last_steps = {record["stage"]: record["step"] for record in records}
        self._file = self.path.open("a", encoding="utf-8")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the records of a metrics file, without an incomplete last line.

    Raises:
        DataError: If a line before the last one is not a JSON object.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("a record must be a JSON object")
            records.append(record)
        except (ValueError, RecursionError):
            if number < len(lines):
                raise DataError(f"{path}: line {number} is not a JSON object; delete that line") from None
    return records


@contextlib.contextmanager
def _storage(path: Path) -> Iterator[None]:
    """Turn an `OSError` of the block into a `StorageError` that names the file."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror}); free disk space or choose another folder"
        ) from None


def _finite(value: float) -> float | None:
    """Return the value, or None if it is not finite."""
    return value if math.isfinite(value) else None
