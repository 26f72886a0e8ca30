"""A folder of latents, written shard by shard. Encoding that was interrupted goes on with the shard that it was at."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Int

from ups_jax.core.errors import DataError
from ups_jax.core.files import crc32, storage_error, whole_file, write_atomically
from ups_jax.core.locks import lock_directory
from ups_jax.data.latent_cache.manifest import (
    MANIFEST,
    STORED,
    UNFINISHED,
    Manifest,
    Shard,
    is_whole,
    read_manifest,
    text_of,
    verify,
)

# Trajectory numbers -> their latents (n, frames, *tokens, width), as they are stored.
Encode = Callable[[Int[np.ndarray, " n"]], np.ndarray]


def write_latents(
    out: Path,
    plan: Manifest,
    encode: Encode,
    *,
    together: int = 1,
    overwrite: bool = False,
    report: Callable[[int], None] = lambda _: None,
) -> bool:
    """Write what `plan` describes; False where it was there already, whole. `encode` is asked for `together`
    trajectories at a time, `report` told how many are done.

    Raises `DataError` where the folder holds anything else, `ConfigError` where another process writes there,
    `StorageError` where the disk is full.
    """
    with _held(out):
        if overwrite:
            _clear(out)
        if (out / MANIFEST).is_file():
            found = read_manifest(out)
            _same(out, found, plan)
            verify(out, found)
            # Of whoever was killed between the manifest and its end.
            (out / UNFINISHED).unlink(missing_ok=True)
            return False
        done = _begun(out, plan)
        for first in range(sum(shard.trajectories for shard in done), plan.trajectories, plan.shard_trajectories):
            report(first)
            done = (*done, _write_shard(out, plan, first, encode, together, report))
            write_atomically(out / UNFINISHED, text_of(replace(plan, shards=done)))
        write_atomically(out / MANIFEST, text_of(replace(plan, shards=done)))
        (out / UNFINISHED).unlink(missing_ok=True)
    return True


def shard_trajectories(each: tuple[int, ...], dtype: str, shard_bytes: int) -> int:
    """Trajectories of a shard of about so many bytes, one at the least."""
    return max(1, shard_bytes // (int(np.prod(each)) * np.dtype(STORED[dtype]).itemsize))


@contextlib.contextmanager
def _held(out: Path) -> Iterator[None]:
    """Hold the folder for this process, which may hold nothing but latents."""
    try:
        names = sorted(item.name for item in out.iterdir() if not item.name.startswith(".")) if out.is_dir() else []
    except OSError as error:
        raise storage_error(out, error) from None
    strange = [name for name in names if name not in (MANIFEST, UNFINISHED) and not name.startswith("latents-")]
    if strange:
        raise DataError(f"{out}: holds other files ({', '.join(strange[:3])}); give a new folder")
    with lock_directory(out, "wait for it, or give another folder"):
        yield


def _clear(out: Path) -> None:
    for pattern in (MANIFEST, UNFINISHED, "latents-*.npy"):
        for file in out.glob(pattern):
            try:
                file.unlink()
            except OSError as error:
                raise storage_error(file, error) from None


def _same(out: Path, found: Manifest, plan: Manifest) -> None:
    if replace(found, shards=()) != plan:
        parts = ", ".join(found.key.differences(plan.key)) or "settings"
        raise DataError(f"{out}: holds latents of other {parts}; give another folder, or replace them with --overwrite")


def _begun(out: Path, plan: Manifest) -> tuple[Shard, ...]:
    """The shards that an interrupted encoding finished, up to the first that is not what was written."""
    if not (out / UNFINISHED).is_file():
        return ()
    found = read_manifest(out, UNFINISHED)
    _same(out, found, plan)
    whole: list[Shard] = []
    for shard in found.shards:
        if not is_whole(out, shard):
            break
        whole.append(shard)
    return tuple(whole)


def _write_shard(
    out: Path, plan: Manifest, first: int, encode: Encode, together: int, report: Callable[[int], None]
) -> Shard:
    """Under its final name only once it is whole and on the disk."""
    count = -(-plan.trajectories // plan.shard_trajectories)
    file = out / f"latents-{first // plan.shard_trajectories:05d}-of-{count:05d}.npy"
    ids = np.arange(first, min(first + plan.shard_trajectories, plan.trajectories))
    stored = STORED[plan.key.dtype]
    header = {"descr": stored, "fortran_order": False, "shape": (len(ids), *plan.each)}
    with whole_file(file) as temporary:
        with temporary.open("wb") as handle:
            np.lib.format.write_array_header_1_0(handle, header)
            for start in range(0, len(ids), together):
                own = ids[start : start + together]
                handle.write(np.ascontiguousarray(encode(own), stored).data)
                report(int(own[-1]) + 1)
        checksum, size = crc32(temporary), temporary.stat().st_size
    return Shard(file=file.name, trajectories=len(ids), bytes=size, crc32=checksum)
