"""Scans of large data files, stored in the user's cache directory, so that a file is read as a whole only once.

A stored record is valid while the files have the same sizes and modification times, and a sample of the trajectories
has the same hashes.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int

from ups_jax.core.errors import StorageError
from ups_jax.core.files import atomic_file, cache_folder
from ups_jax.data.scan import ScanRecord, concatenate_records, read_chunk_record, trajectory_bytes, trajectory_chunks
from ups_jax.data.sources.base import Source, read_trajectories

# Records of smaller data are not stored: to read them again takes less than 0.1 s.
MIN_BYTES = 64 * 2**20
# Called with the ids and the fields of each chunk that is read; raises an error if they fail a check.
ChunkCheck = Callable[[Int[np.ndarray, " m"], Float32[np.ndarray, "m t *s c"]], None]


def scan_source(
    source: Source,
    stride: int,
    *,
    file_source: Source | None = None,
    check: ChunkCheck = lambda ids, values: None,
    check_settings: Sequence[object] = (),
) -> tuple[ScanRecord, list[str]]:
    """Return the record of all trajectories of a source, and a note if it cannot be stored.

    The data are read if the record is not stored or is out of date.

    Args:
        stride: Model step in stored frames.
        file_source: The reader of the files if `source` holds their content in memory; by default `source` itself.
        check: A further check of the fields, which data with a stored record have passed.
        check_settings: Everything that the result of `check` depends on, apart from the data.
    """
    stored = _StoredRecord.of(source, source if file_source is None else file_source, stride, check_settings)
    if stored is not None:
        record = stored.load()
        if record is not None:
            return record, []
    records = []
    for ids, values in trajectory_chunks(source):
        check(ids, values)
        records.append(read_chunk_record(source, ids, values, stride))
    record = concatenate_records(records)
    # Data with NaN or Inf are refused, and have to be written again.
    return record, [] if stored is None or not record.is_finite.all() else stored.save(record)


class _StoredRecord:
    """The file of the record of a source, which exists after the first scan.

    Args:
        files: The files of the source.
        key: Identifies the files, what is read from them, and the code that reads it.
    """

    def __init__(self, source: Source, stride: int, files: Sequence[Path], key: str) -> None:
        self._source, self._stride, self._key = source, stride, key
        self._path = cache_folder("scans") / f"{key}.npz"
        # Before the files are read: a change during the scan makes the record invalid.
        self._file_states = np.array([[file.stat().st_size, file.stat().st_mtime_ns] for file in files])

    @staticmethod
    def of(source: Source, file_source: Source, stride: int, check_settings: Sequence[object]) -> _StoredRecord | None:
        """Return the stored record of a source; None if the source is small or is not read from files."""
        files = source_files(file_source)
        if files is None or trajectory_bytes(source) * source.trajectories < MIN_BYTES:
            return None
        content = [
            [str(file.resolve()) for file in files],
            _reader_names(file_source),
            [source.channels, list(source.channel_names), list(source.input_channels), stride],
            repr(check_settings),
            _code_digest(),
        ]
        key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
        return _StoredRecord(source, stride, files, key)

    def load(self) -> ScanRecord | None:
        """Return the record, or None if it does not exist, is damaged or does not describe the files any more."""
        try:
            with self._path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                if not np.array_equal(arrays["file_states"], self._file_states):
                    return None
                record = ScanRecord(**{field.name: arrays[field.name] for field in fields(ScanRecord)})
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        return record if self._is_confirmed(record) else None

    def save(self, record: ScanRecord) -> list[str]:
        """Write the record; return a note if that fails."""
        try:
            with atomic_file(self._path) as temporary, temporary.open("wb") as file:
                np.savez(file, file_states=self._file_states, **vars(record))
        except StorageError as error:
            return [f"{self._source.name}: every opening reads the whole data, because {error}"]
        return []

    def _is_confirmed(self, record: ScanRecord) -> bool:
        """Return whether the first, the last and a random trajectory have the recorded hashes."""
        count = self._source.trajectories
        if len(record.points) != count:
            return False
        # Another one at each opening, so that a change that keeps size and modification time is noticed at last.
        ids = np.unique([0, secrets.randbelow(count), count - 1])
        samples = ((chunk, read_trajectories(self._source, chunk)) for chunk in ids[:, None])
        return all(
            np.array_equal(read_chunk_record(self._source, chunk, values, self._stride).hashes, record.hashes[chunk])
            for chunk, values in samples
        )


def source_files(source: Source) -> tuple[Path, ...] | None:
    """Return the files that a source reads, or None if it does not read from files or does not list them."""
    parts = getattr(source, "sources", None) or ([source.source] if hasattr(source, "source") else None)
    if parts is None:
        files: tuple[Path, ...] | None = getattr(source, "files", None)
        return files
    files_of_parts = [source_files(part) for part in parts]
    return None if None in files_of_parts else tuple(file for part in files_of_parts for file in part or ())


def _reader_names(source: Source) -> list[object]:
    """Return the class names of a source and of the sources that it combines or converts, with their settings."""
    parts = getattr(source, "sources", None) or ([source.source] if hasattr(source, "source") else [])
    own_fields: list[str] = [field.name for field in fields(source)] if is_dataclass(source) else []
    settings = [repr(getattr(source, name)) for name in own_fields if name not in ("source", "sources")]
    return [type(source).__name__, *settings, *(_reader_names(part) for part in parts)]


@cache
def _code_digest() -> str:
    """Return a digest of the code that reads and scans data."""
    folder = Path(__file__).parent
    hashed = hashlib.sha256()
    for path in sorted([folder / "scan.py", *(folder / "sources").glob("*.py")]):
        hashed.update(path.read_bytes())
    return hashed.hexdigest()
