"""Folders that the command `convert` writes: ArrayRecord shards with a manifest, for disks with slow access.

A window costs the records that hold its frames, and no byte more. ArrayRecord keeps a hash of every record and checks
it whenever one is read; opening compares the sizes of the shards with the manifest and reads none of them.
"""

from __future__ import annotations

import json
import os
import struct
import threading
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float32, Int

from ups_jax.core.commands import command
from ups_jax.core.errors import DataError
from ups_jax.core.files import crc32
from ups_jax.data import shard_folder
from ups_jax.data.shard_folder import ShardFolder, ShardManifest
from ups_jax.data.sources.base import Grid, selected
from ups_jax.data.sources.hdf5 import from_file_name

# For random access: nothing is read ahead, and no threads are kept for it.
_OPTIONS = "readahead_buffer_size:0,max_parallelism:1"

MANIFEST, VERSION = "manifest.json", 1
# Trajectory, place of the record in it, and the token of the conversion: no record passes for another.
HEADER = struct.Struct("<QII")
_MEND = f"convert the data again with `{command('convert')}`"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The file that was converted: its name without folders, its layout, and (bytes, mtime in ns) of what it reads."""

    name: str
    layout: str
    files: dict[str, tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Statistics of one channel; `squares` is the sum of squared distances from the mean."""

    count: int
    mean: float
    squares: float
    minimum: float
    maximum: float

    @property
    def std(self) -> float:
        """Standard deviation over all points, frames and trajectories."""
        return float((self.squares / self.count) ** 0.5)


@dataclass(frozen=True, kw_only=True)
class Shard(shard_folder.Shard):
    """A shard with the number of its first trajectory and its statistics."""

    first: int
    statistics: tuple[Spread, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest(ShardManifest):
    """A folder of shards. `coefficients` has a number for all trajectories or one for each, None where it is unknown;
    `found` names those that the origin counts as coefficients of the task. `statistics` are of `channels` (of all
    `channel_count` where they have no names) and then of `inputs`.
    """

    origin: Origin
    kind: Literal["transient", "steady"]
    trajectories: int
    frames: int
    record_frames: int
    shard_trajectories: int
    compression: str
    grid: Grid
    channel_count: int
    channels: tuple[str, ...]
    inputs: tuple[str, ...]
    coefficients: dict[str, float | tuple[float | None, ...]]
    found: tuple[str, ...]
    constants: dict[str, float]
    attributes: dict[str, str]
    boundary: dict[str, str]
    shards: tuple[Shard, ...] = ()
    statistics: tuple[Spread, ...] = ()
    version: int = VERSION

    @property
    def records_each(self) -> int:
        """Records of one trajectory."""
        return -(-self.frames // self.record_frames) + bool(self.inputs)

    @property
    def token(self) -> int:
        """Stands in every record: the conversion that it belongs to."""
        own = replace(self, shards=(), statistics=())
        return zlib.crc32(json.dumps(asdict(own), sort_keys=True).encode())


def _check(file: Path, manifest: Manifest) -> None:
    """Raise `DataError` for a manifest whose values no folder has."""
    if manifest.version != VERSION:
        raise DataError(f"{file}: is of version {manifest.version}, this program reads {VERSION}; {_MEND}")
    counts = (manifest.trajectories, manifest.frames, manifest.record_frames, manifest.shard_trajectories)
    if not all(0 < count < 2**31 for count in (*counts, manifest.channel_count, *manifest.grid.shape)):
        raise DataError(f"{file}: names a size that no data has (they are 1 to 2^31 - 1); {_MEND}")
    names, channels = manifest.channels, manifest.channel_count
    if len(set(names)) < len(names) or len(names) not in (0, channels):
        raise DataError(f"{file}: names {len(names)} channels of {channels}, or one twice; {_MEND}")


FOLDER = ShardFolder(
    manifest=Manifest, name=MANIFEST, pattern="data-*.array_record", activity="conversion", hint=_MEND, check=_check
)


def is_converted(path: str | Path) -> bool:
    """Return whether a folder has a manifest, of a complete conversion or of one that was interrupted."""
    return FOLDER.is_there(Path(path))


def read_manifest(path: str | Path) -> Manifest:
    """Return the manifest of a folder. Raises `DataError` where there is none, or it is not what was written."""
    return FOLDER.read(Path(path))


def check_sizes(path: str | Path, shards: Sequence[Shard]) -> None:
    """Raise `DataError` for a shard that is not there, or has not the size that it was written with."""
    for shard in shards:
        file = Path(path) / shard.file
        try:
            size = file.stat().st_size
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror}); copy it again, or {_MEND}") from None
        if size != shard.bytes:
            raise DataError(f"{file}: has {size} bytes, {shard.bytes} were written; copy it again, or {_MEND}")


def verify(path: str | Path, manifest: Manifest) -> None:
    """Read every byte of every shard. Raises `DataError` for the first whose checksum is not what was written."""
    check_sizes(path, manifest.shards)
    for shard in manifest.shards:
        file = Path(path) / shard.file
        if crc32(file) != shard.crc32:
            raise DataError(f"{file}: is damaged (its checksum is not what was written); copy it again, or {_MEND}")


def merged(parts: Sequence[Spread]) -> Spread:
    """The statistics of disjoint parts as those of the whole (Chan, Golub and LeVeque 1983)."""
    count = sum(part.count for part in parts)
    mean = sum(part.count * part.mean for part in parts) / count
    return Spread(
        count=count,
        mean=mean,
        squares=sum(part.squares + part.count * (part.mean - mean) ** 2 for part in parts),
        minimum=min(part.minimum for part in parts),
        maximum=max(part.maximum for part in parts),
    )


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
