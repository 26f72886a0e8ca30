"""The record `metadata.json` of a training: its cache key, the digests of its checkpoints, and its evaluations.

The records of all runs are searched, so that no training or evaluation is repeated.
"""

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
from ups_jax.runs.directory import RunDirectory, utc_now

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class RecordedTraining:
    """A training run in the folder `path`, with its record `metadata.json`."""

    path: Path

    @property
    def record_path(self) -> Path:
        """The path of the record."""
        return self.path / "metadata.json"

    def read(self) -> dict[str, Any]:
        """Return the record, or an empty dictionary if it is missing, damaged or of another schema version."""
        try:
            values = read_json(self.record_path)
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) and values.get("schema_version") == SCHEMA_VERSION else {}

    def record_training(
        self, *, train_key: str, stage: str, config_hash: str, seconds: float | None, peak_memory_mib: float | None
    ) -> None:
        """Write the record of a finished training, with the current digests of its checkpoints.

        Args:
            train_key: Cache key of the training.
            stage: Trained stage, or `all`.
            config_hash: Digest of the configuration.
            seconds: Wall-clock time of the last training process.
            peak_memory_mib: Peak memory of the last training process, in MiB.

        Raises:
            CheckpointError: If the training has no checkpoint.
        """
        checkpoints = checkpoint_digests(self.path)
        if not checkpoints:
            raise CheckpointError(
                f"{self.path}: contains no checkpoint after training; read the log of the training step"
            )
        self._write(
            {
                "schema_version": SCHEMA_VERSION,
                "created_at": utc_now(),
                "config_hash": config_hash,
                "train_key": train_key,
                "stage": stage,
                "trained": True,
                "trained_at": utc_now(),
                "seconds": seconds,
                "peak_memory_mib": peak_memory_mib,
                "checkpoints": checkpoints,
                "arch": None,
                "last_small_eval": None,
                "last_full_eval": None,
                "evaluations": {},
            }
        )

    def code_revision(self) -> str | None:
        """Return the git description of the code that trained the run, or None if it is not recorded."""
        run = RunDirectory(self.path)
        revision = run.read_record().get("git") if run.has_record() else None
        return None if revision is None else str(revision)

    def find_problem(self) -> str | None:
        """Return the reason why the training cannot be reused, or None if its checkpoints match the record."""
        digests = self.read().get("checkpoints")
        if not digests or not RunDirectory(self.path).has_record():
            return "it has no record"
        for name, digest in digests.items():
            folder = self.path / "checkpoints" / name
            if not folder.is_dir():
                return f"checkpoints/{name} is missing"
            reason = find_damage(folder)
            if reason is None and content_digest(folder) != digest:
                reason = "its files have changed since the training"
            if reason is not None:
                return f"checkpoints/{name}: {reason}"
        return None

    def record_evaluation(
        self, section: str, key: str, file: Path, numbers: Mapping[str, Any], arch: Mapping[str, Any]
    ) -> None:
        """Add an evaluation to the record.

        Args:
            section: `small` or `full`.
            key: Cache key of the evaluation.
            file: File of the evaluation.
            numbers: Metrics by name, which replace the metrics of the section's previous evaluation.
            arch: Fingerprint of the model's architecture.
        """
        values = self.read()
        entry = {"path": os.path.relpath(file, self.path), "sha256": _sha256(file), "section": section, "at": utc_now()}
        evaluations = values["evaluations"] | {key: entry}
        last = {f"last_{section}_eval": dict(numbers), f"last_{section}_eval_at": utc_now(), "arch": arch}
        self._write(values | last | {"evaluations": evaluations})

    def find_evaluation(self, key: str) -> Path | None:
        """Return the evaluation file with this cache key, or None if it is missing or has changed."""
        entry = self.read().get("evaluations", {}).get(key)
        if entry is None:
            return None
        file = self.path / entry["path"]
        return Path(os.path.normpath(file)) if file.is_file() and _sha256(file) == entry["sha256"] else None

    def _write(self, values: Mapping[str, Any]) -> None:
        """Write the record to its file atomically."""
        write_atomically(self.record_path, json.dumps(values, indent=2) + "\n")


def checkpoint_digests(path: Path) -> dict[str, str]:
    """Return the content digest of each checkpoint of the training run in the folder `path`, by `STAGE/STEP`."""
    folders = sorted((path / "checkpoints").glob("*/*"))
    return {
        f"{item.parent.name}/{item.name}": content_digest(item)
        for item in folders
        if item.is_dir() and item.name.isdecimal()
    }


def find_training(runs: Path, key: str) -> RecordedTraining | None:
    """Return the latest training in all runs that has this cache key and intact checkpoints, or None.

    Args:
        runs: The folder of all runs.
        key: Cache key of the training.
    """
    trainings = (RecordedTraining(record.parent) for record in runs.glob("*/train*/metadata.json"))
    matching = [item for item in trainings if item.read().get("train_key") == key]
    matching.sort(key=lambda item: str(item.read()["trained_at"]), reverse=True)
    return next((item for item in matching if item.find_problem() is None), None)


def _sha256(file: Path) -> str:
    """Return the SHA-256 digest of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
