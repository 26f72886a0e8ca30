"""Folders of shards (files of whole trajectories) with a JSON manifest that lists the checksum of each shard.

Cached latents (`latent_cache`) and converted data (`sources.shards`) are such folders. If a command that writes one is
interrupted, the same command continues after the last complete shard.
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

# Name of the manifest of an unfinished folder, which lists the shards that are complete.
UNFINISHED = "unfinished.json"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A file of whole trajectories, as listed in a manifest.

    Attributes:
        file: Name of the file in the folder.
        trajectories: Number of trajectories.
        bytes: Size of the file in bytes.
        crc32: CRC-32 checksum of the file.
    """

    file: str
    trajectories: int
    bytes: int
    crc32: int


class ShardManifest:
    """The base class of manifests; every subclass is a frozen dataclass with at least these fields.

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
        """A hash of all fields, including the checksums of the shards, as 32 hex digits."""
        text = json.dumps(self.as_json(), sort_keys=True).encode()
        return hashlib.blake2b(text, digest_size=16).hexdigest()

    @property
    def text(self) -> str:
        """The content of the manifest file: the fields and their `digest` as JSON."""
        return json.dumps({"digest": self.digest, **self.as_json()}, indent=1) + "\n"

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, by their keys in the manifest file."""
        return asdict(self)  # type: ignore[call-overload]


ManifestT = TypeVar("ManifestT", bound=ShardManifest)


def is_shard_intact(folder: Path, shard: Shard) -> bool:
    """Return whether the file of a shard exists in a folder and has the size and checksum that `shard` states."""
    file = folder / shard.file
    return file.is_file() and file.stat().st_size == shard.bytes and crc32(file) == shard.crc32


@dataclass(frozen=True, kw_only=True)
class ShardFolderFormat(Generic[ManifestT]):
    """The format of one kind of shard folder, with methods that read and write folders in this format.

    Attributes:
        manifest_name: File name of the manifest.
        shard_pattern: Pattern of the file names of shards, such as `data-*.array_record`.
        activity: Noun for the writing of a folder in messages, such as `conversion`.
        hint: Remedy for a damaged folder in messages.
        check_manifest: Takes the path of a manifest and the manifest; raises `DataError` if it is invalid.
    """

    manifest_class: type[ManifestT]
    manifest_name: str
    shard_pattern: str
    activity: str
    hint: str
    check_manifest: Callable[[Path, ManifestT], None]

    def read_manifest(self, folder: Path, file_name: str = "") -> ManifestT:
        """Return the manifest in the file `file_name` of a folder, by default the manifest of a complete folder.

        Raises:
            DataError: There is no such file, or it is damaged or was changed after it was written.
        """
        file = folder / (file_name or self.manifest_name)
        try:
            content: dict[str, Any] = read_json(file)
            digest = content.pop("digest")
            manifest = TypeAdapter(self.manifest_class).validate_python(content)
        except FileNotFoundError:
            if (folder / UNFINISHED).is_file():
                again = "run the same command again to continue"
                raise DataError(f"{folder}: the {self.activity} of this folder was interrupted; {again}") from None
            raise DataError(f"{folder}: has no {file.name}; {self.hint}") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
            raise DataError(f"{file}: cannot be read ({first_line(error)}); {self.hint}") from None
        self.check_manifest(file, manifest)
        for shard in manifest.shards:
            path_inside(file, "shards.file", shard.file, DataError)
        if digest != manifest.digest:
            raise DataError(f"{file}: was changed after it was written; {self.hint}")
        return manifest

    def has_manifest(self, path: Path) -> bool:
        """Return whether a folder has a manifest, complete or unfinished."""
        return any((path / name).is_file() for name in (self.manifest_name, UNFINISHED))

    @contextlib.contextmanager
    def lock(self, path: Path, *, overwrite: bool) -> Iterator[None]:
        """Lock a folder for writing while the context is open, which prevents other processes from writing to it.

        Args:
            overwrite: Delete the manifest and shards of the folder.

        Raises:
            DataError: The folder contains other files, but no manifest.
            ConfigError: Another process is writing to the folder.
            StorageError: The folder cannot be written.
        """
        manifests = (self.manifest_name, UNFINISHED)
        try:
            names = sorted(item.name for item in path.iterdir()) if path.is_dir() else []
        except OSError as error:
            raise storage_error(path, error) from None
        unrelated = [
            name for name in names if name[0] != "." and name not in manifests and not fnmatch(name, self.shard_pattern)
        ]
        if unrelated and not self.has_manifest(path):
            raise DataError(f"{path}: contains unrelated files ({', '.join(unrelated[:3])}); give a new folder")
        with lock_directory(path, "wait for it, or give another folder"):
            for pattern in (*manifests, self.shard_pattern, f".{self.shard_pattern}.tmp") if overwrite else ():
                for file in path.glob(pattern):
                    try:
                        file.unlink()
                    except OSError as error:
                        raise storage_error(file, error) from None
            yield

    def completed_shards(self, path: Path, check_same: Callable[[ManifestT], None]) -> tuple[Shard, ...]:
        """Return the shards that an interrupted command has written to a folder, up to the first damaged one.

        Args:
            check_same: Raises `DataError` if the manifest of the interrupted command is for other data.
        """
        if not (path / UNFINISHED).is_file():
            return ()
        manifest = self.read_manifest(path, UNFINISHED)
        check_same(manifest)
        return tuple(itertools.takewhile(partial(is_shard_intact, path), manifest.shards))

    def write_missing_shards(
        self,
        path: Path,
        plan: ManifestT,
        completed_shards: tuple[Shard, ...],
        write_shard: Callable[[int], Shard],
        finish_manifest: Callable[[ManifestT], ManifestT] = lambda manifest: manifest,
    ) -> None:
        """Write the missing shards to a locked folder, the unfinished manifest after each, and the final manifest last.

        Args:
            plan: The manifest without shards.
            completed_shards: The shards that exist already.
            write_shard: Takes the id of the first trajectory of a shard, and writes the shard.
            finish_manifest: Sets those fields of the final manifest that depend on all shards.
        """
        shards = completed_shards
        for first in range(sum(shard.trajectories for shard in shards), plan.trajectories, plan.shard_trajectories):
            shards = (*shards, write_shard(first))
            write_atomically(path / UNFINISHED, _with_shards(plan, shards).text)
        write_atomically(path / self.manifest_name, finish_manifest(_with_shards(plan, shards)).text)
        self.delete_unfinished_manifest(path)

    def delete_unfinished_manifest(self, path: Path) -> None:
        """Delete the unfinished manifest, which is left if a command is killed right after writing the final one."""
        (path / UNFINISHED).unlink(missing_ok=True)


def _with_shards(manifest: ManifestT, shards: tuple[Shard, ...]) -> ManifestT:
    return replace(manifest, shards=shards)  # type: ignore[type-var]
