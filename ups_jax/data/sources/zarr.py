"""Zarr files of meshes and particles, as the Universal Physics Stack writes them: a group for each trajectory.

Particles have `positions` and `velocities` (T, N, 3); the fields of a mesh, `fields/NAME` (T, N), are at `coords`
(N, 2), and those of its grids, (T, H, W, C), are taken as points too. Times are a dataset `time` (T,) or the attribute
`dt` of the group. Files are read as a whole with zarr (the extra `mesh`), after a check that their metadata names plain
codecs only.
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
from ups_jax.data.sources.in_memory import ScatteredMemory
from ups_jax.data.sources.point_trajectories import PointTrajectory, components, flat, gathered, require

_VELOCITIES = ("u", "v", "w")
# Ids of numcodecs that compress bytes, add a checksum or map numbers to numbers. Not `pickle`, nor those that make
# Python objects: `json2`, `msgpack2`, `vlen-*`, `categorize`.
_FILTERS = frozenset(
    {
        *("blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd"),
        *("adler32", "crc32", "crc32c", "fletcher32", "jenkins_lookup3"),
        *("bitround", "delta", "fixedscaleoffset", "quantize", "shuffle"),
    }
)
_CODECS = frozenset({"blosc", "bytes", "crc32c", "gzip", "transpose", "zstd", *(f"numcodecs.{id}" for id in _FILTERS)})
_SHARDING = "sharding_indexed"
_NUMBERS_2 = re.compile(r"[<>|]?(b1|[iu][1248]|f[248])")
_NUMBERS_3 = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)")


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr hierarchy."""
    return path.is_dir() and any((path / name).is_file() for name in ("zarr.json", ".zgroup"))


def open_zarr(path: str | Path, names: tuple[str, ...] | None = None) -> ScatteredMemory:
    """All trajectories of a file. Raises `DataError` for one that cannot be read, or has none."""
    require("zarr", str(path))
    check_metadata(Path(path))
    # Of the files that zarr reads at once and that cannot be read one is told, here; asyncio would print the others.
    logging.getLogger("asyncio").addFilter(_is_retrieved)
    import zarr

    try:
        root = zarr.open_group(str(path), mode="r")
        found = [_trajectory(f"{path}: group {key}", group) for key, group in _samples(root, "")]
    except DataError:
        raise
    # zarr, the codecs and NumPy raise whatever they come upon, down to SystemError, where metadata or chunks are of
    # other content than they claim.
    except Exception as error:
        raise DataError(f"{path}: is no readable Zarr file ({first_line(error)})") from None
    if not found:
        raise DataError(
            f"{path}: no group has `positions`, or `coords` and `fields`: there is nothing in it that changes in time"
        )
    return gathered(str(path), found, names)


def check_metadata(path: Path) -> None:
    """Raise `DataError` for a Zarr folder in which an array holds anything but numbers, or has a codec that is not
    known to be plain; also for what cannot be read as JSON."""
    for file in _metadata_files(path):
        try:
            content = read_json(file)
            reason = next(_faults(file.name, content), None)
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: cannot be read as JSON ({first_line(error)}); write it again") from None
        if reason:
            raise DataError(f"{file}: {reason}; write it with numbers, and zstd, blosc or gzip")


def _is_retrieved(record: logging.LogRecord) -> bool:
    return "was never retrieved" not in record.getMessage()


def _samples(group: Any, key: str) -> Iterator[tuple[str, Any]]:
    """The groups that are trajectories, in the order of their names."""
    if "positions" in group or ("coords" in group and "fields" in group):
        yield key or "/", group
        return
    for name, inner in sorted(group.groups()):
        yield from _samples(inner, f"{key}/{name}")


def _trajectory(name: str, group: Any) -> PointTrajectory:
    fields: dict[str, np.ndarray] = {}
    moves = "positions" in group
    places = flat(np.asarray(group["positions" if moves else "coords"][...], np.float64))
    axes = places.shape[-1]
    if moves and "velocities" in group:
        velocities = np.asarray(group["velocities"][...], np.float32)
        fields |= {known: velocities[..., axis] for axis, known in enumerate(_VELOCITIES[:axes])}
    for key, dataset in sorted(group["fields"].arrays()) if "fields" in group else ():
        values = np.asarray(dataset[...], np.float32)
        if values.ndim == 4:
            # A frame of a grid, row by row, as `coords` lists its points.
            values = values.reshape(len(values), -1, values.shape[-1])
        if values.ndim == 3 and values.shape[-1] != axes:
            fields |= {f"{key}_{number}": values[..., number] for number in range(values.shape[-1])}
            if values.shape[-1] == 1:
                fields[key] = fields.pop(f"{key}_0")
        else:
            fields |= components(key, values, axes)
    frames = len(places) if moves else len(next(iter(fields.values()), ()))
    times: np.ndarray
    if "time" in group:
        times = np.asarray(group["time"][...], np.float64)
    elif "dt" in group.attrs:
        times = float(group.attrs["dt"]) * np.arange(frames)
    else:
        raise DataError(f"{name}: has neither `time` nor an attribute `dt`; the times of the frames must be told")
    return PointTrajectory(name=name, places=places, fields=fields, times=times)


def _metadata_files(path: Path) -> Iterator[Path]:
    """All files that describe arrays, also behind links to folders, in an order of their own."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            raise DataError(f"{folder}: is in the hierarchy twice, by a link; take the link out")
        seen.add(real)
        folders.sort()
        yield from (Path(folder, name) for name in (".zarray", ".zmetadata", "zarr.json") if name in files)


def _faults(name: str, content: Any) -> Iterator[str]:
    """What is wrong with the content of a metadata file, or of the same within consolidated metadata."""
    if not isinstance(content, dict):
        yield "holds no JSON object"
    elif name == ".zarray":
        yield from _faults_2(content)
    elif name == ".zmetadata":
        for key, inner in _entries(content):
            if key.rsplit("/", 1)[-1] == ".zarray":
                yield from (f"`{key}` {reason}" for reason in _faults(".zarray", inner))
    elif content.get("node_type") == "group":
        for key, inner in _entries(content.get("consolidated_metadata")):
            yield from (f"`{key}` {reason}" for reason in _faults("zarr.json", inner))
    else:
        yield from _faults_3(content)


def _entries(consolidated: Any) -> Iterator[tuple[str, Any]]:
    entries = consolidated.get("metadata") if isinstance(consolidated, dict) else None
    yield from entries.items() if isinstance(entries, dict) else ()


def _faults_2(array: dict[str, Any]) -> Iterator[str]:
    if not _matches(_NUMBERS_2, array.get("dtype")):
        yield f"is an array of {_short(array.get('dtype'))}, not of numbers"
    filters = array.get("filters")
    for codec in (*(filters if isinstance(filters, list) else [filters]), array.get("compressor")):
        if codec is not None and _name(codec, "id") not in _FILTERS:
            yield f"has a codec {_short(_name(codec, 'id'))}, which is not known to be plain"


def _faults_3(array: dict[str, Any]) -> Iterator[str]:
    if not _matches(_NUMBERS_3, array.get("data_type")):
        yield f"is an array of {_short(array.get('data_type'))}, not of numbers"
    if array.get("storage_transformers"):
        yield "has storage transformers, which are not known to be plain"
    yield from _plain(array.get("codecs"))


def _plain(codecs: Any) -> Iterator[str]:
    for codec in codecs if isinstance(codecs, list) else [codecs]:
        name = _name(codec, "name")
        if name == _SHARDING:
            inner = codec.get("configuration") if isinstance(codec, dict) else None
            for key in ("codecs", "index_codecs"):
                # What is left out has the defaults of zarr, which are plain.
                if isinstance(inner, dict) and key in inner:
                    yield from _plain(inner[key])
        elif name not in _CODECS:
            yield f"has a codec {_short(name)}, which is not known to be plain"


def _name(codec: Any, key: str) -> Any:
    """The name of a codec, as a string that can be looked up; anything else as the text of it."""
    name = codec.get(key) if isinstance(codec, dict) else codec
    return name if isinstance(name, str) else repr(name)


def _matches(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _short(value: Any) -> str:
    return reprlib.repr(value)
