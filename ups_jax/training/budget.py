"""How long a step takes once it is compiled, and how many steps fit into a budget of seconds.

The clock is an argument: wall clock for training, process time for a comparison by CPU-seconds.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

Clock = Callable[[], float]


def measure_seconds_per_step(
    train_step: Callable[[Any, Any], tuple[Any, Any]],
    state: Any,
    batches: Iterator[Any],
    *,
    clock: Clock = time.perf_counter,
    warmup: int = 3,
    group: int = 5,
    groups: int = 21,
    enough: float = 5.0,
    at_once: int = 1,
) -> float:
    """Seconds of `clock` a step, its batch included: the median over `groups` of `group` steps, or of three calls
    where each makes `at_once`, so that a pause of the machine does not count.

    `state` is used up; hand over one that nobody needs. The first `warmup` calls, which compile, are left out. Slow
    steps are measured for about `enough` seconds, in three groups at the least.
    """
    # A call is waited for while the next one is under way: of one alone nothing is hidden.
    calls = math.ceil(group / at_once) if at_once == 1 else max(3, math.ceil(group / at_once))
    for _ in range(warmup):
        state, metrics = train_step(state, next(batches))
        jax.block_until_ready((state, metrics))
    seconds: list[float] = []
    begin = clock()
    while len(seconds) < groups and (len(seconds) < 3 or clock() - begin < enough):
        start = clock()
        for _ in range(calls):
            state, metrics = train_step(state, next(batches))
        # As in the loop, steps are dispatched one after the other and waited for later.
        jax.block_until_ready((state, metrics))
        seconds.append((clock() - start) / (calls * at_once))
    return statistics.median(seconds)


def measure_seconds(call: Callable[[], Any], *, clock: Clock = time.perf_counter, repeats: int = 3) -> float:
    """Seconds of `clock` that a call takes: the median of `repeats` calls after one that compiles."""
    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        start = clock()
        jax.block_until_ready(call())
        seconds.append(clock() - start)
    return statistics.median(seconds)


def steps_within(seconds: float, seconds_per_step: float) -> int:
    """How many steps fit into `seconds`, one at the least."""
    return max(1, math.floor(seconds / seconds_per_step))
