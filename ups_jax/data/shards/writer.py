"""Any source as a folder of ArrayRecord shards. An interrupted conversion goes on with the shard that it was at."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from ups_jax.config import yaml
from ups_jax.core.errors import DataError, StorageError
from ups_jax.core.files import crc32, storage_error
from ups_jax.data.sources import ShardsSource, Source, layout_of
from ups_jax.data.sources.base import all_coefficients
from ups_jax.data.sources.described_arrays import file_of
from ups_jax.data.sources.detect import TEXTS, Layout, attribute
from ups_jax.data.sources.points import Scattered
from ups_jax.data.sources.shards import (
    FOLDER,
    HEADER,
    MANIFEST,
    Manifest,
    Origin,
    Shard,
    Spread,
    merged,
    read_manifest,
    verify,
)

_READ_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How data is cut: records of at most `record_kib` (a frame at the least), shards of about `shard_mib` (a
    trajectory at the least), each record compressed by zstd of that `level`, or not for 0."""

    record_kib: int = 256
    shard_mib: int = 512
    level: int = 0


def convert(
    path: Path,
    out: Path,
    sizes: Sizes,
    channels: tuple[str, ...] | None = None,
    *,
    overwrite: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> bool:
    """Write the folder `out` of a data file; False where it was there already, whole and of the same file.

    Raises `DataError` for a file that cannot be read or is not finite, `ConfigError` where another process writes
    there, `StorageError` where the disk is full.
    """
    layout = layout_of(path)
    source = layout.open(path, channels)
    if isinstance(source, Scattered):
        raise DataError(f"{path}: is of points, and shards are of grids; train on the file as it is")
    plan = _plan(path, layout, source, sizes)
    check_same = partial(_check_same, out, plan)
    with FOLDER.lock(out, overwrite=overwrite):
        if (out / MANIFEST).is_file():
            found = read_manifest(out)
            check_same(found)
            verify(out, found)
            FOLDER.clear_progress(out)
            return False
        done = FOLDER.completed(out, check_same)
        for shard in done:
            report(f"{out}: {shard.file} was there already")

        def write_shard(first: int) -> Shard:
            report(f"{out}: trajectory {first} of {plan.trajectories}")
            return _write_shard(out, source, plan, first)

        FOLDER.write(out, plan, done, write_shard, _with_statistics)
    return True


def _with_statistics(manifest: Manifest) -> Manifest:
    columns = zip(*(shard.statistics for shard in manifest.shards), strict=True)
    return replace(manifest, statistics=tuple(map(merged, columns)))


def _plan(path: Path, layout: Layout, source: Source, sizes: Sizes) -> Manifest:
    """What the folder's manifest will say, still without shards."""
    frame = 4 * int(np.prod(source.grid.shape)) * source.channels
    given = 4 * int(np.prod(source.grid.shape)) * len(source.input_channels)
    return Manifest(
        origin=_origin(path, layout, source),
        kind=layout.kind,
        trajectories=source.trajectories,
        frames=source.frames,
        record_frames=min(source.frames, max(1, sizes.record_kib * 1024 // frame)),
        shard_trajectories=max(1, sizes.shard_mib * 2**20 // (source.frames * frame + given)),
        compression=f"zstd:{sizes.level}" if sizes.level else "uncompressed",
        grid=source.grid,
        channel_count=source.channels,
        channels=source.channel_names,
        inputs=source.input_channels,
        coefficients={name: _told(found) for name, found in all_coefficients(source).items()},
        found=source.found_coefficients(),
        constants=getattr(source, "constants", dict)(),
        attributes={name: value for name in TEXTS if (value := attribute(path, name))},
        boundary=getattr(source, "boundary", {}),
    )


def _told(values: np.ndarray) -> float | tuple[float | None, ...]:
    if (values == values[0]).all():
        return float(values[0])
    return tuple(None if np.isnan(value) else float(value) for value in values)


def _origin(path: Path, layout: Layout, source: Source) -> Origin:
    """The file with size and time of all that is read; of a description also the arrays that it names."""
    if isinstance(source, ShardsSource):
        return source.manifest.origin
    files = [path]
    if layout.name == "described":
        files.append(file_of(path, yaml.parse(path.read_text(encoding="utf-8"))))
    states = {file.name: file.stat() for file in files}
    told = {name: (state.st_size, state.st_mtime_ns) for name, state in states.items()}
    return Origin(name=path.name, layout=layout.name, files=told)


def _check_same(out: Path, plan: Manifest, found: Manifest) -> None:
    if replace(found, shards=(), statistics=()) != plan:
        raise DataError(
            f"{out}: was converted from another file than {plan.origin.name} as it is now, or with other settings; "
            "give another folder, or replace it with --overwrite"
        )


def _write_shard(out: Path, source: Source, plan: Manifest, first: int) -> Shard:
    """Under its final name only once it is whole and on the disk."""
    index = first // plan.shard_trajectories
    shards = -(-plan.trajectories // plan.shard_trajectories)
    file = out / f"data-{index:05d}-of-{shards:05d}.array_record"
    temporary = out / f".{file.name}.tmp"
    last = min(first + plan.shard_trajectories, plan.trajectories)
    parts: list[list[Spread]] = [[] for _ in range(plan.channel_count + len(plan.inputs))]
    try:
        with _records(temporary, plan) as write:
            for trajectory in range(first, last):
                for place, column, values in _pieces(source, plan, trajectory):
                    write(trajectory, place, values)
                    for channel in range(values.shape[-1]):
                        parts[column + channel].append(_spread(values[..., channel]))
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        checksum, size = crc32(temporary), temporary.stat().st_size
        os.replace(temporary, file)
    except OSError as error:
        raise storage_error(file, error) from None
    finally:
        temporary.unlink(missing_ok=True)
    return Shard(
        file=file.name,
        first=first,
        trajectories=last - first,
        bytes=size,
        crc32=checksum,
        statistics=tuple(map(merged, parts)),
    )


def _pieces(
    source: Source, plan: Manifest, trajectory: int
) -> Iterator[tuple[int, int, Float32[np.ndarray, "t *s c"]]]:
    """The records of a trajectory: place, the first of its channels among all, values. Raises `DataError`."""
    ids, each = np.array([trajectory]), plan.record_frames
    bytes_each = 4 * each * plan.channel_count * int(np.prod(plan.grid.shape))
    step = each * max(1, _READ_BYTES // bytes_each)
    for start in range(0, plan.frames, step):
        frames = np.arange(start, min(start + step, plan.frames))
        fields = source.windows(ids, frames[None])[0]
        finite = np.isfinite(fields).all(axis=tuple(range(1, fields.ndim)))
        if not finite.all():
            raise _broken(source, f"frame {start + int(finite.argmin())} of trajectory {trajectory}")
        for offset in range(0, len(frames), each):
            yield (start + offset) // each, 0, fields[offset : offset + each]
    if plan.inputs:
        given = source.inputs(ids)
        if not np.isfinite(given).all():
            raise _broken(source, f"the given fields of solution {trajectory}")
        yield plan.records_each - 1, plan.channel_count, given


def _broken(source: Source, where: str) -> DataError:
    return DataError(f"{source.name}: NaN or Inf in {where}; remove it, or solve it again")


def _spread(values: Float32[np.ndarray, "t *s"]) -> Spread:
    exact = values.astype(np.float64)
    mean = float(exact.mean())
    return Spread(
        count=exact.size,
        mean=mean,
        squares=float(np.square(exact - mean).sum()),
        minimum=float(exact.min()),
        maximum=float(exact.max()),
    )


@contextlib.contextmanager
def _records(file: Path, plan: Manifest) -> Iterator[Callable[[int, int, np.ndarray], None]]:
    """A function that appends the record of a trajectory, its place and its values."""
    # Imported here, as only who writes shards needs it.
    from array_record.python.array_record_module import ArrayRecordWriter

    token = plan.token
    try:
        writer = ArrayRecordWriter(str(file), f"group_size:1,{plan.compression}")
    except RuntimeError as error:
        raise _refused(file, error) from None

    def write(trajectory: int, place: int, values: np.ndarray) -> None:
        try:
            writer.write(HEADER.pack(trajectory, place, token) + np.ascontiguousarray(values, "<f4").tobytes())
        except RuntimeError as error:
            raise _refused(file, error) from None

    finished = False
    try:
        yield write
        finished = True
    finally:
        try:
            writer.close()
        except RuntimeError as error:
            if finished:
                raise _refused(file, error) from None


def _refused(file: Path, error: RuntimeError) -> StorageError:
    """ArrayRecord tells the system's reason in words only."""
    text = str(error)
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)
    code = next((code for code in codes if os.strerror(code) in text), errno.EIO)
    return storage_error(file, OSError(code, os.strerror(code) if code != errno.EIO else " ".join(text.split())))
