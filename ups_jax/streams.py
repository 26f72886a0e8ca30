"""Named random streams of JAX: what is drawn under a name is left as it is by whatever is drawn under another."""

from __future__ import annotations

import zlib

import jax
from jaxtyping import Array, Key


def stream(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """The key of what is drawn under a name; a key that streams are taken from is never drawn from itself."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
