"""Folders of shards, which are files of whole trajectories, beside a JSON manifest with the checksum of each shard.

Shared by cached latents (`latent_cache`) and converted data (`sources.shards`): reading manifests, checking shards, and
writing a folder such that an interrupted command continues after the last complete shard.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from ups_jax.core.errors import DataError, first_line
from ups_jax.core.files import crc32, path_inside, read_json, storage_error, write_atomically
from ups_jax.core.locks import lock_directory

# Name of the manifest of an incomplete folder.
UNFINISHED = "unfinished.json"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A file of whole trajectories, as listed in a manifest.

    Attributes:
        file: Name of the file in the folder.
        trajectories: Number of trajectories.
        bytes: Size of the file.
        crc32: CRC-32 checksum of all bytes.
    """

    file: str
    trajectories: int
    bytes: int
    crc32: int


class ShardManifest:
    """The base class of manifests, which are frozen dataclasses with at least these fields.

    Attributes:
        trajectories: Number of trajectories in the folder.
        shard_trajectories: Number of trajectories in each shard; the last one may have fewer.
        shards: The shards in the order of their trajectories.
    """

    trajectories: int
    shard_trajectories: int
    shards: tuple[Shard, ...]

    @property
    def digest(self) -> str:
        """32 hex digits over all fields, which include the checksums of the shards."""
        text = json.dumps(self.as_json(), sort_keys=True).encode()
        return hashlib.blake2b(text, digest_size=16).hexdigest()

    @property
    def text(self) -> str:
        """The content of the manifest file, JSON."""
        return json.dumps({"digest": self.digest, **self.as_json()}, indent=1) + "\n"

    def as_json(self) -> dict[str, Any]:
        """Return the fields by their keys in the JSON file."""
        return asdict(self)  # type: ignore[call-overload]


M = TypeVar("M", bound=ShardManifest)


def is_intact(path: Path, shard: Shard) -> bool:
    """Return whether a shard of the folder `path` exists and has the size and checksum of the manifest."""
    file = path / shard.file
    return file.is_file() and file.stat().st_size == shard.bytes and crc32(file) == shard.crc32


@dataclass(frozen=True, kw_only=True)
class ShardFolder(Generic[M]):
    """A kind of shard folder, with functions that read and write folders of this kind.

    Attributes:
        manifest: Class of the manifest.
        name: File name of the manifest.
        pattern: Pattern of the file names of shards.
        activity: Name of the process that fills the folder, for messages.
        hint: How to make the folder again, for messages.
        check: Raises `DataError` for an invalid manifest. Its arguments are the manifest's file and the manifest.
    """

    manifest: type[M]
    name: str
    pattern: str
    activity: str
    hint: str
    check: Callable[[Path, M], None]

    def read(self, path: Path, name: str = "") -> M:
        """Return the manifest of a folder.

        Args:
            path: The folder.
            name: File name of the manifest, by default that of a complete folder.

        Raises:
            DataError: There is no such manifest, or it is damaged or was changed after it was written.
        """
        file = path / (name or self.name)
        try:
            content: dict[str, Any] = read_json(file)
            digest = content.pop("digest")
            manifest = TypeAdapter(self.manifest).validate_python(content)
        except FileNotFoundError:
            if (path / UNFINISHED).is_file():
                again = "run the same command again to continue"
                raise DataError(f"{path}: the {self.activity} of this folder was interrupted; {again}") from None
            raise DataError(f"{path}: has no {file.name}; {self.hint}") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
            raise DataError(f"{file}: cannot be read ({first_line(error)}); {self.hint}") from None
        self.check(file, manifest)
        for shard in manifest.shards:
            path_inside(file, "shards.file", shard.file, DataError)
        if digest != manifest.digest:
            raise DataError(f"{file}: was changed after it was written; {self.hint}")
        return manifest

    def exists(self, path: Path) -> bool:
        """Return whether a folder has a manifest, complete or unfinished."""
        return any((path / name).is_file() for name in (self.name, UNFINISHED))

    @contextlib.contextmanager
    def lock(self, path: Path, *, overwrite: bool) -> Iterator[None]:
        """Lock a folder for writing.

        Args:
            path: The folder.
            overwrite: Delete its manifest and shards.

        Raises:
            DataError: The folder contains other files.
            ConfigError: Another process is writing to the folder.
            StorageError: The folder cannot be written.
        """
        manifests = (self.name, UNFINISHED)
        try:
            names = sorted(item.name for item in path.iterdir()) if path.is_dir() else []
        except OSError as error:
            raise storage_error(path, error) from None
        unrelated = [
            name for name in names if name[0] != "." and name not in manifests and not fnmatch(name, self.pattern)
        ]
        if unrelated and not self.exists(path):
            raise DataError(f"{path}: contains other files ({', '.join(unrelated[:3])}); give a new folder")
        with lock_directory(path, "wait for it, or give another folder"):
            for pattern in (*manifests, self.pattern, f".{self.pattern}.tmp") if overwrite else ():
                for file in path.glob(pattern):
                    try:
                        file.unlink()
                    except OSError as error:
                        raise storage_error(file, error) from None
            yield

    def completed_shards(self, path: Path, check_same: Callable[[M], None]) -> tuple[Shard, ...]:
        """Return the shards that an interrupted command has written, up to the first damaged one.

        Args:
            path: The folder.
            check_same: Raises `DataError` if the manifest of that command differs from that of this one.
        """
        if not (path / UNFINISHED).is_file():
            return ()
        manifest = self.read(path, UNFINISHED)
        check_same(manifest)
        return tuple(itertools.takewhile(partial(is_intact, path), manifest.shards))

    def write(
        self,
        path: Path,
        plan: M,
        done: tuple[Shard, ...],
        write_shard: Callable[[int], Shard],
        complete: Callable[[M], M] = lambda manifest: manifest,
    ) -> None:
        """Write the missing shards, then the manifest. After each shard, progress is recorded in `UNFINISHED`.

        Args:
            path: The folder, locked.
            plan: The manifest without shards.
            done: The shards that an interrupted command has written.
            write_shard: Writes the shard whose first trajectory has this id.
            complete: Adds fields to the manifest that depend on all shards.
        """
        for first in range(sum(shard.trajectories for shard in done), plan.trajectories, plan.shard_trajectories):
            done = (*done, write_shard(first))
            write_atomically(path / UNFINISHED, _with_shards(plan, done).text)
        write_atomically(path / self.name, complete(_with_shards(plan, done)).text)
        self.clear_progress(path)

    def clear_progress(self, path: Path) -> None:
        """Delete the record of progress, which remains if a command is killed after it has written the manifest."""
        (path / UNFINISHED).unlink(missing_ok=True)


def _with_shards(manifest: M, shards: tuple[Shard, ...]) -> M:
    return replace(manifest, shards=shards)  # type: ignore[type-var]
