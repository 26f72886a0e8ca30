"""The champions: for each task and protocol the run that was promoted last, as a verified copy of its own.

`champion.json` is written last and at once, so that a champion is promoted wholly or not at all.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ups_jax.core.commands import command
from ups_jax.core.errors import CheckpointError, ConfigError, first_line
from ups_jax.core.files import path_inside, read_json, storage_error, write_atomically
from ups_jax.core.locks import wait_for_lock
from ups_jax.pipeline.scores import Evaluation, plain
from ups_jax.pipeline.training_record import checkpoint_digests
from ups_jax.runs.checksums import find_damage
from ups_jax.runs.directory import now

SCHEMA_VERSION = 2
# What of a training run is copied: all that is needed to predict with it and to go on with it.
_COPIED = ("run.json", "metrics.jsonl", "checkpoints")
# In place of `champion.json` after the last champion was taken down: his record, with all before him.
_VACANT = "vacant.json"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What is promoted: a training of the run `run_id` with the digests of its checkpoints as they were evaluated, its
    configuration, and its evaluations by section. `label` is what the leaderboard calls it, `scope` a digest over what
    a full evaluation is of."""

    run_id: str
    run_dir: Path
    training: Path
    checkpoints: Mapping[str, str]
    config: Mapping[str, Any]
    label: str
    scope: str
    evaluations: Mapping[str, Evaluation]

    @property
    def full(self) -> Evaluation:
        return self.evaluations["full"]


@dataclass(frozen=True)
class Champions:
    """The folder of all champions: `root/TASK/PROTOCOL/champion.json`, and the copies beside it."""

    root: Path

    def lock(self) -> AbstractContextManager[None]:
        """Hold all champions for a comparison with a promotion; others wait."""
        return wait_for_lock(self.root / ".lock")

    def read_all(self) -> list[dict[str, Any]]:
        """Every champion, the one that was promoted last first. Raises `CheckpointError` for a damaged record."""
        found = [_read(path) for path in self.root.glob("*/*/champion.json")]
        return sorted(found, key=lambda item: str(item["promoted_at"]), reverse=True)

    def find(self, section: str, task: str, protocol: str, scope: str | None = None) -> dict[str, Any] | None:
        """The champion of a task that was evaluated by a protocol, with `scope` one of that scope. Those of other tasks
        are not looked at."""
        known = [_read(path) for path in self.root.glob(f"{_file_name(task)}/*/champion.json")]
        known = [item for item in known if item["evaluations"].get(section, {}).get("protocol") == protocol]
        known = [item for item in known if scope in (None, item["scope"])]
        return max(known, key=lambda item: str(item["promoted_at"]), default=None)

    def find_demoted(self, task: str, protocol: str, checkpoints: Set[str]) -> dict[str, Any] | None:
        """The record of a champion that was taken down and has one of these checkpoints."""
        history = self._history(self.folder(task, protocol))
        known = [item for item in history if "demoted_at" in item and not checkpoints.isdisjoint(item["seeds"])]
        return known[-1] if known else None

    def files(self, champion: Mapping[str, Any], section: str) -> tuple[Path, ...]:
        """A champion's evaluation in its copy, of each seed."""
        folder = self.folder(champion["task"], champion["protocol"])
        return tuple(folder / name for name in champion["evaluations"][section]["files"])

    def folder(self, task: str, protocol: str) -> Path:
        return self.root / _file_name(task) / protocol

    def promote(self, candidate: Candidate) -> dict[str, Any]:
        """Make the candidate the champion of its protocol, in place of whoever is; to be called under the lock.

        The copy of the run is verified against the evaluated digests before it counts. Raises `CheckpointError`,
        `StorageError`.
        """
        full, digests = candidate.full, dict(candidate.checkpoints)
        folder = self.folder(full.task, full.protocol)
        copy = folder / f"{_file_name(candidate.run_id)}-{full.checkpoint}"
        if not _is_whole(copy, digests):
            _copy(candidate, copy, digests)
        _copy_evaluations(candidate, copy)
        champion = {
            "schema_version": SCHEMA_VERSION,
            "task": full.task,
            "protocol": full.protocol,
            "run_id": candidate.run_id,
            "run_dir": str(candidate.run_dir),
            "promoted_at": now(),
            "label": candidate.label,
            "scope": candidate.scope,
            "checkpoint": full.checkpoint,
            "seeds": sorted(full.checkpoints),
            "checkpoints": digests,
            "copy": copy.name,
            "config": dict(candidate.config),
            "evaluations": {
                section: {
                    "protocol": evaluated.protocol,
                    "split": evaluated.meta["data"]["split"],
                    "horizon": evaluated.meta["horizon"],
                    "device": evaluated.device,
                    "files": [f"{copy.name}/{_evaluation_name(section, n)}" for n in range(len(evaluated.results))],
                    "numbers": plain(evaluated.numbers),
                }
                for section, evaluated in candidate.evaluations.items()
            },
            "metrics": plain(full.numbers),
            "history": self._history(folder),
        }
        write_atomically(folder / "champion.json", json.dumps(champion, indent=2) + "\n")
        return champion

    def _history(self, folder: Path) -> list[dict[str, Any]]:
        """Who was champion here, the present one last; where the last one was taken down, he."""
        for path in (folder / "champion.json", folder / _VACANT):
            if path.exists():
                last = _read(path)
                return [*last["history"], _without_history(last)]
        return []

    def demote(self, task: str, protocol: str | None, reason: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Take the champion of a task down: the one before it is champion again where its copy verifies, else none is.
        Gives both; to be called under the lock. ConfigError where there is no such champion."""
        champion = self.get(task, protocol)
        folder = self.folder(champion["task"], champion["protocol"])
        demoted = champion | {"demoted_at": now(), "reason": reason}
        earlier = [item for item in champion["history"] if "demoted_at" not in item]
        successor = next((item for item in reversed(earlier) if _is_champion(folder, item)), None)
        if successor is None:
            write_atomically(folder / _VACANT, json.dumps(demoted, indent=2) + "\n")
            (folder / "champion.json").unlink()
            return champion, None
        kept = [item for item in champion["history"] if item != successor]
        restored = successor | {"promoted_at": now(), "history": [*kept, _without_history(demoted)]}
        write_atomically(folder / "champion.json", json.dumps(restored, indent=2) + "\n")
        return champion, restored

    def get(self, task: str, protocol: str | None = None) -> dict[str, Any]:
        """The champion of a task; ConfigError where there is none, or several and `protocol` does not say which."""
        known = [item for item in self.read_all() if item["task"] == task and protocol in (None, item["protocol"])]
        if not known:
            names = ", ".join(sorted({item["task"] for item in self.read_all()})) or "none"
            said = task if protocol is None else f"{task} by protocol {protocol}"
            raise ConfigError(
                f"{self.root}: has no champion of {said} (there are champions of: {names}); make one with "
                f"`{command('pipeline')}`"
            )
        if len(known) > 1:
            each = ", ".join(f"{item['protocol']} (run {item['run_id']})" for item in known)
            raise ConfigError(f"{self.root}: {task} has a champion by each of the protocols {each}; give --protocol")
        return known[0]

    def run_directory(self, task: str, protocol: str | None = None) -> Path:
        """The run directory of a champion, verified; CheckpointError where its files are not those promoted."""
        champion = self.get(task, protocol)
        folder = self.folder(champion["task"], champion["protocol"])
        if not _is_champion(folder, champion):
            raise CheckpointError(
                f"{folder / champion['copy']}: its checkpoints are not those that were promoted; demote it with "
                f"`{command('leaderboard')} --demote {task}`, or bring the folder back from {champion['run_dir']}"
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
        if not _is_whole(partial, digests):
            raise CheckpointError(
                f"{candidate.training}: its checkpoints are not those that were evaluated; start the same command again"
            )
        os.replace(partial, copy)
    except OSError as error:
        raise storage_error(copy, error) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _copy_evaluations(candidate: Candidate, copy: Path) -> None:
    """Also into a copy that was there already, whose evaluations may be others."""
    for section, evaluated in candidate.evaluations.items():
        for number, file in enumerate(evaluated.files):
            try:
                text = file.read_text(encoding="utf-8")
            except OSError as error:
                raise storage_error(file, error) from None
            write_atomically(copy / _evaluation_name(section, number), text)


def _is_whole(copy: Path, digests: Mapping[str, str]) -> bool:
    """Whether a copy holds these checkpoints and no others, none of them damaged."""
    if not copy.is_dir() or not (copy / "run.json").exists():
        return False
    return checkpoint_digests(copy) == digests and not any(find_damage(copy / "checkpoints" / name) for name in digests)


def _is_champion(folder: Path, champion: Mapping[str, Any]) -> bool:
    return _is_whole(folder / champion["copy"], champion["checkpoints"])


def _read(path: Path) -> dict[str, Any]:
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); restore it from a copy, or delete it") from None
    if not isinstance(values, dict) or values.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(f"{path}: is not a champion of this version; restore it from a copy, or delete it")
    _check_paths(path, values)
    return values


def _check_paths(path: Path, champion: dict[str, Any]) -> None:
    """Raise `CheckpointError` for a record by which a champion, or one before him, is not in the record's folder."""
    try:
        for item in (champion, *champion["history"]):
            path_inside(path, "copy", item["copy"], CheckpointError)
            for section in item["evaluations"].values():
                for name in section["files"]:
                    path_inside(path, "files", name, CheckpointError)
            if (_file_name(item["task"]), item["protocol"]) != (path.parent.parent.name, path.parent.name):
                told = f"protocol {item['protocol']!r:.200} of task {item['task']!r:.200}"
                raise CheckpointError(f"{path}: is of {told}, and lies in the folder of another; move it there")
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: is not a champion's record ({first_line(error)}); restore it from a copy, or delete it"
        ) from None


def _without_history(champion: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in champion.items() if key != "history"}


def _evaluation_name(section: str, number: int) -> str:
    return f"evaluation/{section}.json" if number == 0 else f"evaluation/{section}_{number}.json"


def _file_name(name: str) -> str:
    """The name with nothing in it that parts folders, and never that of the folder above."""
    plain = re.sub(r"[^A-Za-z0-9_.+-]", "_", name)
    return plain.replace(".", "_") if set(plain) <= {"."} else plain
