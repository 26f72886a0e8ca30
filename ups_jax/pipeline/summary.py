"""`summary.json` of a pipeline run: what was asked, how far it came, what each step cost. Written after every step."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ups_jax.errors import ConfigError
from ups_jax.files import read_json, write_atomically
from ups_jax.training.run_directory import now

# How a run stands that the same command goes on with.
UNFINISHED = ("running", "stopped", "failed")


class Summary:
    """The summary on file; `values` are those on disk."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "summary.json"
        self.values: dict[str, Any] = {}
        self.former_gates: dict[str, Any] = {}

    def begin(self, **about: Any) -> None:
        """Start, or go on with what an earlier start has written: what a run that came to its end was judged is kept in
        `former_gates` alone. Raises `ConfigError` where that is no summary."""
        self.values = read(self.path)
        self.former_gates = dict(self.values.get("gates", {}))
        if self.values.get("status") not in UNFINISHED:
            self.values = {key: value for key, value in self.values.items() if key not in ("gates", "promoted")}
        first: dict[str, Any] = {"started": now(), "starts": 0, "steps": {}, "gates": {}, "promoted": False}
        self.values = first | self.values | about
        self.values |= {"status": "running", "starts": self.values["starts"] + 1}
        self.values |= {"failed_step": None, "error": None, "exit_code": None}
        self._write()

    def update(self, **values: Any) -> None:
        """Replace some values. Raises `StorageError`."""
        self.values |= values | {"updated": now()}
        self._write()

    def step(self, name: str, **values: Any) -> None:
        """Replace some values of a step."""
        steps = self.values["steps"]
        self.update(steps=steps | {name: steps.get(name, {}) | values})

    def begin_step(self, name: str, **values: Any) -> None:
        """Note that a step runs, which is the one that an error comes from."""
        self.values["current_step"] = name
        self.step(name, status="running", started=now(), **values)

    def gate(self, name: str, decision: Mapping[str, Any]) -> None:
        """Keep what the gates of an evaluation said."""
        self.update(gates=self.values["gates"] | {name: dict(decision)})

    def is_done(self, name: str, key: str) -> bool:
        """Whether a step was done by an earlier start, for the same reasons (`key`)."""
        own = self.values["steps"].get(name, {})
        return own.get("status") in ("done", "reused") and own.get("key") == key

    def _write(self) -> None:
        write_atomically(self.path, json.dumps(self.values, indent=2, default=str) + "\n")


def read(path: Path) -> dict[str, Any]:
    """A summary; empty where there is none. Raises `ConfigError` where it cannot be understood."""
    try:
        values = read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give another --run-id") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: is no summary of a run; give another --run-id")
    return values


def unfinished(runs: Path, request: str, is_free: Callable[[Path], bool]) -> str | None:
    """The latest run of the same request that did not come to its end and that nobody works on."""
    found: list[tuple[str, str]] = []
    for path in runs.glob("*/summary.json"):
        values = _readable(path)
        if values.get("request") == request and values.get("status") in UNFINISHED and is_free(path.parent):
            found.append((str(values["started"]), path.parent.name))
    return max(found)[1] if found else None


def _readable(path: Path) -> dict[str, Any]:
    try:
        return read(path)
    except ConfigError:
        return {}
