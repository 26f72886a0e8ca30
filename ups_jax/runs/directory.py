"""The directory of one run: its names, its lock, and run.json, which says what the run is and how far it came."""

from __future__ import annotations

import contextlib
import json
import platform
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ups_jax.config import Config
from ups_jax.core.commands import command
from ups_jax.core.errors import CheckpointError
from ups_jax.core.files import RECORDED_PACKAGES, read_json, version, write_atomically
from ups_jax.core.locks import lock_directory
from ups_jax.core.stage_names import STAGE_NEEDS
from ups_jax.distributed.processes import is_host0

# Of run directories. Raised when an earlier version could no longer read them; docs/compatibility.md has its history.
FORMAT = 1
_SPLIT = "split.json"


class RunDirectory:
    """Paths of a run and its record. Making one writes nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def record_path(self) -> Path:
        return self.path / "run.json"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    @property
    def plots(self) -> Path:
        return self.path / "plots"

    def checkpoints(self, stage: str) -> Path:
        return self.path / "checkpoints" / stage

    def main_stage(self) -> str:
        """The stage whose result stands for the run: its operator, else the one that was begun last and needs none."""
        stages = [name for name in self.read()["digests"] if name not in STAGE_NEEDS["transient"]]
        return stages[-1] if stages and "operator" not in stages else "operator"

    def exists(self) -> bool:
        """Whether a run was begun here."""
        return self.record_path.exists()

    def read(self) -> dict[str, Any]:
        """The record of the run; CheckpointError where there is none."""
        try:
            record = read_json(self.record_path)
        except FileNotFoundError:
            raise CheckpointError(
                f"{self.path}: holds no run (no run.json); train one with `{command('train')} --run-dir {self.path}`"
            ) from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.record_path}: cannot be read ({error}); restore it from a copy") from None
        whole = isinstance(record, dict) and all(isinstance(record.get(part), dict) for part in ("config", "digests"))
        whole = whole and isinstance(record.get("format", 1), int)
        if not (whole and _of_dicts(record.get("stages"))):
            raise CheckpointError(f"{self.record_path}: is not a run's record; restore it from a copy")
        if record.get("format", 1) > FORMAT:
            raise CheckpointError(
                f"{self.record_path}: has format {record['format']}, and this version of ups_jax reads formats up to "
                f"{FORMAT}; install a newer one"
            )
        return record

    def write(self, record: dict[str, Any]) -> None:
        """Replace the record, atomically; the first process of several does it."""
        if is_host0():
            write_atomically(self.record_path, json.dumps(record | {"format": FORMAT}, indent=2) + "\n")

    def write_split(self, numbers: dict[str, Any]) -> None:
        """Keep which trajectories train, validate and test, for `data.split.path` of other runs."""
        if is_host0():
            write_atomically(self.path / _SPLIT, json.dumps(numbers) + "\n")

    def update(self, **values: Any) -> None:
        """Replace some entries of the record."""
        self.write(self.read() | values)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process, which stands for the others of its run; ConfigError names who holds it
        otherwise. The lock dies with its process."""
        if not is_host0():
            yield
            return
        with lock_directory(self.path, "wait for it or stop it"):
            self._sweep()
            yield

    def contains_other_files(self) -> bool:
        """Whether a directory without a run's record holds more than a start that was killed leaves there."""
        known = {".lock", *(left.name for left in self._left_over())}
        return self.path.exists() and any(entry.name not in known for entry in self.path.iterdir())

    def _sweep(self) -> None:
        """Take away the half-written files of a process that was killed; whoever holds the lock is alone with them."""
        for left in self._left_over():
            left.unlink(missing_ok=True)

    def _left_over(self) -> list[Path]:
        names = (self.record_path.name, _SPLIT, self.metrics_path.name)
        return [left for name in names for left in self.path.glob(f".{name}.*")]


def _of_dicts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(own, dict) for own in value.values())


def new_run_path(root: Path, task: str) -> Path:
    """A fresh directory name: task and time, with a counter where two runs start in one second."""
    stem = f"{task}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    names = (stem if count == 0 else f"{stem}-{count}" for count in range(10_000))
    return next(root / name for name in names if not (root / name).exists())


def environment() -> dict[str, Any]:
    """Versions, git revision and host of this process, without touching a device."""
    versions = {"python": platform.python_version()} | {
        package: version(package) for package in (*RECORDED_PACKAGES, "ups_jax")
    }
    return {"versions": versions, "git": _git_revision(), "platform": platform.platform()}


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git_revision() -> str | None:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def newest_step(checkpoints: Path) -> int:
    """The newest step that is saved in a stage's folder of checkpoints, 0 where there is none."""
    if not checkpoints.is_dir():
        return 0
    return max((int(item.name) for item in checkpoints.iterdir() if item.name.isdecimal()), default=0)


# Keys of a stage that say how long it is trained.
_LENGTHS = ("epochs", "steps", "max_seconds", "patience", "patience_steps")


def length_settings(cfg: Config, stage: str) -> dict[str, Any]:
    """How long a configuration trains a stage, as its keys say."""
    settings = getattr(cfg.stages, stage)
    return {key: getattr(settings, key) for key in _LENGTHS}


class StageRecord:
    """The entry of a stage in the record of its run; `values` are those on file."""

    def __init__(self, run: RunDirectory, stage: str, values: dict[str, Any]) -> None:
        self._run, self._stage = run, stage
        self.values = values
        self._write({})

    def note(self, **values: Any) -> None:
        """Add or replace values."""
        self.values |= values
        self._write({})

    def finish(self, **values: Any) -> None:
        """Add or replace the last values, and say of the run that it is finished."""
        self.values |= values
        self._write({"status": "finished"})

    def _write(self, of_run: dict[str, Any]) -> None:
        record = self._run.read()
        self._run.write(record | of_run | {"stages": record["stages"] | {self._stage: self.values}})
