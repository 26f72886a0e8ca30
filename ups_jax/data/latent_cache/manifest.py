"""The manifest of a folder of latents, and the key that says which encoder made them of which data.

A shard is a `.npy` file (trajectories, latents in time, *tokens, width) of whole trajectories. The latents of a window
are a few rows of it, of which the targets need the first numbers alone: a memory map reads just these.
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
from ups_jax.data.shard_folder import Shard, ShardFolder, ShardManifest, is_whole

MANIFEST = "latents.json"
# How each type lies on the disk: NumPy has no bfloat16, whose bits are the upper half of a float32's.
STORED = {"float32": "<f4", "bfloat16": "<u2", "float16": "<f2"}
MEND = f"make it again with `{command('encode')}`"
# Raised whenever the same parts give other numbers, or the numbers are stored in another way.
VERSION = 1
# What a message calls the parts.
_NAMES = {
    "weights": "encoder weights",
    "encoder": "encoder config",
    "normaliser": "normaliser",
    "data": "data or split",
    "dtype": "dtype",
    "version": "format",
}


@dataclass(frozen=True, kw_only=True)
class Key:
    """`weights` is `weights_digest` of the encoder's parameters and `data` the fingerprint of fields, coefficients and
    split. `encoder` and `normaliser` are what JSON has: its lists, no tuples."""

    weights: str
    encoder: dict[str, Any]
    normaliser: dict[str, Any]
    data: str
    dtype: str
    version: int = VERSION

    @property
    def digest(self) -> str:
        """64 hex digits over all parts."""
        return hashlib.sha256(_canonical(asdict(self))).hexdigest()

    def differences(self, other: Key) -> tuple[str, ...]:
        """The parts that are not the same, by the names that a message has for them."""
        return tuple(name for part, name in _NAMES.items() if getattr(self, part) != getattr(other, part))


@dataclass(frozen=True, kw_only=True)
class Manifest(ShardManifest):
    """A folder of latents. The first latent of a trajectory is that of its stored frame `first`, which is the newest of
    the first context. Of a token's `width` numbers the first `carried` are its patch of the newest frame.
    """

    key: Key
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
    def each(self) -> tuple[int, ...]:
        """The shape of one trajectory's latents."""
        return (self.frames, *self.tokens, self.width)

    @property
    def counts(self) -> list[int]:
        """The trajectories of each shard, once all are written."""
        each = self.shard_trajectories
        return [min(each, self.trajectories - first) for first in range(0, self.trajectories, each)]

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shard in self.shards)


def _check(file: Path, manifest: Manifest) -> None:
    if manifest.key.dtype not in STORED:
        raise DataError(f"{file}: was changed after it was written; {MEND}")
    counts = [shard.trajectories for shard in manifest.shards]
    if manifest.shard_trajectories < 1 or (file.name == MANIFEST and counts != manifest.counts):
        raise DataError(f"{file}: has shards of {counts} trajectories, not all of {manifest.trajectories}; {MEND}")


FOLDER = ShardFolder(
    manifest=Manifest, name=MANIFEST, pattern="latents-*.npy", activity="encoding", hint=MEND, check=_check
)


def read_manifest(path: Path) -> Manifest:
    """Return the manifest of a folder. Raises `DataError` where there is none, or it is not what was written."""
    return FOLDER.read(path)


def verify(path: Path, manifest: Manifest) -> None:
    """Read every byte of every shard. Raises `DataError` for the first that is not what was written."""
    for shard in manifest.shards:
        if not is_whole(path, shard):
            raise DataError(f"{path / shard.file}: is missing or damaged (its checksum is another); {MEND}")


def weights_digest(parameters: Mapping[str, np.ndarray]) -> str:
    """64 hex digits over path, shape, type and bytes of every parameter."""
    told = [
        [
            path,
            list(values.shape),
            str(values.dtype),
            hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest(),
        ]
        for path, values in sorted(parameters.items())
    ]
    return hashlib.sha256(_canonical(told)).hexdigest()


def _canonical(values: Any) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
