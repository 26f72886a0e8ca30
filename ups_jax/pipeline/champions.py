"""The champions: a verified copy of the run that was promoted last for each task and evaluation protocol.

`champion.json` is written last and atomically, so a promotion is complete or has no effect.
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
from ups_jax.pipeline.scores import Evaluation, finite_or_none
from ups_jax.pipeline.training_record import checkpoint_digests
from ups_jax.runs.checksums import find_damage
from ups_jax.runs.directory import now

SCHEMA_VERSION = 2
# The parts of a training run that are copied: all that prediction and further training need.
_COPIED = ("run.json", "metrics.jsonl", "checkpoints")
# Replaces `champion.json` after the only champion was demoted: its record, with the earlier champions.
_VACANT = "vacant.json"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A run to promote.

    Attributes:
        run_id: Id of the run.
        run_dir: Folder of the run.
        training: Folder of the training to copy.
        checkpoints: Digest of each checkpoint of the training at the time of the evaluation.
        config: Configuration of the training.
        label: Label of the champion on the leaderboard.
        scope: Digest of what the full evaluation covers.
        evaluations: The evaluations by section, `small` and `full`.
    """

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
        """The full evaluation."""
        return self.evaluations["full"]


@dataclass(frozen=True)
class Champions:
    """The folder of all champions: `root/TASK/PROTOCOL/champion.json` and the copies of the runs next to it."""

    root: Path

    def lock(self) -> AbstractContextManager[None]:
        """Return a context manager that locks all champions for a comparison with promotion; other processes wait."""
        return wait_for_lock(self.root / ".lock")

    def read_all(self) -> list[dict[str, Any]]:
        """Return the records of all champions, the last promoted first.

        Raises:
            CheckpointError: If a record is damaged.
        """
        records = [_read(path) for path in self.root.glob("*/*/champion.json")]
        return sorted(records, key=lambda item: str(item["promoted_at"]), reverse=True)

    def find(self, section: str, task: str, protocol: str, scope: str | None = None) -> dict[str, Any] | None:
        """Return the last promoted champion of a task that was evaluated by a protocol, or None.

        Args:
            section: `small` or `full`, the evaluation that has the protocol.
            task: Names of the tasks, joined by `+`.
            protocol: Protocol digest of the evaluation.
            scope: Required scope of the champion, or None for any.
        """
        records = [_read(path) for path in self.root.glob(f"{_file_name(task)}/*/champion.json")]
        records = [item for item in records if item["evaluations"].get(section, {}).get("protocol") == protocol]
        records = [item for item in records if scope in (None, item["scope"])]
        return max(records, key=lambda item: str(item["promoted_at"]), default=None)

    def find_demoted(self, task: str, protocol: str, checkpoints: Set[str]) -> dict[str, Any] | None:
        """Return the record of the last demoted champion that has one of these checkpoints, or None."""
        history = self._history(self.folder(task, protocol))
        demoted = [item for item in history if "demoted_at" in item and not checkpoints.isdisjoint(item["seeds"])]
        return demoted[-1] if demoted else None

    def evaluation_files(self, champion: Mapping[str, Any], section: str) -> tuple[Path, ...]:
        """Return the evaluation files in a champion's copy, one per seed.

        Args:
            champion: Record of the champion.
            section: `small` or `full`.
        """
        folder = self.folder(champion["task"], champion["protocol"])
        return tuple(folder / name for name in champion["evaluations"][section]["files"])

    def folder(self, task: str, protocol: str) -> Path:
        """Return the folder of a task and protocol."""
        return self.root / _file_name(task) / protocol

    def promote(self, candidate: Candidate) -> dict[str, Any]:
        """Make the candidate the champion of its protocol and return the new record; call it under the lock.

        Raises:
            CheckpointError: If the copied checkpoints are not those that were evaluated.
            StorageError: If a file cannot be written.
        """
        full, digests = candidate.full, dict(candidate.checkpoints)
        folder = self.folder(full.task, full.protocol)
        copy = folder / f"{_file_name(candidate.run_id)}-{full.checkpoint}"
        if not _is_intact(copy, digests):
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
                    "protocol": evaluation.protocol,
                    "split": evaluation.meta["data"]["split"],
                    "horizon": evaluation.meta["horizon"],
                    "device": evaluation.device,
                    "files": [f"{copy.name}/{_evaluation_name(section, n)}" for n in range(len(evaluation.results))],
                    "numbers": finite_or_none(evaluation.numbers),
                }
                for section, evaluation in candidate.evaluations.items()
            },
            "metrics": finite_or_none(full.numbers),
            "history": self._history(folder),
        }
        write_atomically(folder / "champion.json", json.dumps(champion, indent=2) + "\n")
        return champion

    def _history(self, folder: Path) -> list[dict[str, Any]]:
        """Return the records of all champions of a folder; the current or last demoted champion comes last."""
        for path in (folder / "champion.json", folder / _VACANT):
            if path.exists():
                last = _read(path)
                return [*last["history"], _without_history(last)]
        return []

    def demote(self, task: str, protocol: str | None, reason: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Demote the champion of a task; call it under the lock.

        The latest earlier champion with an intact copy becomes champion again; if there is none, the task has no
        champion.

        Args:
            task: Names of the tasks, joined by `+`.
            protocol: Protocol digest; None if the task has one champion.
            reason: Reason to record.

        Returns:
            The demoted champion, and the restored one or None.

        Raises:
            ConfigError: If there is no such champion, or several.
        """
        champion = self.get(task, protocol)
        folder = self.folder(champion["task"], champion["protocol"])
        demoted = champion | {"demoted_at": now(), "reason": reason}
        earlier = [item for item in champion["history"] if "demoted_at" not in item]
        successor = next((item for item in reversed(earlier) if _is_champion(folder, item)), None)
        if successor is None:
            write_atomically(folder / _VACANT, json.dumps(demoted, indent=2) + "\n")
            (folder / "champion.json").unlink()
            return champion, None
        history = [item for item in champion["history"] if item != successor]
        restored = successor | {"promoted_at": now(), "history": [*history, _without_history(demoted)]}
        write_atomically(folder / "champion.json", json.dumps(restored, indent=2) + "\n")
        return champion, restored

    def get(self, task: str, protocol: str | None = None) -> dict[str, Any]:
        """Return the record of the champion of a task.

        Args:
            task: Names of the tasks, joined by `+`.
            protocol: Protocol digest; None if the task has one champion.

        Raises:
            ConfigError: If there is no such champion, or several.
        """
        records = [item for item in self.read_all() if item["task"] == task and protocol in (None, item["protocol"])]
        if not records:
            names = ", ".join(sorted({item["task"] for item in self.read_all()})) or "none"
            subject = task if protocol is None else f"{task} by protocol {protocol}"
            raise ConfigError(
                f"{self.root}: has no champion of {subject} (tasks with a champion: {names}); promote one with "
                f"`{command('pipeline')}`"
            )
        if len(records) > 1:
            protocols = ", ".join(f"{item['protocol']} (run {item['run_id']})" for item in records)
            raise ConfigError(f"{self.root}: {task} has a champion for each protocol: {protocols}; set --protocol")
        return records[0]

    def run_directory(self, task: str, protocol: str | None = None) -> Path:
        """Return the verified copy of a champion's run directory.

        Args:
            task: Names of the tasks, joined by `+`.
            protocol: Protocol digest; None if the task has one champion.

        Raises:
            ConfigError: If there is no such champion, or several.
            CheckpointError: If the checkpoints in the copy are missing or have changed.
        """
        champion = self.get(task, protocol)
        folder = self.folder(champion["task"], champion["protocol"])
        if not _is_champion(folder, champion):
            raise CheckpointError(
                f"{folder / champion['copy']}: its checkpoints are not those that were promoted; demote it with "
                f"`{command('leaderboard')} --demote {task}`, or restore the folder from {champion['run_dir']}"
            )
        return folder / champion["copy"]


def _copy(candidate: Candidate, copy: Path, digests: Mapping[str, str]) -> None:
    """Copy a training run and verify its checkpoints before the copy gets its name."""
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
        if not _is_intact(partial, digests):
            raise CheckpointError(
                f"{candidate.training}: its checkpoints are not those that were evaluated; run the same command again"
            )
        os.replace(partial, copy)
    except OSError as error:
        raise storage_error(copy, error) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _copy_evaluations(candidate: Candidate, copy: Path) -> None:
    """Copy the evaluations, also into an existing copy of the run, whose evaluations may be older."""
    for section, evaluation in candidate.evaluations.items():
        for number, file in enumerate(evaluation.files):
            try:
                text = file.read_text(encoding="utf-8")
            except OSError as error:
                raise storage_error(file, error) from None
            write_atomically(copy / _evaluation_name(section, number), text)


def _is_intact(copy: Path, digests: Mapping[str, str]) -> bool:
    """Return whether a copy has exactly these checkpoints, all of them undamaged."""
    if not copy.is_dir() or not (copy / "run.json").exists():
        return False
    return checkpoint_digests(copy) == digests and not any(find_damage(copy / "checkpoints" / name) for name in digests)


def _is_champion(folder: Path, champion: Mapping[str, Any]) -> bool:
    """Return whether the copy of a champion is intact."""
    return _is_intact(folder / champion["copy"], champion["checkpoints"])


def _read(path: Path) -> dict[str, Any]:
    """Return a champion's record after checking it."""
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); restore it from a copy, or delete it") from None
    if not isinstance(values, dict) or values.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(f"{path}: is not a champion record of this version; restore it from a copy, or delete it")
    _check_paths(path, values)
    return values


def _check_paths(path: Path, champion: dict[str, Any]) -> None:
    """Raise `CheckpointError` if a path, task or protocol of a record does not match the record's folder."""
    try:
        for item in (champion, *champion["history"]):
            path_inside(path, "copy", item["copy"], CheckpointError)
            for section in item["evaluations"].values():
                for name in section["files"]:
                    path_inside(path, "files", name, CheckpointError)
            if (_file_name(item["task"]), item["protocol"]) != (path.parent.parent.name, path.parent.name):
                subject = f"protocol {item['protocol']!r:.200} of task {item['task']!r:.200}"
                raise CheckpointError(f"{path}: is the record of {subject}; move it to the folder of that protocol")
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: is not a champion record ({first_line(error)}); restore it from a copy, or delete it"
        ) from None


def _without_history(champion: Mapping[str, Any]) -> dict[str, Any]:
    """Return a champion's record without the earlier champions."""
    return {key: value for key, value in champion.items() if key != "history"}


def _evaluation_name(section: str, seed_index: int) -> str:
    """Return the file name of an evaluation in the copy."""
    return f"evaluation/{section}.json" if seed_index == 0 else f"evaluation/{section}_{seed_index}.json"


def _file_name(name: str) -> str:
    """Return the name with all characters replaced that are unsafe in a file name; dots alone are replaced too."""
    safe = re.sub(r"[^A-Za-z0-9_.+-]", "_", name)
    return safe.replace(".", "_") if set(safe) <= {"."} else safe
