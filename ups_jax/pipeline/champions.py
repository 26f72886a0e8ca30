"""The champions: for each task and evaluation protocol, a verified copy of the run that was promoted last.

The record `champion.json` is written last and atomically, so a promotion is complete or has no effect.
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
from typing import Any, NamedTuple

from ups_jax.core.commands import command
from ups_jax.core.errors import CheckpointError, ConfigError, first_line
from ups_jax.core.files import path_inside, read_json, storage_error, write_atomically
from ups_jax.core.locks import wait_for_lock
from ups_jax.pipeline.scores import Evaluation, finite_or_none
from ups_jax.pipeline.training_record import checkpoint_digests
from ups_jax.runs.checksums import find_damage
from ups_jax.runs.directory import utc_now

SCHEMA_VERSION = 2
# The parts of a training run that are copied: all that prediction and further training need.
_COPIED = ("run.json", "metrics.jsonl", "training_set.json", "checkpoints")
# Replaces `champion.json` after the only champion was demoted: its record, with the earlier champions.
_VACANT = "vacant.json"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A pipeline run to promote to champion.

    Attributes:
        run_dir: Folder of the run.
        training_dir: Folder of the training to copy.
        checkpoints: Digest of each checkpoint of the training at the time of the evaluation.
        label: Label of the champion on the leaderboard.
        scope: Digest of the settings, tasks and data of the full evaluation.
        evaluations: Evaluations by section, `small` or `full`.
    """

    run_id: str
    run_dir: Path
    training_dir: Path
    checkpoints: Mapping[str, str]
    config: Mapping[str, Any]
    label: str
    scope: str
    evaluations: Mapping[str, Evaluation]

    @property
    def full_evaluation(self) -> Evaluation:
        """The evaluation of the section `full`."""
        return self.evaluations["full"]


class Demotion(NamedTuple):
    """The record of a demoted champion, and of the former champion that replaces it (None if there is none)."""

    demoted: dict[str, Any]
    restored: dict[str, Any] | None


@dataclass(frozen=True)
class Champions:
    """The folder of all champions; `root/TASK/PROTOCOL` contains a record `champion.json` and the promoted runs."""

    root: Path

    def lock(self) -> AbstractContextManager[None]:
        """Return a context manager that locks the folder, so that only one process at a time promotes or demotes."""
        return wait_for_lock(self.root / ".lock")

    def read_all(self) -> list[dict[str, Any]]:
        """Return the records of all champions, the latest promotion first.

        Raises:
            CheckpointError: If a record is damaged.
        """
        records = [_read_record(path) for path in self.root.glob("*/*/champion.json")]
        return sorted(records, key=lambda item: str(item["promoted_at"]), reverse=True)

    def find_latest(self, section: str, task: str, protocol: str, scope: str | None = None) -> dict[str, Any] | None:
        """Return the record of the last promoted champion with this task and evaluation protocol, or None.

        Args:
            section: `small` or `full`, the evaluation whose protocol has to be equal.
            task: Names of the tasks, joined by `+`.
            protocol: Protocol digest, from `scores.protocol_digest`.
            scope: Required `scope` of the champion; None allows any.
        """
        records = [_read_record(path) for path in self.root.glob(f"{_safe_file_name(task)}/*/champion.json")]
        records = [item for item in records if item["evaluations"].get(section, {}).get("protocol") == protocol]
        records = [item for item in records if scope in (None, item["scope"])]
        return max(records, key=lambda item: str(item["promoted_at"]), default=None)

    def find_demoted(self, task: str, protocol: str, checkpoints: Set[str]) -> dict[str, Any] | None:
        """Return the last demoted champion of a task and protocol that had one of these checkpoints, or None."""
        history = self._read_history(self.folder(task, protocol))
        demoted = [item for item in history if "demoted_at" in item and not checkpoints.isdisjoint(item["seeds"])]
        return demoted[-1] if demoted else None

    def evaluation_files(self, champion: Mapping[str, Any], section: str) -> tuple[Path, ...]:
        """Return the evaluation files in the copied run of a champion, one per seed.

        Args:
            champion: Record of the champion.
            section: `small` or `full`.
        """
        folder = self.folder(champion["task"], champion["protocol"])
        return tuple(folder / name for name in champion["evaluations"][section]["files"])

    def folder(self, task: str, protocol: str) -> Path:
        """Return the folder of the champion of a task and protocol."""
        return self.root / _safe_file_name(task) / protocol

    def promote(self, candidate: Candidate) -> dict[str, Any]:
        """Make a candidate the champion of its task and protocol, and return its record.

        The caller must hold `lock()`.

        Raises:
            CheckpointError: If the copied checkpoints differ from the evaluated ones.
            StorageError: If a file cannot be written.
        """
        full, digests = candidate.full_evaluation, dict(candidate.checkpoints)
        folder = self.folder(full.task, full.protocol)
        copy_dir = folder / f"{_safe_file_name(candidate.run_id)}-{full.checkpoint}"
        if not _has_intact_checkpoints(copy_dir, digests):
            _copy_training(candidate, copy_dir, digests)
        _copy_evaluations(candidate, copy_dir)
        champion = {
            "schema_version": SCHEMA_VERSION,
            "task": full.task,
            "protocol": full.protocol,
            "run_id": candidate.run_id,
            "run_dir": str(candidate.run_dir),
            "promoted_at": utc_now(),
            "label": candidate.label,
            "scope": candidate.scope,
            "checkpoint": full.checkpoint,
            "seeds": sorted(full.checkpoints),
            "checkpoints": digests,
            "copy": copy_dir.name,
            "config": dict(candidate.config),
            "evaluations": {
                section: {
                    "protocol": evaluation.protocol,
                    "split": evaluation.meta["data"]["split"],
                    "horizon": evaluation.meta["horizon"],
                    "device": evaluation.device,
                    "files": [
                        f"{copy_dir.name}/{_evaluation_file(section, n)}" for n in range(len(evaluation.results))
                    ],
                    "numbers": finite_or_none(evaluation.numbers),
                }
                for section, evaluation in candidate.evaluations.items()
            },
            "metrics": finite_or_none(full.numbers),
            "history": self._read_history(folder),
        }
        write_atomically(folder / "champion.json", json.dumps(champion, indent=2) + "\n")
        return champion

    def _read_history(self, folder: Path) -> list[dict[str, Any]]:
        """Return the records of all champions, past and present, of a folder; the latest champion comes last."""
        for path in (folder / "champion.json", folder / _VACANT):
            if path.exists():
                last = _read_record(path)
                return [*last["history"], _without_history(last)]
        return []

    def demote(self, task: str, protocol: str | None, reason: str) -> Demotion:
        """Demote the champion of a task and restore the latest former champion with an intact copy.

        The caller must hold `lock()`.

        Args:
            task: Names of the tasks, joined by `+`.
            protocol: Protocol digest; None if the task has only one champion.

        Raises:
            ConfigError: If there is no such champion, or several.
        """
        champion = self.get_champion(task, protocol)
        folder = self.folder(champion["task"], champion["protocol"])
        demoted = champion | {"demoted_at": utc_now(), "reason": reason}
        earlier = [item for item in champion["history"] if "demoted_at" not in item]
        successor = next((item for item in reversed(earlier) if _has_intact_copy(folder, item)), None)
        if successor is None:
            write_atomically(folder / _VACANT, json.dumps(demoted, indent=2) + "\n")
            (folder / "champion.json").unlink()
            return Demotion(champion, None)
        history = [item for item in champion["history"] if item != successor]
        restored = successor | {"promoted_at": utc_now(), "history": [*history, _without_history(demoted)]}
        write_atomically(folder / "champion.json", json.dumps(restored, indent=2) + "\n")
        return Demotion(champion, restored)

    def get_champion(self, task: str, protocol: str | None = None) -> dict[str, Any]:
        """Return the record of the champion of a task.

        Args:
            task: Names of the tasks, joined by `+`.
            protocol: Protocol digest; None if the task has only one champion.

        Raises:
            ConfigError: If there is no such champion, or several.
        """
        records = [item for item in self.read_all() if item["task"] == task and protocol in (None, item["protocol"])]
        if not records:
            names = ", ".join(sorted({item["task"] for item in self.read_all()})) or "none"
            subject = f"task {task}" if protocol is None else f"task {task} and protocol {protocol}"
            raise ConfigError(
                f"{self.root}: contains no champion for {subject} (tasks with a champion: {names}); promote a run with "
                f"`{command('pipeline')}`"
            )
        if len(records) > 1:
            protocols = ", ".join(f"{item['protocol']} (run {item['run_id']})" for item in records)
            raise ConfigError(
                f"{self.root}: task {task} has several champions: {protocols}; choose one with --protocol"
            )
        return records[0]

    def run_directory(self, task: str, protocol: str | None = None) -> Path:
        """Verify the checkpoints in the copied run directory of a champion and return this directory.

        Args:
            task: Names of the tasks, joined by `+`.
            protocol: Protocol digest; None if the task has only one champion.

        Raises:
            ConfigError: If there is no such champion, or several.
            CheckpointError: If checkpoints in the copy are missing or have changed.
        """
        champion = self.get_champion(task, protocol)
        folder = self.folder(champion["task"], champion["protocol"])
        if not _has_intact_copy(folder, champion):
            raise CheckpointError(
                f"{folder / champion['copy']}: checkpoints of the champion have changed since its promotion; demote "
                f"this champion with `{command('leaderboard')} --demote {task}`, or restore the checkpoints from "
                f"{champion['run_dir']}"
            )
        return folder / champion["copy"]


def _copy_training(candidate: Candidate, copy_dir: Path, digests: Mapping[str, str]) -> None:
    """Copy the training of a candidate to a temporary folder, verify its checkpoints, and rename it to `copy`."""
    partial = copy_dir.with_name(f".{copy_dir.name}.partial")
    try:
        for folder in (partial, copy_dir):
            shutil.rmtree(folder, ignore_errors=True)
        partial.mkdir(parents=True)
        for name in _COPIED:
            source = candidate.training_dir / name
            if source.is_dir():
                shutil.copytree(source, partial / name)
            elif source.exists():
                shutil.copy2(source, partial / name)
        if not _has_intact_checkpoints(partial, digests):
            raise CheckpointError(
                f"{candidate.training_dir}: checkpoints have changed since their evaluation; run the same command again"
            )
        os.replace(partial, copy_dir)
    except OSError as error:
        raise storage_error(copy_dir, error) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _copy_evaluations(candidate: Candidate, copy_dir: Path) -> None:
    """Copy the evaluation files of a candidate into the copy of its run; older files there are replaced."""
    for section, evaluation in candidate.evaluations.items():
        for number, file in enumerate(evaluation.files):
            try:
                text = file.read_text(encoding="utf-8")
            except OSError as error:
                raise storage_error(file, error) from None
            write_atomically(copy_dir / _evaluation_file(section, number), text)


def _has_intact_checkpoints(copy_dir: Path, digests: Mapping[str, str]) -> bool:
    """Return whether a copied run has exactly the checkpoints with these digests, all of them undamaged."""
    if not copy_dir.is_dir() or not (copy_dir / "run.json").exists():
        return False
    return checkpoint_digests(copy_dir) == digests and not any(
        find_damage(copy_dir / "checkpoints" / name) for name in digests
    )


def _has_intact_copy(folder: Path, champion: Mapping[str, Any]) -> bool:
    """Return whether the checkpoints in the copied run of a champion are intact."""
    return _has_intact_checkpoints(folder / champion["copy"], champion["checkpoints"])


def _read_record(path: Path) -> dict[str, Any]:
    """Read and check the record of a champion, a file `champion.json` or `vacant.json`."""
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); restore or delete this file") from None
    if not isinstance(values, dict) or values.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(f"{path}: is not a champion record of this version; restore or delete this file")
    _check_record(path, values)
    return values


def _check_record(path: Path, champion: dict[str, Any]) -> None:
    """Raise `CheckpointError` if a record has paths outside its folder, or another task or protocol than its folder."""
    try:
        for item in (champion, *champion["history"]):
            path_inside(path, "copy", item["copy"], CheckpointError)
            for section in item["evaluations"].values():
                for name in section["files"]:
                    path_inside(path, "files", name, CheckpointError)
            if (_safe_file_name(item["task"]), item["protocol"]) != (path.parent.parent.name, path.parent.name):
                subject = f"protocol {item['protocol']!r:.200} of task {item['task']!r:.200}"
                raise CheckpointError(f"{path}: is the record of {subject}; move this file to the folder of that task")
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: is not a champion record ({first_line(error)}); restore or delete this file"
        ) from None


def _without_history(champion: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a champion without its `history`, the records of earlier champions."""
    return {key: value for key, value in champion.items() if key != "history"}


def _evaluation_file(section: str, seed_index: int) -> str:
    """Return the path of an evaluation file, relative to the copied run."""
    return f"evaluation/{section}.json" if seed_index == 0 else f"evaluation/{section}_{seed_index}.json"


def _safe_file_name(name: str) -> str:
    """Return a name with `_` in place of characters that are unsafe in file names; `..` becomes `__`."""
    safe = re.sub(r"[^A-Za-z0-9_.+-]", "_", name)
    return safe.replace(".", "_") if set(safe) <= {"."} else safe
