"""The upper bounds of this machine: rates of a large matrix product and of a large copy, through JAX on its device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# Side of the matrices and floats of the copy: seconds on two cores, and enough to fill a GPU.
_SIDES = {"cpu": 2048, "gpu": 8192, "tpu": 8192}
_COPIED = {"cpu": 2**26, "gpu": 2**30, "tpu": 2**28}
# Operands, and how exact their product is.
_PRODUCTS = {
    "float32": (jnp.float32, jax.lax.Precision.HIGHEST),
    "float32 as is": (jnp.float32, jax.lax.Precision.DEFAULT),
    "bfloat16": (jnp.bfloat16, jax.lax.Precision.DEFAULT),
}


def median_seconds(run: Callable[[], Any], runs: int) -> float:
    """Median wall time of `run`, which gives what has to be waited for; one run before is not counted."""
    jax.block_until_ready(run())
    taken = []
    for _ in range(runs):
        begin = time.perf_counter()
        jax.block_until_ready(run())
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def matrix_rates(runs: int = 9) -> dict[str, float]:
    """Operations a second (a multiplication and an addition are two) of a square product on random data, by type. On a
    CPU in float32 alone: it has no other units."""
    platform = jax.default_backend()
    side = _SIDES[platform]
    kinds = ["float32"] if platform == "cpu" else [*_PRODUCTS]
    rates = {}
    for kind in kinds:
        dtype, precision = _PRODUCTS[kind]
        one, other = (jax.random.normal(jax.random.key(seed), (side, side), dtype) for seed in (0, 1))
        product = jax.jit(lambda a, b, precision=precision: jnp.matmul(a, b, precision=precision))
        rates[kind] = 2 * side**3 / median_seconds(lambda f=product, a=one, b=other: f(a, b), runs)
    return rates


def memory_rate(runs: int = 9) -> float:
    """Bytes a second, read and written, of y = x + 1 over more floats than a cache holds."""
    floats = _COPIED[jax.default_backend()]
    x = jnp.zeros(floats, jnp.float32)
    add = jax.jit(lambda x: x + 1)
    return 8 * floats / median_seconds(lambda: add(x), runs)
