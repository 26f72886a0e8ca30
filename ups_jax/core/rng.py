"""The named random streams of a run: every random number comes from one of them, and all come from one seed.

| stream | drawn from | what it decides |
|---|---|---|
| `data/<stage>`, the epoch's number | `seed`, NumPy | the order of an epoch's windows (`data.windows`) |
| `data/<stage>`, the batch's number | `seed`, NumPy | start frames of batch n, then its augmentation |
| `data/<stage>/<task>`, epoch or batch | `seed`, NumPy | order and start frames of each further task |
| `mixing/<stage>`, the number of a block of steps | `seed`, NumPy | the task of each step (`data.mixture`) |
| `init` | `seed`, JAX | initial parameters of a stage (`training.build`) |
| `loss`, the step's number, `noise` | `seed`, JAX | noise on a step's inputs (all of `loss`: `losses.operator`) |
| `loss`, the step's number, `noise scale` | `seed`, JAX | the noise level of each window |
| `loss`, the step's number, `given` | `seed`, JAX | the number of first pushforward steps that take the true frame |
| `loss`, the step's number, `queries` | `seed`, JAX | the points at which the loss is evaluated |
| `evaluation/bootstrap` | `seed`, NumPy | resamples of the trajectories for intervals (`metrics.aggregate`) |
| (no stream) | `data.split.seed`, NumPy | the split into training, validation and test, the same for every `seed` |
| `fold` | `data.split.seed`, NumPy | training trajectories reserved for the corrector (`data.splits`) |
| the task's name | the data file's seed | initial fields and coefficients of built-in data (`simulate`) |

A stream is a function of the seed, its name and its numbers. Drawing more numbers from one stream does not change the
others, no number depends on a clock or a global generator, and a resumed run needs only its step. The keys of JAX
streams are derived from the key in the train state.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Key


def philox_key(seed: int, name: str) -> tuple[int, int]:
    """Return the 128-bit Philox key of a NumPy stream in two words. It differs for every seed and every name."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def philox_generator(key: tuple[int, int], counter: tuple[int, int] = (0, 0)) -> np.random.Generator:
    """Return the generator of a NumPy stream at a counter, such as an epoch. Counters are 2**128 draws apart."""
    # `counter` is in the high words of the Philox counter; draws count in the low words.
    return np.random.Generator(np.random.Philox(key=list(key), counter=[0, 0, *counter]))


def jax_stream_key(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """Return the key of the JAX stream `name`, derived from `key`, which must not be used to draw numbers itself."""
    # Data modules import this module but never jax.
    import jax

    return jax.random.fold_in(key, zlib.crc32(name.encode()))
