"""Zarr files of meshes and particles, as the Universal Physics Stack writes them: a group for each trajectory.

Particles have `positions` and `velocities` (T, N, 3). A mesh has fields `fields/NAME` (T, N) at `coords` (N, 2); fields
(T, H, W, C) on a grid are read as points too. Times are a dataset `time` (T,), or multiples of the group's attribute
`dt`. Files are read into memory with zarr (`pip install 'ups_jax[mesh]'`), after a check that all codecs are safe.
"""

from __future__ import annotations

import logging
import os
import re
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ups_jax.core.errors import DataError, first_line
from ups_jax.core.files import read_json
from ups_jax.data.sources.in_memory import ScatteredMemorySource
from ups_jax.data.sources.point_trajectories import (
    PointTrajectory,
    drop_zero_axes,
    require_module,
    split_components,
    stack_trajectories,
)

_VELOCITIES = ("u", "v", "w")
# Codecs of numcodecs that compress bytes, add a checksum or map numbers to numbers. Not `pickle`, which can run code,
# and not those that make Python objects: `json2`, `msgpack2`, `vlen-*`, `categorize`.
_SAFE_FILTERS = frozenset(
    {
        *("blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd"),
        *("adler32", "crc32", "crc32c", "fletcher32", "jenkins_lookup3"),
        *("bitround", "delta", "fixedscaleoffset", "quantize", "shuffle"),
    }
)
_SAFE_CODECS = frozenset(
    {"blosc", "bytes", "crc32c", "gzip", "transpose", "zstd", *(f"numcodecs.{id}" for id in _SAFE_FILTERS)}
)
_SHARDING = "sharding_indexed"
_V2_NUMBER_DTYPE = re.compile(r"[<>|]?(b1|[iu][1248]|f[248])")
_V3_NUMBER_DTYPE = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)")


def is_zarr(path: Path) -> bool:
    """Return whether a path is a folder that contains a Zarr hierarchy."""
    return path.is_dir() and any((path / name).is_file() for name in ("zarr.json", ".zgroup"))


def open_zarr(path: str | Path, channel_names: tuple[str, ...] | None = None) -> ScatteredMemorySource:
    """Return the trajectories in a Zarr folder.

    All channels are read if `channel_names` is None. Raises `DataError` if the folder cannot be read, has no
    trajectories or unsafe codecs, or if zarr is not installed.
    """
    require_module("zarr", str(path))
    check_metadata(Path(path))
    # zarr reads files concurrently. The first error is raised below; asyncio would print the others.
    logging.getLogger("asyncio").addFilter(_keep_log_record)
    import zarr

    try:
        root = zarr.open_group(str(path), mode="r")
        groups = _iterate_trajectory_groups(root, "")
        trajectories = [_read_trajectory(f"{path}: group {key}", group) for key, group in groups]
    except DataError:
        raise
    # zarr, the codecs and NumPy raise exceptions of many types, even SystemError, for content that does not match its
    # metadata.
    except Exception as error:
        raise DataError(f"{path}: cannot be read by zarr ({first_line(error)}); write it again") from None
    if not trajectories:
        raise DataError(
            f"{path}: contains no trajectory; write each as a group with `positions`, or with `coords` and `fields`"
        )
    return stack_trajectories(str(path), trajectories, channel_names)


def check_metadata(path: Path) -> None:
    """Raise `DataError` unless a Zarr folder contains only arrays of numbers with safe codecs.

    Another codec, such as `pickle`, could run code when the array is read.
    """
    for file in _iterate_metadata_files(path):
        try:
            content = read_json(file)
            fault = next(_iterate_metadata_faults(file.name, content), None)
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: cannot be read as JSON ({first_line(error)}); write it again") from None
        if fault:
            raise DataError(f"{file}: {fault}; write arrays of numbers with the codecs zstd, blosc or gzip")


def _keep_log_record(record: logging.LogRecord) -> bool:
    """Return False for asyncio's messages about exceptions that were never retrieved, True for all others."""
    return "was never retrieved" not in record.getMessage()


def _iterate_trajectory_groups(group: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield the key and the Zarr group of each trajectory in the Zarr group `group`, whose key is `key`."""
    if "positions" in group or ("coords" in group and "fields" in group):
        yield key or "/", group
        return
    for name, child in sorted(group.groups()):
        yield from _iterate_trajectory_groups(child, f"{key}/{name}")


def _read_trajectory(name: str, group: Any) -> PointTrajectory:
    """Return the trajectory in a Zarr group, called `name` in messages. Raises `DataError` if the times are missing."""
    fields: dict[str, np.ndarray] = {}
    is_moving = "positions" in group
    positions = drop_zero_axes(np.asarray(group["positions" if is_moving else "coords"][...], np.float64))
    axes = positions.shape[-1]
    if is_moving and "velocities" in group:
        velocities = np.asarray(group["velocities"][...], np.float32)
        fields |= {channel: velocities[..., axis] for axis, channel in enumerate(_VELOCITIES[:axes])}
    for key, dataset in sorted(group["fields"].arrays()) if "fields" in group else ():
        values = np.asarray(dataset[...], np.float32)
        if values.ndim == 4:
            # Frames on a grid (T, H, W, C): `coords` lists their points row by row.
            values = values.reshape(len(values), -1, values.shape[-1])
        if values.ndim == 3 and values.shape[-1] != axes:
            fields |= {f"{key}_{number}": values[..., number] for number in range(values.shape[-1])}
            if values.shape[-1] == 1:
                fields[key] = fields.pop(f"{key}_0")
        else:
            fields |= split_components(key, values, axes)
    frames = len(positions) if is_moving else len(next(iter(fields.values()), ()))
    times: np.ndarray
    if "time" in group:
        times = np.asarray(group["time"][...], np.float64)
    elif "dt" in group.attrs:
        times = float(group.attrs["dt"]) * np.arange(frames)
    else:
        raise DataError(f"{name}: has no times; add a dataset `time` or an attribute `dt`")
    return PointTrajectory(name=name, positions=positions, fields=fields, times=times)


def _iterate_metadata_files(path: Path) -> Iterator[Path]:
    """Yield all metadata files of arrays and groups in the folder `path` and in folders to which it links."""
    visited: set[str] = set()
    for folder, folders, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            raise DataError(f"{folder}: appears more than once in the hierarchy because of a link; remove the link")
        visited.add(real)
        folders.sort()
        yield from (Path(folder, name) for name in (".zarray", ".zmetadata", "zarr.json") if name in files)


def _iterate_metadata_faults(name: str, content: Any) -> Iterator[str]:
    """Yield the faults in the content of the metadata file `name`, which may contain copies of other metadata files."""
    if not isinstance(content, dict):
        yield "is not a JSON object"
    elif name == ".zarray":
        yield from _iterate_v2_faults(content)
    elif name == ".zmetadata":
        for key, entry in _iterate_consolidated_entries(content):
            if key.rsplit("/", 1)[-1] == ".zarray":
                yield from (f"`{key}` {fault}" for fault in _iterate_metadata_faults(".zarray", entry))
    elif content.get("node_type") == "group":
        for key, entry in _iterate_consolidated_entries(content.get("consolidated_metadata")):
            yield from (f"`{key}` {fault}" for fault in _iterate_metadata_faults("zarr.json", entry))
    else:
        yield from _iterate_v3_faults(content)


def _iterate_consolidated_entries(consolidated: Any) -> Iterator[tuple[str, Any]]:
    """Yield the key and the metadata of each array and group in consolidated metadata, a copy of all metadata."""
    entries = consolidated.get("metadata") if isinstance(consolidated, dict) else None
    yield from entries.items() if isinstance(entries, dict) else ()


def _iterate_v2_faults(array: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the metadata of an array in Zarr format 2."""
    if not _is_full_match(_V2_NUMBER_DTYPE, array.get("dtype")):
        yield f"is an array of {_shorten(array.get('dtype'))}, not of numbers"
    filters = array.get("filters")
    for codec in (*(filters if isinstance(filters, list) else [filters]), array.get("compressor")):
        if codec is not None and _codec_name(codec, "id") not in _SAFE_FILTERS:
            yield f"has a codec {_shorten(_codec_name(codec, 'id'))}, which is not on the list of safe codecs"


def _iterate_v3_faults(array: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the metadata of an array in Zarr format 3."""
    if not _is_full_match(_V3_NUMBER_DTYPE, array.get("data_type")):
        yield f"is an array of {_shorten(array.get('data_type'))}, not of numbers"
    if array.get("storage_transformers"):
        yield "has storage transformers, which are not supported"
    yield from _iterate_unsafe_codecs(array.get("codecs"))


def _iterate_unsafe_codecs(codecs: Any) -> Iterator[str]:
    """Yield a message about each codec that is not safe, including the codecs within sharding codecs."""
    for codec in codecs if isinstance(codecs, list) else [codecs]:
        name = _codec_name(codec, "name")
        if name == _SHARDING:
            configuration = codec.get("configuration") if isinstance(codec, dict) else None
            for key in ("codecs", "index_codecs"):
                # zarr's defaults for missing keys are safe.
                if isinstance(configuration, dict) and key in configuration:
                    yield from _iterate_unsafe_codecs(configuration[key])
        elif name not in _SAFE_CODECS:
            yield f"has a codec {_shorten(name)}, which is not on the list of safe codecs"


def _codec_name(codec: Any, key: str) -> str:
    """Return the name that a codec has under `key`, or the `repr` of a name that is not a string."""
    name = codec.get(key) if isinstance(codec, dict) else codec
    return name if isinstance(name, str) else repr(name)


def _is_full_match(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _shorten(value: Any) -> str:
    return reprlib.repr(value)
