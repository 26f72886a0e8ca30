"""What a folder of shards holds, as its `manifest.json` says it. Reading the records is `sources.shards`.

A record is a header of 16 bytes and some frames of one trajectory, float32 and channels last; of steady solutions
another record follows with the given fields. `record_frames` bounds what a window has to read.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from ups_jax.data.sources.base import Grid
from ups_jax.errors import DataError
from ups_jax.files import crc32, inside, read_json

MANIFEST, UNFINISHED = "manifest.json", "unfinished.json"
VERSION = 1
# Trajectory, place of the record in it, and the token of the conversion: no record passes for another.
HEADER = struct.Struct("<QII")
_MEND = "convert the data again with scripts/convert_data.py"


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
class Shard:
    """A file of whole trajectories, the first of them `first`; the CRC-32 is of all its bytes."""

    file: str
    first: int
    trajectories: int
    bytes: int
    crc32: int
    statistics: tuple[Spread, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest:
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
    version: int = field(default=VERSION)

    @property
    def records_each(self) -> int:
        """Records of one trajectory."""
        return -(-self.frames // self.record_frames) + bool(self.inputs)

    @property
    def token(self) -> int:
        """Stands in every record: the conversion that it belongs to."""
        own = replace(self, shards=(), statistics=())
        return zlib.crc32(json.dumps(asdict(own), sort_keys=True).encode())

    @property
    def digest(self) -> str:
        """32 hex digits over all that the manifest says, with the checksums of the shards."""
        text = json.dumps(asdict(self), sort_keys=True).encode()
        return hashlib.blake2b(text, digest_size=16).hexdigest()


def text_of(manifest: Manifest) -> str:
    """The JSON text of a manifest."""
    return json.dumps({"digest": manifest.digest, **asdict(manifest)}, indent=1) + "\n"


def is_converted(path: str | Path) -> bool:
    """Whether a folder holds a finished conversion, or one that was broken off."""
    return any((Path(path) / name).is_file() for name in (MANIFEST, UNFINISHED))


def read_manifest(path: str | Path, name: str = MANIFEST) -> Manifest:
    """The manifest of a folder. Raises `DataError` where there is none, or it is not what was written."""
    file = Path(path) / name
    try:
        content: dict[str, Any] = read_json(file)
        told = content.pop("digest")
        found = TypeAdapter(Manifest).validate_python(content)
    except FileNotFoundError:
        if (Path(path) / UNFINISHED).is_file():
            raise DataError(f"{path}: its conversion did not end; start the same command again to go on") from None
        raise DataError(f"{path}: has no {name}; {_MEND}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{file}: cannot be read ({reason}); {_MEND}") from None
    if found.version != VERSION:
        raise DataError(f"{file}: is of version {found.version}, this program reads {VERSION}; {_MEND}")
    counts = (found.trajectories, found.frames, found.record_frames, found.shard_trajectories, found.channel_count)
    if not all(0 < count < 2**31 for count in (*counts, *found.grid.shape)):
        raise DataError(f"{file}: names a size that no data has (they are 1 to 2^31 - 1); {_MEND}")
    if len(set(found.channels)) < len(found.channels) or len(found.channels) not in (0, found.channel_count):
        raise DataError(f"{file}: names {len(found.channels)} channels of {found.channel_count}, or one twice; {_MEND}")
    for shard in found.shards:
        inside(file, "shards.file", shard.file, DataError)
    if told != found.digest:
        raise DataError(f"{file}: was changed after it was written; {_MEND}")
    return found


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
