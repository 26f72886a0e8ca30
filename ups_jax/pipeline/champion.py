"""The champions: for each task and protocol the run that was promoted last, as a verified copy of its own.

`champion.json` is written last and at once, so that a champion is promoted wholly or not at all.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ups_jax.errors import CheckpointError, ConfigError
from ups_jax.files import storage_error, write_atomically
from ups_jax.pipeline.evaluated import Evaluated
from ups_jax.pipeline.measures import plain
from ups_jax.pipeline.metadata import checkpoint_digests
from ups_jax.training.checksums import fault
from ups_jax.training.run_directory import now

SCHEMA_VERSION = 1
# What of a training run is copied: all that is needed to predict with it and to go on with it.
_COPIED = ("run.json", "metrics.jsonl", "checkpoints")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What is promoted: a training of the run `run_id`, its configuration, and its evaluations by section with the
    files that they were read from."""

    run_id: str
    run_dir: Path
    training: Path
    config: Mapping[str, Any]
    evaluations: Mapping[str, Evaluated]
    files: Mapping[str, Sequence[Path]]

    @property
    def full(self) -> Evaluated:
        return self.evaluations["full"]


@dataclass(frozen=True)
class Champions:
    """The folder of all champions: `root/TASK/PROTOCOL/champion.json`, and the copies beside it."""

    root: Path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold all champions for a comparison with a promotion; others wait."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            handle = (self.root / ".lock").open("a")
        except OSError as error:
            raise storage_error(self.root, error) from None
        with handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def all(self) -> list[dict[str, Any]]:
        """Every champion, the one that was promoted last first. Raises `CheckpointError` for a damaged record."""
        found = [_read(path) for path in self.root.glob("*/*/champion.json")]
        return sorted(found, key=lambda item: str(item["promoted_at"]), reverse=True)

    def find(self, section: str, protocol: str) -> dict[str, Any] | None:
        """The champion that was evaluated by a protocol."""
        known = (item for item in self.all() if item["evaluations"].get(section, {}).get("protocol") == protocol)
        return next(known, None)

    def of_checkpoint(self, checkpoint: str) -> dict[str, Any] | None:
        """The champion that is this checkpoint."""
        return next((item for item in self.all() if item["checkpoint"] == checkpoint), None)

    def evaluated(self, champion: Mapping[str, Any], section: str) -> Evaluated:
        """An evaluation of a champion, from its copy."""
        folder = self.folder(champion["task"], champion["protocol"])
        return Evaluated.read([folder / name for name in champion["evaluations"][section]["files"]])

    def folder(self, task: str, protocol: str) -> Path:
        return self.root / _file_name(task) / protocol

    def promote(self, candidate: Candidate) -> dict[str, Any]:
        """Make the candidate the champion of its protocol, in place of whoever is; to be called under the lock.

        The copy of the run is verified against its digests before it counts. Raises `CheckpointError`, `StorageError`.
        """
        full = candidate.full
        folder = self.folder(full.task, full.protocol)
        copy = folder / f"{_file_name(candidate.run_id)}-{full.checkpoint}"
        digests = checkpoint_digests(candidate.training)
        if not _is_whole(copy, digests):
            _copy(candidate, copy, digests)
        former = _read(folder / "champion.json") if (folder / "champion.json").exists() else None
        history = [] if former is None else [*former["history"], _without_history(former)]
        champion = {
            "schema_version": SCHEMA_VERSION,
            "task": full.task,
            "protocol": full.protocol,
            "run_id": candidate.run_id,
            "run_dir": str(candidate.run_dir),
            "promoted_at": now(),
            "checkpoint": full.checkpoint,
            "checkpoints": digests,
            "copy": copy.name,
            "config": dict(candidate.config),
            "evaluations": {
                section: {
                    "protocol": evaluated.protocol,
                    "split": evaluated.meta["data"]["split"],
                    "horizon": evaluated.meta["horizon"],
                    "files": [f"{copy.name}/{_evaluation_name(section, n)}" for n in range(len(evaluated.results))],
                    "numbers": plain(evaluated.numbers),
                }
                for section, evaluated in candidate.evaluations.items()
            },
            "metrics": plain(full.numbers),
            "history": history,
        }
        write_atomically(folder / "champion.json", json.dumps(champion, indent=2) + "\n")
        return champion

    def demote(self, task: str, protocol: str | None, reason: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Take the champion of a task down: the one before it is champion again where its copy verifies, else none is.
        Gives both. ConfigError where there is no such champion."""
        with self.locked():
            champion = self.champion(task, protocol)
            folder = self.folder(champion["task"], champion["protocol"])
            demoted = _without_history(champion) | {"demoted_at": now(), "reason": reason}
            earlier = [item for item in champion["history"] if "demoted_at" not in item]
            successor = next((item for item in reversed(earlier) if _is_champion(folder, item)), None)
            if successor is None:
                gone = folder / f"demoted-{_file_name(champion['run_id'])}.json"
                write_atomically(gone, json.dumps(demoted, indent=2) + "\n")
                (folder / "champion.json").unlink()
                return champion, None
            kept = [item for item in champion["history"] if item != successor]
            restored = successor | {"promoted_at": now(), "history": [*kept, demoted]}
            write_atomically(folder / "champion.json", json.dumps(restored, indent=2) + "\n")
            return champion, restored

    def champion(self, task: str, protocol: str | None = None) -> dict[str, Any]:
        """The champion of a task; ConfigError where there is none, or several and `protocol` does not say which."""
        known = [item for item in self.all() if item["task"] == task and protocol in (None, item["protocol"])]
        if not known:
            names = ", ".join(sorted({item["task"] for item in self.all()})) or "none"
            said = task if protocol is None else f"{task} by protocol {protocol}"
            raise ConfigError(
                f"{self.root}: has no champion of {said} (there are champions of: {names}); make one with "
                "scripts/run_fast_to_sota.py"
            )
        if len(known) > 1:
            each = ", ".join(f"{item['protocol']} (run {item['run_id']})" for item in known)
            raise ConfigError(f"{self.root}: {task} has a champion by each of the protocols {each}; give --protocol")
        return known[0]

    def run_of(self, task: str, protocol: str | None = None) -> Path:
        """The run directory of a champion, verified; CheckpointError where its files are not those promoted."""
        champion = self.champion(task, protocol)
        folder = self.folder(champion["task"], champion["protocol"])
        if not _is_champion(folder, champion):
            raise CheckpointError(
                f"{folder / champion['copy']}: its checkpoints are not those that were promoted; demote it with "
                f"scripts/leaderboard.py --demote {task}, or bring the folder back from {champion['run_dir']}"
            )
        return folder / champion["copy"]


def _copy(candidate: Candidate, copy: Path, digests: Mapping[str, str]) -> None:
    partial = copy.with_name(f".{copy.name}.partial")
    try:
        for folder in (partial, copy):
            shutil.rmtree(folder, ignore_errors=True)
        partial.mkdir(parents=True)
        for name in _COPIED:
            source = candidate.training / name
            if source.is_dir():
                shutil.copytree(source, partial / name)
            elif source.exists():
                shutil.copy2(source, partial / name)
        for section, files in candidate.files.items():
            for number, file in enumerate(files):
                target = partial / _evaluation_name(section, number)
                target.parent.mkdir(exist_ok=True)
                shutil.copy2(file, target)
        if not _is_whole(partial, digests):
            raise CheckpointError(f"{partial}: is not what {candidate.training} holds; start the same command again")
        os.replace(partial, copy)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise storage_error(copy, error) from None


def _is_whole(copy: Path, digests: Mapping[str, str]) -> bool:
    """Whether a copy holds these checkpoints and no others, none of them damaged."""
    if not copy.is_dir() or not (copy / "run.json").exists():
        return False
    return checkpoint_digests(copy) == digests and not any(fault(copy / "checkpoints" / name) for name in digests)


def _is_champion(folder: Path, champion: Mapping[str, Any]) -> bool:
    return _is_whole(folder / champion["copy"], champion["checkpoints"])


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); restore it from a copy, or delete it") from None
    if not isinstance(values, dict) or values.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(f"{path}: is not a champion of this version; restore it from a copy, or delete it")
    return values


def _without_history(champion: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in champion.items() if key != "history"}


def _evaluation_name(section: str, number: int) -> str:
    return f"evaluation/{section}.json" if number == 0 else f"evaluation/{section}_{number}.json"


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.+-]", "_", name)
