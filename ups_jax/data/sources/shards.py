"""Folders that `scripts/convert_data.py` writes: ArrayRecord shards with a manifest, for disks with slow access.

A window costs the records that hold its frames, and no byte more. ArrayRecord keeps a hash of every record and checks
it whenever one is read; opening compares the sizes of the shards with the manifest and reads none of them.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int

from ups_jax.data.shards.manifest import HEADER, check_sizes, read_manifest
from ups_jax.data.sources.hdf5 import from_file_name
from ups_jax.data.sources.selection import selected
from ups_jax.errors import DataError

# For random access: nothing is read ahead, and no threads are kept for it.
_OPTIONS = "readahead_buffer_size:0,max_parallelism:1"


class ShardsSource:
    """The channels `names` of a folder of shards, or all. Raises `DataError` naming the file for any defect."""

    def __init__(self, path: str | Path, names: tuple[str, ...] | None = None) -> None:
        self.path, self.name = Path(path), str(path)
        self.manifest = read_manifest(path)
        check_sizes(path, self.manifest.shards)
        found = self.manifest.channels
        self.channel_names = selected(self.name, found, names) if found else ()
        self._places = [found.index(name) for name in self.channel_names] or list(range(self.manifest.channel_count))
        self.channels = len(self._places)
        self.trajectories, self.frames = self.manifest.trajectories, self.manifest.frames
        self.input_channels, self.grid = self.manifest.inputs, self.manifest.grid
        self.boundary = self.manifest.boundary
        self.__setstate__({})

    @property
    def original(self) -> str:
        """Name of the file that was converted."""
        return self.manifest.origin.name

    @property
    def layout(self) -> str:
        """The layout that it has."""
        return self.manifest.origin.layout

    def windows(self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Float32[np.ndarray, "b t *s c"]:
        """The given frames of the given trajectories."""
        each = self.manifest.record_frames
        wanted = ids[:, None] * self.manifest.records_each + frames // each
        numbers = np.unique(wanted)
        places = np.searchsorted(numbers, wanted)
        records = self._read(numbers, (self.manifest.channel_count,))
        whole = self._places == list(range(self.manifest.channel_count))
        result = np.empty((*frames.shape, *self.grid.shape, self.channels), np.float32)
        for row, (own, times) in enumerate(zip(places, frames % each, strict=True)):
            # Most windows lie in one record.
            for place in dict.fromkeys(own.tolist()):
                here = own == place
                found = records[place][times[here]]
                result[row, here] = found if whole else found[..., self._places]
        return result

    def inputs(self, ids: Int[np.ndarray, " b"]) -> Float32[np.ndarray, "b *s i"]:
        """The given fields of the given solutions."""
        result = np.empty((len(ids), *self.grid.shape, len(self.input_channels)), np.float32)
        if self.input_channels:
            each = self.manifest.records_each
            numbers, places = np.unique(ids * each + each - 1, return_inverse=True)
            records = self._read(numbers, (len(self.input_channels),))
            for row, place in enumerate(places):
                result[row] = records[place][0]
        return result

    def coefficient(self, name: str) -> Float[np.ndarray, " n"] | None:
        """As the converted file had it; of names that it does not hold, the number in its file name."""
        known = {key.lower(): value for key, value in self.manifest.coefficients.items()}
        found: Any = known.get(name.lower())
        if found is None and self.manifest.origin.layout != "described":
            found = from_file_name(Path(self.original), name)
        return None if found is None else np.broadcast_to(np.array(found, np.float64), (self.trajectories,))

    def found_coefficients(self) -> tuple[str, ...]:
        """Names that the converted file gave."""
        return self.manifest.found

    def constants(self) -> dict[str, float]:
        """Numbers that all trajectories share and that the converted file does not count as coefficients."""
        return self.manifest.constants

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_readers", "_lock", "_process")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()
        self._process = os.getpid()

    def _read(self, numbers: Int[np.ndarray, " r"], last: tuple[int, ...]) -> list[Float32[np.ndarray, "t *s c"]]:
        """The records of these ascending numbers, counted over all shards."""
        each = self.manifest.records_each
        whose = numbers // each // self.manifest.shard_trajectories
        result = []
        for shard in np.unique(whose).tolist():
            own = numbers[whose == shard]
            first = shard * self.manifest.shard_trajectories * each
            file = self.path / self.manifest.shards[shard].file
            try:
                content = self._reader(shard, file).read((own - first).tolist())
            except (RuntimeError, IndexError) as error:
                raise _damaged(file, " ".join(str(error).split())) from None
            for number, record in zip(own.tolist(), content, strict=True):
                if HEADER.unpack_from(record) != (number // each, number % each, self._token):
                    raise _damaged(file, f"record {number - first} is of another conversion or place")
                values = np.frombuffer(record, "<f4", offset=HEADER.size)
                result.append(values.reshape(-1, *self.grid.shape, *last))
        return result

    @property
    def _token(self) -> int:
        if "_known_token" not in self.__dict__:
            self._known_token = self.manifest.token
        return self._known_token

    def _reader(self, shard: int, file: Path) -> Any:
        # Imported here, as ArrayRecord takes its time and only readers of shards need it.
        from array_record.python.array_record_module import ArrayRecordReader

        with self._lock:
            if self._process != os.getpid():
                self._readers, self._process = {}, os.getpid()
            if shard not in self._readers:
                reader = ArrayRecordReader(str(file), _OPTIONS)
                if not reader.ok():
                    raise _damaged(file, "it is no ArrayRecord file, or it is truncated")
                self._readers[shard] = reader
            return self._readers[shard]


def _damaged(file: Path, reason: str) -> DataError:
    return DataError(f"{file}: is damaged ({reason}); copy it again, or convert the data again")
