"""What is known of a training beside its checkpoints, `metadata.json`: the key that finds it again, the digests that
verify it, and its evaluations. All runs are looked through, so that what was computed once is not computed again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ups_jax.core.errors import CheckpointError
from ups_jax.core.files import read_json, write_atomically
from ups_jax.runs.checksums import content_digest, find_damage
from ups_jax.runs.directory import RunDirectory, now

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class RecordedTraining:
    """A training run in the folder `path`."""

    path: Path

    @property
    def record_path(self) -> Path:
        return self.path / "metadata.json"

    def read(self) -> dict[str, Any]:
        """The record; empty where there is none that can be read, which verifies nothing."""
        try:
            values = read_json(self.record_path)
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) and values.get("schema_version") == SCHEMA_VERSION else {}

    def record(
        self, *, train_key: str, stage: str, config_hash: str, seconds: float | None, peak_memory_mib: float | None
    ) -> None:
        """Write that it is trained, with the digests of its checkpoints as they are now, and what its last start took.
        Raises `CheckpointError`."""
        checkpoints = checkpoint_digests(self.path)
        if not checkpoints:
            raise CheckpointError(f"{self.path}: holds no checkpoint after its training; look at the log of that step")
        self._write(
            {
                "schema_version": SCHEMA_VERSION,
                "created_at": now(),
                "config_hash": config_hash,
                "train_key": train_key,
                "stage": stage,
                "trained": True,
                "trained_at": now(),
                "seconds": seconds,
                "peak_memory_mib": peak_memory_mib,
                "checkpoints": checkpoints,
                "arch": None,
                "last_small_eval": None,
                "last_full_eval": None,
                "evaluations": {},
            }
        )

    def revision(self) -> str | None:
        """The version of the code that trained it, as git describes it."""
        run = RunDirectory(self.path)
        revision = run.read().get("git") if run.exists() else None
        return None if revision is None else str(revision)

    def fault(self) -> str | None:
        """Why the training cannot be used, None where its checkpoints are those that were recorded."""
        known = self.read().get("checkpoints")
        if not known or not RunDirectory(self.path).exists():
            return "it has no record"
        for name, digest in known.items():
            folder = self.path / "checkpoints" / name
            if not folder.is_dir():
                return f"checkpoints/{name} is missing"
            reason = find_damage(folder)
            if reason is None and content_digest(folder) != digest:
                reason = "its files are not those that were trained"
            if reason is not None:
                return f"checkpoints/{name}: {reason}"
        return None

    def record_evaluation(self, section: str, key: str, file: Path, numbers: Mapping[str, Any], arch: Any) -> None:
        """Keep where an evaluation lies, and its numbers as the last ones of its section."""
        values = self.read()
        entry = {"path": os.path.relpath(file, self.path), "sha256": _sha256(file), "section": section, "at": now()}
        evaluations = values["evaluations"] | {key: entry}
        last = {f"last_{section}_eval": dict(numbers), f"last_{section}_eval_at": now(), "arch": arch}
        self._write(values | last | {"evaluations": evaluations})

    def evaluation(self, key: str) -> Path | None:
        """The file of an evaluation that was kept under a key; None where there is none, or it was changed since."""
        entry = self.read().get("evaluations", {}).get(key)
        if entry is None:
            return None
        file = self.path / entry["path"]
        return Path(os.path.normpath(file)) if file.is_file() and _sha256(file) == entry["sha256"] else None

    def _write(self, values: Mapping[str, Any]) -> None:
        write_atomically(self.record_path, json.dumps(values, indent=2) + "\n")


def checkpoint_digests(path: Path) -> dict[str, str]:
    """The digest of every saved checkpoint of a training run, by `stage/step`."""
    folders = sorted((path / "checkpoints").glob("*/*"))
    return {
        f"{item.parent.name}/{item.name}": content_digest(item)
        for item in folders
        if item.is_dir() and item.name.isdecimal()
    }


def find_training(runs: Path, key: str) -> RecordedTraining | None:
    """A training of any run with this key whose checkpoints verify, the latest first."""
    trainings = (RecordedTraining(record.parent) for record in runs.glob("*/train*/metadata.json"))
    known = [item for item in trainings if item.read().get("train_key") == key]
    known.sort(key=lambda item: str(item.read()["trained_at"]), reverse=True)
    return next((item for item in known if item.fault() is None), None)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
