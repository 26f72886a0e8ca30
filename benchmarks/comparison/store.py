"""The finished rows in one JSON file, written whole after each, so that an interrupted comparison goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from comparison.row import Row
from comparison.source import source_digest
from comparison.stage_row import StageRow
from ups_jax.core.errors import ConfigError
from ups_jax.core.locks import wait_for_lock
from ups_jax.evaluation.result import write_json

_CLOSE = 0.1


class Store:
    """Rows by key, and why others failed. A row with another digest than the asked one counts as absent, and its
    successor replaces it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = path.with_name(f".{path.name}.lock")

    def rows(self) -> dict[str, dict[str, Any]]:
        """All rows on file, stale ones included; none where there is no file."""
        return self._read()["rows"]

    def failures(self) -> dict[str, dict[str, Any]]:
        """Return the rows that failed since their last success: digest and `reason`, by key."""
        return self._read().get("failed", {})

    def finished(self, row: Row | StageRow) -> bool:
        """Is there a row made with these settings, with all the scores that are asked for?"""
        values = self.rows().get(row.key)
        return values is not None and row.complete(values)

    def with_steps(self, row: Row) -> Row:
        """The row with the number of steps to train, where that is known without measuring."""
        return replace(row, steps=row.fixed_steps or self.steps(row))

    def steps(self, row: Row) -> int | None:
        """The steps that another seed's row of the same settings made, if they took the budget to a tenth.

        The same steps are the same compiled program, which is then found in the cache; and a spread over seeds should
        not hold how busy the machine was. Other code may take another time for a step.
        """
        made_by = {"digest": row.digest(), "source": source_digest()}
        for key, values in self.rows().items():
            same = replace(row, seed=values["seed"]).key == key and made_by.items() <= values.items()
            if same and abs(values["cpu_seconds"] / max(row.budget, 1e-9) - 1) < _CLOSE:
                return values["steps"]
        return None

    def add(self, key: str, values: dict[str, Any]) -> None:
        """Write one more row; what another process added meanwhile stays."""
        with wait_for_lock(self._lock):
            failed = {other: why for other, why in self.failures().items() if other != key}
            self._write(self.rows() | {key: values}, failed)

    def fail(self, row: Row | StageRow, reason: str) -> None:
        """Keep why a row failed, until it succeeds."""
        with wait_for_lock(self._lock):
            why = {"digest": row.digest(), "reason": reason}
            self._write(self.rows(), self.failures() | {row.key: why})

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_text())
        except FileNotFoundError:
            return {"rows": {}}
        except ValueError:
            content = None
        if not isinstance(content, dict) or not isinstance(content.get("rows"), dict):
            raise ConfigError(f"{self.path}: is no file of this benchmark; give another --out")
        return content

    def _write(self, rows: dict[str, Any], failed: dict[str, Any]) -> None:
        content = {"rows": dict(sorted(rows.items()))}
        write_json(self.path, content | ({"failed": dict(sorted(failed.items()))} if failed else {}))
