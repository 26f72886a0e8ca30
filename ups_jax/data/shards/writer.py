"""Conversion of any source to a folder of ArrayRecord shards.

An interrupted conversion continues after the last complete shard.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from ups_jax.config import yaml
from ups_jax.core.errors import DataError, StorageError
from ups_jax.core.files import crc32, storage_error
from ups_jax.data.sources import ShardsSource, Source, detect_layout
from ups_jax.data.sources.base import all_coefficients
from ups_jax.data.sources.described_arrays import array_path
from ups_jax.data.sources.detect import TEXT_ATTRIBUTES, Layout, root_attribute
from ups_jax.data.sources.points import ScatteredSource
from ups_jax.data.sources.shards import (
    FOLDER,
    HEADER,
    MANIFEST,
    ChannelStatistics,
    Manifest,
    OriginalFile,
    Shard,
    merge_statistics,
    read_manifest,
    verify_shards,
)

_READ_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class ShardSizes:
    """Sizes of records and shards, and the compression of records.

    Attributes:
        record_kib: Largest size of a record in KiB. A record has at least one frame.
        shard_mib: Approximate size of a shard in MiB. A shard has at least one trajectory.
        compression_level: Level of the zstd compression of each record; 0 stores records uncompressed.
    """

    record_kib: int = 256
    shard_mib: int = 512
    compression_level: int = 0


def convert_to_shards(
    path: Path,
    out: Path,
    sizes: ShardSizes,
    channels: tuple[str, ...] | None = None,
    *,
    overwrite: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> bool:
    """Convert a data file to the folder of shards `out`. Return False if the folder was already complete, else True.

    Args:
        channels: Channels to convert, in this order; all by default.
        overwrite: Replace other shards in the folder.
        report: Called with lines of text about the progress.

    Raises:
        DataError: The file cannot be read or contains NaN or Inf, or the folder contains other data.
        ConfigError: Another process is writing to the folder.
        StorageError: The disk is full.
    """
    layout = detect_layout(path)
    source = layout.open(path, channels)
    if isinstance(source, ScatteredSource):
        raise DataError(
            f"{path}: contains scattered points, but shards can store only grids; train on the file without conversion"
        )
    plan = _plan_manifest(path, layout, source, sizes)
    check_same = partial(_check_matches_plan, out, plan)
    with FOLDER.lock(out, overwrite=overwrite):
        if (out / MANIFEST).is_file():
            manifest = read_manifest(out)
            check_same(manifest)
            verify_shards(out, manifest)
            FOLDER.delete_unfinished_manifest(out)
            return False
        done = FOLDER.completed_shards(out, check_same)
        for shard in done:
            report(f"{out}: {shard.file} exists already")

        def write_shard(first: int) -> Shard:
            report(f"{out}: trajectory {first} of {plan.trajectories}")
            return _write_shard(out, source, plan, first)

        FOLDER.write_missing_shards(out, plan, done, write_shard, _with_statistics)
    return True


def _with_statistics(manifest: Manifest) -> Manifest:
    """Return a manifest with the statistics of all data, computed from the statistics of its shards."""
    columns = zip(*(shard.statistics for shard in manifest.shards), strict=True)
    return replace(manifest, statistics=tuple(map(merge_statistics, columns)))


def _plan_manifest(path: Path, layout: Layout, source: Source, sizes: ShardSizes) -> Manifest:
    """Return the manifest of the folder to be written, without shards and statistics."""
    frame_bytes = 4 * int(np.prod(source.grid.shape)) * source.channels
    input_bytes = 4 * int(np.prod(source.grid.shape)) * len(source.input_channels)
    return Manifest(
        origin=_original_file(path, layout, source),
        kind=layout.kind,
        trajectories=source.trajectories,
        frames=source.frames,
        record_frames=min(source.frames, max(1, sizes.record_kib * 1024 // frame_bytes)),
        shard_trajectories=max(1, sizes.shard_mib * 2**20 // (source.frames * frame_bytes + input_bytes)),
        compression=f"zstd:{sizes.compression_level}" if sizes.compression_level else "uncompressed",
        grid=source.grid,
        channel_count=source.channels,
        channels=source.channel_names,
        inputs=source.input_channels,
        coefficients={name: _coefficient_entry(values) for name, values in all_coefficients(source).items()},
        coefficient_names=source.coefficient_names(),
        constants=getattr(source, "constants", dict)(),
        attributes={name: value for name in TEXT_ATTRIBUTES if (value := root_attribute(path, name))},
        boundary=getattr(source, "boundary", {}),
        notes=tuple(note.removeprefix(f"{source.name}: ") for note in source.notes),
    )


def _coefficient_entry(values: np.ndarray) -> float | tuple[float | None, ...]:
    """Return the values of a coefficient for JSON: one number if all are equal, else all, with None for NaN."""
    if (values == values[0]).all():
        return float(values[0])
    return tuple(None if np.isnan(value) else float(value) for value in values)


def _original_file(path: Path, layout: Layout, source: Source) -> OriginalFile:
    """Return the manifest entry about the converted file `path`; if that is a folder of shards, return its entry."""
    if isinstance(source, ShardsSource):
        return source.manifest.origin
    files = [path]
    if layout.name == "described":
        files.append(array_path(path, yaml.parse(path.read_text(encoding="utf-8"))))
    file_stats = {file.name: file.stat() for file in files}
    sizes_and_times = {name: (stat.st_size, stat.st_mtime_ns) for name, stat in file_stats.items()}
    return OriginalFile(name=path.name, layout=layout.name, files=sizes_and_times)


def _check_matches_plan(out: Path, plan: Manifest, manifest: Manifest) -> None:
    """Raise `DataError` if a folder's manifest differs from the plan in anything but the list of shards."""
    if replace(manifest, shards=(), statistics=()) != plan:
        raise DataError(
            f"{out}: contains other shards: of another file, of another version of {plan.origin.name}, or with other "
            "settings; give another folder, or replace the shards with `--overwrite`"
        )


def _write_shard(out: Path, source: Source, plan: Manifest, first: int) -> Shard:
    """Write the shard whose first trajectory is `first`, under a temporary name until it is complete and on disk."""
    index = first // plan.shard_trajectories
    shards = -(-plan.trajectories // plan.shard_trajectories)
    file = out / f"data-{index:05d}-of-{shards:05d}.array_record"
    temporary = out / f".{file.name}.tmp"
    last = min(first + plan.shard_trajectories, plan.trajectories)
    # Statistics of each record, by column: the channels, then the input fields.
    statistics: list[list[ChannelStatistics]] = [[] for _ in range(plan.channel_count + len(plan.inputs))]
    try:
        with _open_record_writer(temporary, plan) as write_record:
            for trajectory in range(first, last):
                for record in _iterate_records(source, plan, trajectory):
                    write_record(trajectory, record.position, record.values)
                    for channel in range(record.values.shape[-1]):
                        channel_statistics = _channel_statistics(record.values[..., channel])
                        statistics[record.first_column + channel].append(channel_statistics)
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
        statistics=tuple(map(merge_statistics, statistics)),
    )


class _Record(NamedTuple):
    """The values of one record, its number within the trajectory, and the statistics column of its first channel."""

    position: int
    first_column: int
    values: Float32[np.ndarray, "t *s c"]


def _iterate_records(source: Source, plan: Manifest, trajectory: int) -> Iterator[_Record]:
    """Yield the records of a trajectory. Raises `DataError` if they contain NaN or Inf."""
    ids, record_frames = np.array([trajectory]), plan.record_frames
    record_bytes = 4 * record_frames * plan.channel_count * int(np.prod(plan.grid.shape))
    step = record_frames * max(1, _READ_BYTES // record_bytes)
    for start in range(0, plan.frames, step):
        frames = np.arange(start, min(start + step, plan.frames))
        fields = source.read(ids, frames[None])[0]
        finite = np.isfinite(fields).all(axis=tuple(range(1, fields.ndim)))
        if not finite.all():
            raise _not_finite_error(source, f"frame {start + int(finite.argmin())} of trajectory {trajectory}")
        for offset in range(0, len(frames), record_frames):
            yield _Record((start + offset) // record_frames, 0, fields[offset : offset + record_frames])
    if plan.inputs:
        inputs = source.read_input_fields(ids)
        if not np.isfinite(inputs).all():
            raise _not_finite_error(source, f"the input fields of solution {trajectory}")
        yield _Record(plan.records_per_trajectory - 1, plan.channel_count, inputs)


def _not_finite_error(source: Source, location: str) -> DataError:
    """Return the error for NaN or Inf at a location in a source."""
    return DataError(f"{source.name}: contains NaN or Inf in {location}; remove or recompute these values")


def _channel_statistics(values: Float32[np.ndarray, "t *s"]) -> ChannelStatistics:
    """Return the statistics of one channel of a record."""
    exact = values.astype(np.float64)
    mean = float(exact.mean())
    return ChannelStatistics(
        count=exact.size,
        mean=mean,
        squares=float(np.square(exact - mean).sum()),
        minimum=float(exact.min()),
        maximum=float(exact.max()),
    )


@contextlib.contextmanager
def _open_record_writer(file: Path, plan: Manifest) -> Iterator[Callable[[int, int, np.ndarray], None]]:
    """Yield `write_record(trajectory, position, values)`, which appends a record of a trajectory to a file."""
    # Imported here because only the writing of shards needs it.
    from array_record.python.array_record_module import ArrayRecordWriter

    checksum = plan.checksum
    try:
        writer = ArrayRecordWriter(str(file), f"group_size:1,{plan.compression}")
    except RuntimeError as error:
        raise _storage_error(file, error) from None

    def write_record(trajectory: int, position: int, values: np.ndarray) -> None:
        try:
            writer.write(HEADER.pack(trajectory, position, checksum) + np.ascontiguousarray(values, "<f4").tobytes())
        except RuntimeError as error:
            raise _storage_error(file, error) from None

    finished = False
    try:
        yield write_record
        finished = True
    finally:
        try:
            writer.close()
        except RuntimeError as error:
            if finished:
                raise _storage_error(file, error) from None


def _storage_error(file: Path, error: RuntimeError) -> StorageError:
    """Return the error for a failed write, from ArrayRecord's error, which states the system's error only as text."""
    text = str(error)
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)
    code = next((code for code in codes if os.strerror(code) in text), errno.EIO)
    return storage_error(file, OSError(code, os.strerror(code) if code != errno.EIO else " ".join(text.split())))
