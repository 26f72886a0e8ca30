"""Many processes as one run: how they meet, which of them writes, and what all of them agree on.

Without others nothing here needs jax, which is imported where there are some.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ups_jax.config import ParallelConfig
from ups_jax.core.errors import ConfigError

T = TypeVar("T")

# Steps between two questions whether anybody wants to save or stop: each is a round over the network.
_AGREE_EVERY = 8


@dataclass
class _Place:
    """Which of how many processes this one is."""

    index: int = 0
    count: int = 1


_PLACE = _Place()


def start_processes(config: ParallelConfig) -> None:
    """Join the other processes of the run, where there are to be others; before anything asks for a device.

    Slurm, TPU pods, Kubernetes and MPI are recognised by JAX; elsewhere `coordinator`, `processes` and `process` say
    who is who. ConfigError where neither does, or the others do not come.
    """
    if not config.multihost:
        return
    import jax

    # A signal is answered by the loop of whoever gets it, and agreed on there; JAX's own service would take it away.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            config.coordinator,
            config.processes,
            config.process,
            initialization_timeout=config.timeout_seconds,
            heartbeat_timeout_seconds=config.timeout_seconds,
        )
    except (ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"parallel.multihost: the processes of the run could not be brought together ({reason}); give "
            "parallel.coordinator=HOST:PORT parallel.processes=N parallel.process=I to each of them"
        ) from None
    _PLACE.index, _PLACE.count = jax.process_index(), jax.process_count()


def is_first() -> bool:
    """Whether this process is the one that writes: logs, records, evaluations."""
    return _PLACE.index == 0


def has_others() -> bool:
    """Whether the run has other processes."""
    return _PLACE.count > 1


def own_share() -> dict[str, int]:
    """Which part of every batch this process reads, as readers of batches take it."""
    return {"process_index": _PLACE.index, "process_count": _PLACE.count}


def agreed(value: T) -> T:
    """The first process's `value` (numbers, strings and what JSON has of them), in every process."""
    if not has_others():
        return value
    from jax.experimental import multihost_utils

    told = np.frombuffer(json.dumps(value).encode(), np.uint8) if is_first() else np.zeros(0, np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(told))))
    padded = told if is_first() else np.zeros(length, np.uint8)
    heard: T = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).astype(np.uint8).tobytes())
    return heard


def wait_for_all(place: str) -> None:
    """Return when every process has come to this place."""
    if has_others():
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(place)


def first_does(work: Callable[[], T]) -> T | None:
    """`work()` in the first process, while the others wait for its end: they get None."""
    result = work() if is_first() else None
    wait_for_all("first_does")
    return result


def any_wants(wish: bool, step: int) -> bool:
    """Whether any process has the wish; several are asked together, at every eighth step alone."""
    if not has_others():
        return wish
    from jax.experimental import multihost_utils

    return step % _AGREE_EVERY == 0 and bool(multihost_utils.process_allgather(np.array(wish)).any())
