"""The manifest of a folder of latents, which contains a key that identifies the encoder and the data.

A shard is an .npy file of shape (trajectories, frames, *tokens, width) with the latents of whole trajectories.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ups_jax.core.commands import command
from ups_jax.core.errors import DataError
from ups_jax.data.shard_folder import Shard, ShardFolderFormat, ShardManifest, is_shard_intact

MANIFEST = "latents.json"
# NumPy type in which each type is stored. NumPy has no bfloat16; its bits are the upper half of a float32.
STORED_DTYPES = {"float32": "<f4", "bfloat16": "<u2", "float16": "<f2"}
HINT = f"write the folder again with `{command('encode')}`"
# Increased whenever the same key gives other numbers, or the numbers are stored in another way.
VERSION = 1
# Names of the key's fields in messages.
_NAMES = {
    "weights": "encoder weights",
    "encoder": "encoder config",
    "normaliser": "normaliser",
    "data": "data or split",
    "dtype": "dtype",
    "version": "format",
}


@dataclass(frozen=True, kw_only=True)
class LatentKey:
    """All that determines the values of cached latents. Two folders with equal keys contain equal latents.

    Attributes:
        weights: `weights_digest` of the encoder's parameters.
        encoder: Settings of the encoder as JSON values.
        normaliser: Normalisation and statistics of the fields as JSON values.
        data: Fingerprint of the dataset: fields, coefficients and split.
        dtype: Type of the latents, a key of `STORED_DTYPES`.
        version: Version of the file format.
    """

    weights: str
    encoder: dict[str, Any]
    normaliser: dict[str, Any]
    data: str
    dtype: str
    version: int = VERSION

    @property
    def digest(self) -> str:
        """SHA-256 of all fields as 64 hex digits."""
        return hashlib.sha256(_canonical_json(asdict(self))).hexdigest()

    def differences(self, other: LatentKey) -> tuple[str, ...]:
        """Return the fields in which two keys differ, by the names that messages use."""
        return tuple(name for field, name in _NAMES.items() if getattr(self, field) != getattr(other, field))


@dataclass(frozen=True, kw_only=True)
class LatentManifest(ShardManifest):
    """The manifest of a folder of latents.

    Attributes:
        key: Identifies the encoder and the data.
        frames: Number of latents of each trajectory.
        first: Index of the frame to which the first latent belongs: the last frame of the first whole context.
        tokens: Number of tokens along each axis.
        width: Number of values in each token.
        carried: How many values of each token, from the first on, are the patch of the newest frame. The patches of
            earlier frames and learned features follow.
    """

    key: LatentKey
    task: str
    trajectories: int
    frames: int
    first: int
    tokens: tuple[int, ...]
    width: int
    carried: int
    shard_trajectories: int
    shards: tuple[Shard, ...] = ()

    @property
    def trajectory_shape(self) -> tuple[int, ...]:
        """Shape (frames, *tokens, width) of the latents of one trajectory."""
        return (self.frames, *self.tokens, self.width)

    @property
    def shard_counts(self) -> list[int]:
        """Number of trajectories in each shard once all shards are written."""
        full = self.shard_trajectories
        return [min(full, self.trajectories - first) for first in range(0, self.trajectories, full)]

    @property
    def bytes(self) -> int:
        """Size of all shards together in bytes."""
        return sum(shard.bytes for shard in self.shards)


def _check_manifest(file: Path, manifest: LatentManifest) -> None:
    """Raise `DataError` if a manifest has an unknown `dtype`, or if its shards do not contain all trajectories."""
    if manifest.key.dtype not in STORED_DTYPES:
        raise DataError(f"{file}: was changed after it was written; {HINT}")
    counts = [shard.trajectories for shard in manifest.shards]
    if manifest.shard_trajectories < 1 or (file.name == MANIFEST and counts != manifest.shard_counts):
        raise DataError(
            f"{file}: lists shards with {counts} trajectories, but the data have {manifest.trajectories} trajectories; "
            f"{HINT}"
        )


FOLDER = ShardFolderFormat(
    manifest_class=LatentManifest,
    manifest_name=MANIFEST,
    shard_pattern="latents-*.npy",
    activity="encoding",
    hint=HINT,
    check_manifest=_check_manifest,
)


def read_manifest(path: Path) -> LatentManifest:
    """Return the manifest of a folder of latents. Raises `DataError` if it is missing, invalid or was changed."""
    return FOLDER.read_manifest(path)


def verify_shards(path: Path, manifest: LatentManifest) -> None:
    """Raise `DataError` if a shard in the folder `path` has another size or checksum than the manifest states."""
    for shard in manifest.shards:
        if not is_shard_intact(path, shard):
            raise DataError(f"{path / shard.file}: is missing or damaged (wrong size or checksum); {HINT}")


def weights_digest(parameters: Mapping[str, np.ndarray]) -> str:
    """Return a SHA-256 of all parameters and their paths, which does not depend on their order, as 64 hex digits."""
    records = [
        [
            path,
            list(values.shape),
            str(values.dtype),
            hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest(),
        ]
        for path, values in sorted(parameters.items())
    ]
    return hashlib.sha256(_canonical_json(records)).hexdigest()


def _canonical_json(values: Any) -> bytes:
    """Return JSON text in which the keys are sorted, encoded as UTF-8."""
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
