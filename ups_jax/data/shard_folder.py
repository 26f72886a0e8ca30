"""Folders of whole trajectories in shards, beside a JSON manifest with the checksum of each shard.

What latents (`latent_cache`) and converted data (`sources.shards`) have in common: reading a manifest back, checking
shards, and writing a folder so that an interrupted command continues after the last complete shard.
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
from ups_jax.core.files import crc32, inside, read_json, storage_error, write_atomically
from ups_jax.core.locks import lock_directory

# The manifest of a folder that is not complete.
UNFINISHED = "unfinished.json"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A file of whole trajectories; the CRC-32 is of all its bytes."""

    file: str
    trajectories: int
    bytes: int
    crc32: int


class ShardManifest:
    """What the manifest of a folder has at the least; it derives from this class and is a frozen dataclass."""

    trajectories: int
    shard_trajectories: int
    shards: tuple[Shard, ...]

    @property
    def digest(self) -> str:
        """32 hex digits over all that the manifest says, with the checksums of the shards."""
        text = json.dumps(asdict(self), sort_keys=True).encode()  # type: ignore[call-overload]
        return hashlib.blake2b(text, digest_size=16).hexdigest()

    @property
    def text(self) -> str:
        """The JSON text of the manifest's file."""
        return json.dumps({"digest": self.digest, **asdict(self)}, indent=1) + "\n"  # type: ignore[call-overload]


M = TypeVar("M", bound=ShardManifest)


def is_whole(path: Path, shard: Shard) -> bool:
    """Return whether every byte of a shard is what was written."""
    file = path / shard.file
    return file.is_file() and file.stat().st_size == shard.bytes and crc32(file) == shard.crc32


@dataclass(frozen=True, kw_only=True)
class ShardFolder(Generic[M]):
    """A kind of folder: the type and name of its manifest, and the pattern of its shards' names.

    `activity` is what fills the folder, and `hint` how to make it again: both end up in messages. `check` raises
    `DataError` for a manifest whose values no folder has; its arguments are the file and the manifest.
    """

    manifest: type[M]
    name: str
    pattern: str
    activity: str
    hint: str
    check: Callable[[Path, M], None]

    def read(self, path: Path, name: str = "") -> M:
        """Return the manifest of a folder, by default that of a complete one.

        Raises `DataError` where there is no manifest, or it is not what was written.
        """
        file = path / (name or self.name)
        try:
            content: dict[str, Any] = read_json(file)
            digest = content.pop("digest")
            manifest = TypeAdapter(self.manifest).validate_python(content)
        except FileNotFoundError:
            if (path / UNFINISHED).is_file():
                again = "start the same command again to go on"
                raise DataError(f"{path}: its {self.activity} did not end; {again}") from None
            raise DataError(f"{path}: has no {file.name}; {self.hint}") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
            raise DataError(f"{file}: cannot be read ({first_line(error)}); {self.hint}") from None
        self.check(file, manifest)
        for shard in manifest.shards:
            inside(file, "shards.file", shard.file, DataError)
        if digest != manifest.digest:
            raise DataError(f"{file}: was changed after it was written; {self.hint}")
        return manifest

    def is_there(self, path: Path) -> bool:
        """Return whether a folder has a manifest, complete or not."""
        return any((path / name).is_file() for name in (self.name, UNFINISHED))

    @contextlib.contextmanager
    def lock(self, path: Path, *, overwrite: bool) -> Iterator[None]:
        """Lock a folder for writing, and with `overwrite` delete the manifest and shards that it has.

        Raises `DataError` for a folder of other files, `ConfigError` where another process writes there.
        """
        known = (self.name, UNFINISHED)
        try:
            names = sorted(item.name for item in path.iterdir()) if path.is_dir() else []
        except OSError as error:
            raise storage_error(path, error) from None
        others = [name for name in names if name[0] != "." and name not in known and not fnmatch(name, self.pattern)]
        if others and not self.is_there(path):
            raise DataError(f"{path}: holds other files ({', '.join(others[:3])}); give a new folder")
        with lock_directory(path, "wait for it, or give another folder"):
            for pattern in (*known, self.pattern, f".{self.pattern}.tmp") if overwrite else ():
                for file in path.glob(pattern):
                    try:
                        file.unlink()
                    except OSError as error:
                        raise storage_error(file, error) from None
            yield

    def completed(self, path: Path, check_same: Callable[[M], None]) -> tuple[Shard, ...]:
        """Return the shards that an interrupted command has completed, up to the first that is damaged.

        `check_same` raises `DataError` where that command had another plan.
        """
        if not (path / UNFINISHED).is_file():
            return ()
        found = self.read(path, UNFINISHED)
        check_same(found)
        return tuple(itertools.takewhile(partial(is_whole, path), found.shards))

    def write(
        self,
        path: Path,
        plan: M,
        done: tuple[Shard, ...],
        write_shard: Callable[[int], Shard],
        complete: Callable[[M], M] = lambda manifest: manifest,
    ) -> None:
        """Write the shards that are not `done`, then the manifest, and record the progress after each shard.

        Args:
            path: The locked folder.
            plan: The manifest without shards.
            done: The shards that an interrupted command has completed.
            write_shard: Writes the shard that starts with a trajectory.
            complete: Adds to the manifest what is known once all shards are.
        """
        for first in range(sum(shard.trajectories for shard in done), plan.trajectories, plan.shard_trajectories):
            done = (*done, write_shard(first))
            write_atomically(path / UNFINISHED, _with_shards(plan, done).text)
        write_atomically(path / self.name, complete(_with_shards(plan, done)).text)
        self.clear_progress(path)

    def clear_progress(self, path: Path) -> None:
        """Delete the record of progress, which a command that was killed at its very end has left."""
        (path / UNFINISHED).unlink(missing_ok=True)


def _with_shards(manifest: M, shards: tuple[Shard, ...]) -> M:
    return replace(manifest, shards=shards)  # type: ignore[type-var]
