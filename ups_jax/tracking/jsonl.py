"""The metrics file of a run, with one JSON object per line, from which its training curves are drawn."""

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
    """Appends each metrics record to a file as a line; the steps of a stage increase strictly, also after a resume.

    It does not write summaries, tables and files, which the run directory stores separately.

    Args:
        path: JSONL file, which is created if it is missing; an incomplete last line is removed.

    Raises:
        StorageError: The file cannot be written.
        DataError: A line before the last one is not valid.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _raise_storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            self._rewrite(read_jsonl(path))

    def scalars(self, step: int, values: Mapping[str, float], stage: str) -> None:
        """Append one record and flush the file; non-finite values become null.

        Raises:
            ValueError: `step` is not larger than the last step of the stage.
        """
        if step <= self._last_steps.get(stage, -1):
            raise ValueError(
                f"{self.path}: step {step} of stage {stage} is not larger than the last step {self._last_steps[stage]}"
            )
        plain = {name: _finite_or_none(float(value)) for name, value in values.items()}
        with _raise_storage_errors(self.path):
            self._file.write(json.dumps({"stage": stage, "step": step, **plain}, allow_nan=False) + "\n")
            self._file.flush()
        self._last_steps[stage] = step

    def drop_records_after(self, stage: str, step: int) -> None:
        """Delete the records of `stage` after `step`, where the stage resumes; the file is replaced atomically."""
        with _raise_storage_errors(self.path):
            self._file.close()
            self._rewrite(
                [record for record in read_jsonl(self.path) if record["stage"] != stage or record["step"] <= step]
            )

    def close(self, outcome: Outcome = "finished") -> None:
        """Flush and close the file. The outcome is not written, because run.json contains it."""
        with _raise_storage_errors(self.path):
            self._file.close()

    def _rewrite(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Replace the content of the file with these records and open it for appending.

        This removes an incomplete line that a killed process left.
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
    """Return the records of a metrics file; an incomplete last line is ignored.

    Raises:
        DataError: A line before the last one is not a JSON object.
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
def _raise_storage_errors(path: Path) -> Iterator[None]:
    """In a `with` block, convert an `OSError` to a `StorageError` that names the file `path`."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror}); free disk space or choose another folder"
        ) from None


def _finite_or_none(value: float) -> float | None:
    """Return a number, or None if it is not finite."""
    return value if math.isfinite(value) else None
