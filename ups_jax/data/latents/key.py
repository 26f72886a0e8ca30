"""What the latents in a cache depend on, and which part of it differs between two."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

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
