"""The manifest of a folder of latents, and the key that identifies the encoder and the data they were computed from.

A shard is a `.npy` file of shape (trajectories, frames, *tokens, width) that contains whole trajectories. A memory map
reads only the rows of a window, and for targets only the first `carried` numbers of each token.
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
from ups_jax.data.shard_folder import Shard, ShardFolder, ShardManifest, is_intact

MANIFEST = "latents.json"
# NumPy type in which each type is stored. NumPy has no bfloat16; its bits are the upper half of a float32.
STORED_DTYPES = {"float32": "<f4", "bfloat16": "<u2", "float16": "<f2"}
HINT = f"make it again with `{command('encode')}`"
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
    """The key of cached latents: all that determines their values. Two folders with equal keys have equal latents.

    Attributes:
        weights: Digest of the encoder's parameters, from `weights_digest`.
        encoder: Settings of the encoder as JSON values.
        normaliser: Normalisation and statistics of the fields as JSON values.
        data: Fingerprint of the dataset: fields, coefficients and split.
        dtype: Type of the latents, a key of `STORED_DTYPES`.
        version: Version of the format.
    """

    weights: str
    encoder: dict[str, Any]
    normaliser: dict[str, Any]
    data: str
    dtype: str
    version: int = VERSION

    @property
    def digest(self) -> str:
        """64 hex digits over all fields."""
        return hashlib.sha256(_canonical_json(asdict(self))).hexdigest()

    def differences(self, other: LatentKey) -> tuple[str, ...]:
        """Return the names, as used in messages, of the fields in which two keys differ."""
        return tuple(name for field, name in _NAMES.items() if getattr(self, field) != getattr(other, field))


@dataclass(frozen=True, kw_only=True)
class LatentManifest(ShardManifest):
    """The manifest of a folder of latents.

    Attributes:
        key: Identifies encoder and data.
        task: Name of the task.
        trajectories: Number of trajectories.
        frames: Number of latents of a trajectory, which is less than its number of stored frames if `first` is not 0.
        first: Stored frame of the first latent, the newest frame of the first context.
        tokens: Number of tokens along each axis.
        width: Numbers in a token.
        carried: Leading numbers of a token that are its patch of the newest frame.
        shard_trajectories: Trajectories in each shard; the last one may have fewer.
        shards: The shards in the order of their trajectories.
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
        """The shape of the latents of one trajectory, (frames, *tokens, width)."""
        return (self.frames, *self.tokens, self.width)

    @property
    def shard_counts(self) -> list[int]:
        """The number of trajectories in each shard of the complete folder."""
        full = self.shard_trajectories
        return [min(full, self.trajectories - first) for first in range(0, self.trajectories, full)]

    @property
    def bytes(self) -> int:
        """The size of all shards."""
        return sum(shard.bytes for shard in self.shards)


def _check(file: Path, manifest: LatentManifest) -> None:
    """Raise `DataError` for a manifest with an unknown type, or whose shards do not add up to its trajectories."""
    if manifest.key.dtype not in STORED_DTYPES:
        raise DataError(f"{file}: was changed after it was written; {HINT}")
    counts = [shard.trajectories for shard in manifest.shards]
    if manifest.shard_trajectories < 1 or (file.name == MANIFEST and counts != manifest.shard_counts):
        raise DataError(
            f"{file}: lists shards of {counts} trajectories, which are not the {manifest.trajectories} trajectories of "
            f"the data; {HINT}"
        )


FOLDER = ShardFolder(
    manifest=LatentManifest, name=MANIFEST, pattern="latents-*.npy", activity="encoding", hint=HINT, check=_check
)


def read_manifest(path: Path) -> LatentManifest:
    """Return the manifest of a folder; raise `DataError` if it is missing, damaged or changed."""
    return FOLDER.read(path)


def verify(path: Path, manifest: LatentManifest) -> None:
    """Compare the checksum of every shard with the manifest; raise `DataError` for the first difference."""
    for shard in manifest.shards:
        if not is_intact(path, shard):
            raise DataError(f"{path / shard.file}: is missing or damaged (wrong size or checksum); {HINT}")


def weights_digest(parameters: Mapping[str, np.ndarray]) -> str:
    """Return 64 hex digits over path, shape, type and bytes of every parameter.

    Args:
        parameters: Parameters by path; their order does not matter.
    """
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
    """Return JSON text that does not depend on the order of keys."""
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
