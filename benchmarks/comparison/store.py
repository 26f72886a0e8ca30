"""The finished rows in one JSON file, written whole after each, so that an interrupted comparison goes on."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from comparison.row import Row
from ups_jax.errors import ConfigError
from ups_jax.evaluation.result import write_json

_CLOSE = 0.1


class Store:
    """Rows by key. A row whose digest is not the asked one counts as absent and is replaced by its successor."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> dict[str, dict[str, Any]]:
        """All rows on file, stale ones included; none where there is no file."""
        try:
            return json.loads(self.path.read_text())["rows"]
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{self.path}: is no file of this benchmark; give another --out") from None

    def finished(self, row: Row) -> bool:
        """Is there a row made with these settings, with all the scores that are asked for?"""
        values = self.rows().get(row.key)
        return values is not None and row.complete(values)

    def steps(self, row: Row) -> int | None:
        """The steps that another seed's row of the same settings made, if they took the budget to a tenth.

        The same steps are the same compiled program, which is then found in the cache; and a spread over seeds should
        not hold how busy the machine was.
        """
        for key, values in self.rows().items():
            same = replace(row, seed=values["seed"]).key == key and values["digest"] == row.digest()
            if same and abs(values["cpu_seconds"] / max(row.budget, 1e-9) - 1) < _CLOSE:
                return values["steps"]
        return None

    def add(self, key: str, values: dict[str, Any]) -> None:
        """Write one more row; what another process added meanwhile stays."""
        with self._lock():
            write_json(self.path, {"rows": dict(sorted((self.rows() | {key: values}).items()))})

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path.with_name(f".{self.path.name}.lock"), "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
