"""A folder of latents, written shard by shard. Encoding that was interrupted goes on with the shard that it was at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int

from ups_jax.core.errors import DataError
from ups_jax.core.files import crc32, whole_file
from ups_jax.data.latent_cache.manifest import FOLDER, MANIFEST, STORED, Manifest, verify
from ups_jax.data.shard_folder import Shard

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
    check_same = partial(_check_same, out, plan)
    with FOLDER.lock(out, overwrite=overwrite):
        if (out / MANIFEST).is_file():
            found = FOLDER.read(out)
            check_same(found)
            verify(out, found)
            FOLDER.clear_progress(out)
            return False

        def write_shard(first: int) -> Shard:
            report(first)
            return _write_shard(out, plan, first, encode, together, report)

        FOLDER.write(out, plan, FOLDER.completed(out, check_same), write_shard)
    return True


def shard_trajectories(each: tuple[int, ...], dtype: str, shard_bytes: int) -> int:
    """Trajectories of a shard of about so many bytes, one at the least."""
    return max(1, shard_bytes // (int(np.prod(each)) * np.dtype(STORED[dtype]).itemsize))


def _check_same(out: Path, plan: Manifest, found: Manifest) -> None:
    if replace(found, shards=()) != plan:
        parts = ", ".join(found.key.differences(plan.key)) or "settings"
        raise DataError(f"{out}: holds latents of other {parts}; give another folder, or replace them with --overwrite")


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
