"""Folders that the command `convert` writes: ArrayRecord shards with a manifest, for disks with slow random access.

A record contains some frames of one trajectory, and a window is read from the records that contain its frames.
ArrayRecord checks a hash of every record that it reads. Opening a folder only compares the sizes of the shards with the
manifest.
"""

from __future__ import annotations

import json
import os
import struct
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float, Float32, Int
from pydantic import Field

from ups_jax.core.commands import command
from ups_jax.core.errors import DataError
from ups_jax.core.files import crc32
from ups_jax.data import shard_folder
from ups_jax.data.shard_folder import ShardFolderFormat, ShardManifest
from ups_jax.data.sources.base import Grid, match_name, select_channels
from ups_jax.data.sources.hdf5 import number_in_file_name

# For random access: no read-ahead, and no threads for it.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:1"

MANIFEST, VERSION = "manifest.json", 1
# Trajectory, number of the record in it, and `Manifest.checksum`: they detect a record in the wrong place.
HEADER = struct.Struct("<QII")
_HINT = f"convert the data again with `{command('convert')}`"


@dataclass(frozen=True, kw_only=True)
class OriginalFile:
    """The file or folder that was converted to shards.

    Attributes:
        name: Name of the file, without folders.
        files: Size in bytes and modification time in nanoseconds of every file that was read, by name.
    """

    name: str
    layout: str
    files: dict[str, tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class ChannelStatistics:
    """Statistics of one channel over all points, frames and trajectories.

    Attributes:
        squares: Sum of the squared differences between the values and the mean.
    """

    count: int
    mean: float
    squares: float
    minimum: float
    maximum: float

    @property
    def std(self) -> float:
        """Standard deviation of the values."""
        return float((self.squares / self.count) ** 0.5)


@dataclass(frozen=True, kw_only=True)
class Shard(shard_folder.Shard):
    """A shard, with the index of its first trajectory and the statistics of its channels and input fields."""

    first: int
    statistics: tuple[ChannelStatistics, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest(ShardManifest):
    """The manifest of a folder of shards, a JSON file.

    Attributes:
        kind: Whether the data are trajectories or steady solutions.
        record_frames: Number of frames in each record; the last record of a trajectory may have fewer.
        shard_trajectories: Number of trajectories in each shard; the last shard may have fewer.
        compression: Compression option of the ArrayRecord writer.
        channels: Names of the channels; empty if the original file does not name them.
        inputs: Names of the input fields.
        coefficients: Numbers by name: one for all trajectories, or one for each trajectory, None where unknown.
        coefficient_names: Names of the `coefficients` that are probably PDE coefficients; in the JSON file, `found`.
        constants: Numbers by name that all trajectories share, such as solver settings.
        attributes: Root attributes of the original file that describe the data, such as the name of the task.
        boundary: Kind of boundary of each axis by its name, as far as known.
        statistics: Statistics of the channels, then of the input fields.
        notes: Messages about how the original file was read and what was left out, without its name.
        version: Version of the file format.
    """

    origin: OriginalFile
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
    coefficient_names: Annotated[tuple[str, ...], Field(alias="found")]
    constants: dict[str, float]
    attributes: dict[str, str]
    boundary: dict[str, str]
    shards: tuple[Shard, ...] = ()
    statistics: tuple[ChannelStatistics, ...] = ()
    version: int = VERSION
    notes: tuple[str, ...] = ()

    @property
    def records_per_trajectory(self) -> int:
        """Number of records in which a trajectory is stored, including one for its input fields if there are any."""
        return -(-self.frames // self.record_frames) + bool(self.inputs)

    @property
    def checksum(self) -> int:
        """Checksum of the manifest without shards and statistics, which every record of the conversion contains."""
        content = replace(self, shards=(), statistics=()).as_json()
        return zlib.crc32(json.dumps(content, sort_keys=True).encode())

    def as_json(self) -> dict[str, Any]:
        """Return the fields by their keys in the JSON file; without `notes` if empty, as in files of older versions."""
        return {
            "found" if key == "coefficient_names" else key: value
            for key, value in super().as_json().items()
            if key != "notes" or value
        }


def _check_manifest(file: Path, manifest: Manifest) -> None:
    """Raise `DataError` if a manifest has another format version, invalid sizes, or invalid channel names."""
    if manifest.version != VERSION:
        raise DataError(
            f"{file}: has format version {manifest.version}, but this program reads version {VERSION}; {_HINT}"
        )
    counts = (manifest.trajectories, manifest.frames, manifest.record_frames, manifest.shard_trajectories)
    if not all(0 < count < 2**31 for count in (*counts, manifest.channel_count, *manifest.grid.shape)):
        raise DataError(
            f"{file}: contains a number of trajectories, frames, channels or points outside 1 to 2^31 - 1; {_HINT}"
        )
    names, channels = manifest.channels, manifest.channel_count
    if len(set(names)) < len(names) or len(names) not in (0, channels):
        raise DataError(f"{file}: lists {len(names)} names for {channels} channels, or lists a name twice; {_HINT}")


FOLDER = ShardFolderFormat(
    manifest_class=Manifest,
    manifest_name=MANIFEST,
    shard_pattern="data-*.array_record",
    activity="conversion",
    hint=_HINT,
    check_manifest=_check_manifest,
)


def is_shard_folder(path: str | Path) -> bool:
    """Return whether a path is a folder that a conversion to shards has written, completely or partly."""
    return FOLDER.has_manifest(Path(path))


def read_manifest(path: str | Path) -> Manifest:
    """Return the manifest of a folder of shards. Raises `DataError` if it is missing, invalid or was changed."""
    return FOLDER.read_manifest(Path(path))


def check_sizes(path: str | Path, shards: Sequence[Shard]) -> None:
    """Raise `DataError` if one of the `shards` is missing in the folder `path` or has another size than recorded."""
    for shard in shards:
        file = Path(path) / shard.file
        try:
            size = file.stat().st_size
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror}); copy the file again, or {_HINT}") from None
        if size != shard.bytes:
            raise DataError(f"{file}: has {size} bytes instead of {shard.bytes}; copy the file again, or {_HINT}")


def verify_shards(path: str | Path, manifest: Manifest) -> None:
    """Raise `DataError` if a shard in the folder `path` has another size or checksum than the manifest states."""
    check_sizes(path, manifest.shards)
    for shard in manifest.shards:
        file = Path(path) / shard.file
        if crc32(file) != shard.crc32:
            raise _damage_error(file, "its checksum differs from the manifest")


def merge_statistics(parts: Sequence[ChannelStatistics]) -> ChannelStatistics:
    """Return the statistics of a channel, computed from its statistics in disjoint parts of the data.

    References:
        Chan, Golub and LeVeque 1983: pairwise updates of mean and variance.
    """
    count = sum(part.count for part in parts)
    mean = sum(part.count * part.mean for part in parts) / count
    return ChannelStatistics(
        count=count,
        mean=mean,
        squares=sum(part.squares + part.count * (part.mean - mean) ** 2 for part in parts),
        minimum=min(part.minimum for part in parts),
        maximum=max(part.maximum for part in parts),
    )


class ShardsSource:
    """A source that reads a folder of shards, with all channels if `channel_names` is None.

    Raises `DataError` if the manifest or a shard is missing or damaged.
    """

    def __init__(self, path: str | Path, channel_names: tuple[str, ...] | None = None) -> None:
        self.path, self.name = Path(path), str(path)
        self.manifest = read_manifest(path)
        check_sizes(path, self.manifest.shards)
        available = self.manifest.channels
        self.channel_names = select_channels(self.name, available, channel_names) if available else ()
        all_channels = list(range(self.manifest.channel_count))
        self._channel_indices = [available.index(name) for name in self.channel_names] or all_channels
        self.channels = len(self._channel_indices)
        self.trajectories, self.frames = self.manifest.trajectories, self.manifest.frames
        self.input_channels, self.grid = self.manifest.inputs, self.manifest.grid
        self.boundary = self.manifest.boundary
        self.__setstate__({})

    @property
    def notes(self) -> tuple[str, ...]:
        """Messages about how the original file was read and what was left out."""
        return tuple(f"{self.name}: {text}" for text in self.manifest.notes)

    @property
    def original_name(self) -> str:
        """Name of the file that was converted."""
        return self.manifest.origin.name

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that are read."""
        return (self.path / MANIFEST, *(self.path / shard.file for shard in self.manifest.shards))

    @property
    def layout(self) -> str:
        """Name of the layout of the file that was converted."""
        return self.manifest.origin.layout

    def read(self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Float32[np.ndarray, "b t *s c"]:
        """Return the frames `frames[i]` of trajectory `ids[i]` for each window i."""
        record_frames = self.manifest.record_frames
        record_numbers = ids[:, None] * self.manifest.records_per_trajectory + frames // record_frames
        numbers = np.unique(record_numbers)
        record_indices = np.searchsorted(numbers, record_numbers)
        records = self._read_records(numbers, (self.manifest.channel_count,))
        reads_all_channels = self._channel_indices == list(range(self.manifest.channel_count))
        result = np.empty((*frames.shape, *self.grid.shape, self.channels), np.float32)
        for row, (row_records, times) in enumerate(zip(record_indices, frames % record_frames, strict=True)):
            # Most windows lie in one record.
            for record in dict.fromkeys(row_records.tolist()):
                is_in_record = row_records == record
                values = records[record][times[is_in_record]]
                result[row, is_in_record] = values if reads_all_channels else values[..., self._channel_indices]
        return result

    def read_input_fields(self, ids: Int[np.ndarray, " b"]) -> Float32[np.ndarray, "b *s i"]:
        """Return the input fields of the trajectories `ids`."""
        result = np.empty((len(ids), *self.grid.shape, len(self.input_channels)), np.float32)
        if self.input_channels:
            # The input fields are the last record of a trajectory.
            per_trajectory = self.manifest.records_per_trajectory
            numbers, record_indices = np.unique(ids * per_trajectory + per_trajectory - 1, return_inverse=True)
            records = self._read_records(numbers, (len(self.input_channels),))
            for row, record in enumerate(record_indices):
                result[row] = records[record][0]
        return result

    def coefficient(self, name: str) -> Float[np.ndarray, " n"] | None:
        """Return a coefficient's values for all trajectories, or None if the original file and its name lack it."""
        match = match_name(self.name, name, self.manifest.coefficients)
        value: Any = None if match is None else self.manifest.coefficients[match]
        if value is None and self.manifest.origin.layout != "described":
            value = number_in_file_name(Path(self.original_name), name)
        return None if value is None else np.broadcast_to(np.array(value, np.float64), (self.trajectories,))

    def coefficient_names(self) -> tuple[str, ...]:
        """Return the names of the numbers in the original file that are probably PDE coefficients."""
        return self.manifest.coefficient_names

    def constants(self) -> dict[str, float]:
        """Return the numbers that all trajectories share, such as solver settings, by name."""
        return self.manifest.constants

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_readers", "_lock", "_process")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()
        self._process = os.getpid()

    def _read_records(
        self, numbers: Int[np.ndarray, " r"], last_axes: tuple[int, ...]
    ) -> list[Float32[np.ndarray, "t *s c"]]:
        """Return the records `numbers`, in ascending order; records are numbered consecutively through all shards."""
        per_trajectory = self.manifest.records_per_trajectory
        shard_indices = numbers // per_trajectory // self.manifest.shard_trajectories
        result = []
        for shard in np.unique(shard_indices).tolist():
            shard_numbers = numbers[shard_indices == shard]
            first = shard * self.manifest.shard_trajectories * per_trajectory
            file = self.path / self.manifest.shards[shard].file
            try:
                records = self._get_reader(shard, file).read((shard_numbers - first).tolist())
            except (RuntimeError, IndexError) as error:
                raise _damage_error(file, " ".join(str(error).split())) from None
            for number, record in zip(shard_numbers.tolist(), records, strict=True):
                if HEADER.unpack_from(record) != (number // per_trajectory, number % per_trajectory, self._checksum):
                    raise _damage_error(file, f"record {number - first} is from another place or another conversion")
                values = np.frombuffer(record, "<f4", offset=HEADER.size)
                result.append(values.reshape(-1, *self.grid.shape, *last_axes))
        return result

    @property
    def _checksum(self) -> int:
        """The checksum of the manifest, computed at the first use."""
        if "_cached_checksum" not in self.__dict__:
            self._cached_checksum = self.manifest.checksum
        return self._cached_checksum

    def _get_reader(self, shard: int, file: Path) -> Any:
        """Return this process's `ArrayRecordReader` of the shard with the index `shard`, opened at the first use."""
        # A local import: loading ArrayRecord is slow, and only this method needs it.
        from array_record.python.array_record_module import ArrayRecordReader

        with self._lock:
            if self._process != os.getpid():
                self._readers, self._process = {}, os.getpid()
            if shard not in self._readers:
                reader = ArrayRecordReader(str(file), _READER_OPTIONS)
                if not reader.ok():
                    raise _damage_error(file, "it is not an ArrayRecord file, or it is truncated")
                self._readers[shard] = reader
            return self._readers[shard]


def _damage_error(file: Path, reason: str) -> DataError:
    """Return the error for a damaged shard."""
    return DataError(f"{file}: is damaged ({reason}); copy the file again, or {_HINT}")
