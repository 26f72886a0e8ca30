"""The directory of a run: its paths, its lock, and its record, the file run.json with configuration and progress."""

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

# Format version of run directories, increased when earlier versions can no longer read them (docs/compatibility.md).
FORMAT = 1


class RunDirectory:
    """The paths and the record (run.json) of a run. The constructor does not access the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def record_path(self) -> Path:
        """Path of the run's record, run.json."""
        return self.path / "run.json"

    @property
    def metrics_path(self) -> Path:
        """Path of the metrics that the training logs, metrics.jsonl."""
        return self.path / "metrics.jsonl"

    @property
    def split_path(self) -> Path:
        """Path of the split of the trajectories, split.json."""
        return self.path / "split.json"

    @property
    def training_set_path(self) -> Path:
        """Path of the hashes of the training trajectories, training_set.json."""
        return self.path / "training_set.json"

    @property
    def evaluation_folder(self) -> Path:
        """Folder of the evaluation results."""
        return self.path / "evaluation"

    @property
    def plots_folder(self) -> Path:
        """Folder of the plots."""
        return self.path / "plots"

    def checkpoint_folder(self, stage: str) -> Path:
        """Return the folder of the checkpoints of a stage."""
        return self.path / "checkpoints" / stage

    def main_stage(self) -> str:
        """Return `operator`, or in a run without it the last started stage that does not train a corrector."""
        stages = [name for name in self.read_record()["digests"] if name not in STAGE_NEEDS["transient"]]
        return stages[-1] if stages and "operator" not in stages else "operator"

    def has_record(self) -> bool:
        """Return whether the directory has a record of a run."""
        return self.record_path.exists()

    def read_record(self) -> dict[str, Any]:
        """Return the record of the run.

        Raises:
            CheckpointError: The record is missing, damaged or of a newer format.
        """
        try:
            record = read_json(self.record_path)
        except FileNotFoundError:
            raise CheckpointError(
                f"{self.path}: holds no run (no run.json); train one with `{command('train')} --run-dir {self.path}`"
            ) from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.record_path}: cannot be read ({error}); restore it from a copy") from None
        valid = isinstance(record, dict) and all(isinstance(record.get(key), dict) for key in ("config", "digests"))
        valid = valid and isinstance(record.get("format", 1), int)
        if not (valid and _is_dict_of_dicts(record.get("stages"))):
            raise CheckpointError(f"{self.record_path}: is not the record of a run; restore it from a copy")
        if record.get("format", 1) > FORMAT:
            raise CheckpointError(
                f"{self.record_path}: has format {record['format']}, but this version of ups_jax reads formats up to "
                f"{FORMAT}; install a newer version"
            )
        return record

    def write_record(self, record: dict[str, Any]) -> None:
        """Replace the record atomically; with several processes, only host 0 writes."""
        if is_host0():
            write_atomically(self.record_path, json.dumps(record | {"format": FORMAT}, indent=2) + "\n")

    def write_split(self, split: dict[str, Any]) -> None:
        """Write the split of the trajectories to a file, which other runs can reuse with `data.split.path`."""
        if is_host0():
            write_atomically(self.split_path, json.dumps(split) + "\n")

    def update_record(self, **values: Any) -> None:
        """Set the given entries of the record and write run.json."""
        self.write_record(self.read_record() | values)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the directory against other runs and delete the incomplete files that a killed process left.

        The lock is released at the latest when this process ends. With several processes, host 0 holds it for all.

        Raises:
            ConfigError: Another process holds the lock; the message names this process.
        """
        if not is_host0():
            yield
            return
        with lock_directory(self.path, "wait for it or stop it"):
            self._delete_incomplete_files()
            yield

    def contains_other_files(self) -> bool:
        """Return whether the directory holds files besides the lock file and incomplete files of a killed process."""
        ignored = {".lock", *(path.name for path in self._incomplete_files())}
        return self.path.exists() and any(entry.name not in ignored for entry in self.path.iterdir())

    def _delete_incomplete_files(self) -> None:
        """Delete the incomplete files of a killed process; only the holder of the lock may do this."""
        for path in self._incomplete_files():
            path.unlink(missing_ok=True)

    def _incomplete_files(self) -> list[Path]:
        """Return the temporary files of interrupted atomic writes."""
        files = (self.record_path, self.split_path, self.training_set_path, self.metrics_path)
        return [path for file in files for path in self.path.glob(f".{file.name}.*")]


def _is_dict_of_dicts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, dict) for item in value.values())


def new_run_path(root: Path, task: str) -> Path:
    """Return a path under `root` for a new run, named by task and time; a counter makes the name unique."""
    stem = f"{task}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    names = (stem if count == 0 else f"{stem}-{count}" for count in range(10_000))
    return next(root / name for name in names if not (root / name).exists())


def environment_record() -> dict[str, Any]:
    """Return package versions, git revision and platform to record with a run, without initialising a device."""
    versions = {"python": platform.python_version()} | {
        package: version(package) for package in (*RECORDED_PACKAGES, "ups_jax")
    }
    return {"versions": versions, "git": _git_revision(), "platform": platform.platform()}


def utc_now() -> str:
    """Return the UTC time in ISO format, to the second."""
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


def newest_step(folder: Path) -> int:
    """Return the step of the latest checkpoint in a folder, 0 if there is none."""
    if not folder.is_dir():
        return 0
    return max((int(item.name) for item in folder.iterdir() if item.name.isdecimal()), default=0)


# Keys of a stage that determine how long it trains.
_LENGTHS = ("epochs", "steps", "max_seconds", "patience", "patience_steps")


def stage_length_settings(cfg: Config, stage: str) -> dict[str, Any]:
    """Return the configured values that determine how long a stage trains, such as `epochs`, by key."""
    settings = getattr(cfg.stages, stage)
    return {key: getattr(settings, key) for key in _LENGTHS}


class StageRecord:
    """The entry of a stage in the record (run.json) of its run.

    Attributes:
        values: Content of the entry.
    """

    def __init__(self, run: RunDirectory, stage: str, values: dict[str, Any]) -> None:
        self._run, self._stage = run, stage
        self.values = values
        self._write_record({})

    def update(self, **values: Any) -> None:
        """Set the given values in the stage's entry and write run.json."""
        self.values |= values
        self._write_record({})

    def finish(self, **values: Any) -> None:
        """Set the given values in the stage's entry, set the run's status to `finished`, and write run.json."""
        self.values |= values
        self._write_record({"status": "finished"})

    def _write_record(self, run_values: dict[str, Any]) -> None:
        record = self._run.read_record()
        self._run.write_record(record | run_values | {"stages": record["stages"] | {self._stage: self.values}})
