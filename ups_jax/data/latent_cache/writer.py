"""Writing of latents to a folder, shard by shard. An interrupted command continues after the last complete shard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int

from ups_jax.core.errors import DataError
from ups_jax.core.files import atomic_file, crc32
from ups_jax.data.latent_cache.manifest import FOLDER, MANIFEST, STORED_DTYPES, LatentManifest, verify_shards
from ups_jax.data.shard_folder import Shard

# encode(trajectory ids) -> their latents (n, frames, *tokens, width) in the stored type.
Encode = Callable[[Int[np.ndarray, " n"]], np.ndarray]


def write_latents(
    out: Path,
    plan: LatentManifest,
    encode: Encode,
    *,
    chunk_trajectories: int = 1,
    overwrite: bool = False,
    report: Callable[[int], None] = lambda _: None,
) -> bool:
    """Write the latents of all trajectories to a folder. Return False if the folder was already complete, else True.

    Args:
        plan: Manifest of the folder, without shards.
        encode: Function from trajectory ids to the latents of these trajectories, in the stored type.
        chunk_trajectories: Largest number of trajectories in a call of `encode`.
        overwrite: Replace other latents in the folder.
        report: Called with the number of trajectories whose latents have been written.

    Raises:
        DataError: The folder contains other latents or other files, or is damaged.
        ConfigError: Another process is writing to the folder.
        StorageError: The disk is full.
    """
    check_same = partial(_check_matches_plan, out, plan)
    with FOLDER.lock(out, overwrite=overwrite):
        if (out / MANIFEST).is_file():
            manifest = FOLDER.read_manifest(out)
            check_same(manifest)
            verify_shards(out, manifest)
            FOLDER.delete_unfinished_manifest(out)
            return False

        def write_shard(first: int) -> Shard:
            report(first)
            return _write_shard(out, plan, first, encode, chunk_trajectories, report)

        FOLDER.write_missing_shards(out, plan, FOLDER.completed_shards(out, check_same), write_shard)
    return True


def trajectories_per_shard(trajectory_shape: tuple[int, ...], dtype: str, shard_bytes: int) -> int:
    """Return how many trajectories with latents of this shape and type fit into a shard, but at least 1."""
    return max(1, shard_bytes // (int(np.prod(trajectory_shape)) * np.dtype(STORED_DTYPES[dtype]).itemsize))


def _check_matches_plan(out: Path, plan: LatentManifest, manifest: LatentManifest) -> None:
    """Raise `DataError` if a folder's manifest differs from the plan in anything but the list of shards."""
    if replace(manifest, shards=()) != plan:
        differences = ", ".join(manifest.key.differences(plan.key)) or "settings"
        raise DataError(
            f"{out}: contains latents with other {differences}; give another folder, or replace the latents with "
            "`--overwrite`"
        )


def _write_shard(
    out: Path, plan: LatentManifest, first: int, encode: Encode, chunk_trajectories: int, report: Callable[[int], None]
) -> Shard:
    """Write the shard whose first trajectory is `first`, under a temporary name until it is complete and on disk."""
    count = -(-plan.trajectories // plan.shard_trajectories)
    file = out / f"latents-{first // plan.shard_trajectories:05d}-of-{count:05d}.npy"
    ids = np.arange(first, min(first + plan.shard_trajectories, plan.trajectories))
    stored_dtype = STORED_DTYPES[plan.key.dtype]
    header = {"descr": stored_dtype, "fortran_order": False, "shape": (len(ids), *plan.trajectory_shape)}
    with atomic_file(file) as temporary:
        with temporary.open("wb") as handle:
            np.lib.format.write_array_header_1_0(handle, header)
            for start in range(0, len(ids), chunk_trajectories):
                chunk = ids[start : start + chunk_trajectories]
                handle.write(np.ascontiguousarray(encode(chunk), stored_dtype).data)
                report(int(chunk[-1]) + 1)
        checksum, size = crc32(temporary), temporary.stat().st_size
    return Shard(file=file.name, trajectories=len(ids), bytes=size, crc32=checksum)
