"""The named random streams of a run: every number that is drawn comes from one of them, by name, from one seed.

| stream | drawn from | what it decides |
|---|---|---|
| `data/<stage>`, the epoch's number | `seed`, NumPy | the order of an epoch's windows (`data.windows`) |
| `data/<stage>`, the batch's number | `seed`, NumPy | start frames of batch n, then its augmentation |
| `data/<stage>/<task>`, the same numbers | `seed`, NumPy | the same of every task after the first |
| `mixing/<stage>`, the number of a block of steps | `seed`, NumPy | which task each step is of (`data.mixture`) |
| `init` | `seed`, JAX | fresh parameters of a stage (`training.build`) |
| `loss`, the step's number, `noise` | `seed`, JAX | noise on a step's inputs (`losses.operator`, as the next three) |
| `loss`, the step's number, `noise scale` | `seed`, JAX | how strong it is in each window |
| `loss`, the step's number, `given` | `seed`, JAX | how many of the steps of the pushforward are the true ones |
| `loss`, the step's number, `queries` | `seed`, JAX | the points that a step's loss is scored at |
| `evaluation/bootstrap` | `seed`, NumPy | resamples of the trajectories for intervals (`metrics.aggregate`) |
| none | `data.split.seed`, NumPy | which trajectories train, validate and test: runs of several seeds share them |
| `fold` | `data.split.seed`, NumPy | which training trajectories are the corrector's alone (`data.splits`) |
| the task's name | the data file's seed | initial fields and coefficients of embedded data (`simulate`) |

A stream is a function of the seed, its name and its numbers alone: drawing more from one leaves all others as they are,
nothing comes from a clock or a global generator, and a resumed run needs its step only. Streams of JAX are folded into
the key of the train state.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Key


def stream_key(seed: int, name: str) -> tuple[int, int]:
    """128 bits that differ for every seed and every name of a stream."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def generator(key: tuple[int, int], counter: tuple[int, int] = (0, 0)) -> np.random.Generator:
    """The numbers of the stream of a key, from one of its places on; 2**128 draws lie between two of them."""
    # The counter's high words number the places, its low words the draws.
    return np.random.Generator(np.random.Philox(key=list(key), counter=[0, 0, *counter]))


def stream(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """The key of what is drawn under a name; a key that streams are taken from is never drawn from itself."""
    import jax  # here, since data modules import this one and never jax

    return jax.random.fold_in(key, zlib.crc32(name.encode()))
