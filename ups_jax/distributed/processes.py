"""Multi-process runs: how processes connect, which process writes files, and how they exchange values.

A "host" is a process of the run; host 0 writes logs and records. jax is imported only if the run has several processes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict, TypeVar

import numpy as np

from ups_jax.config import ParallelConfig
from ups_jax.core.errors import ConfigError

T = TypeVar("T")

# `any_host` communicates only at every eighth step, because each exchange is a round trip over the network.
_EXCHANGE_EVERY = 8


@dataclass
class _Process:
    """The index of this process and the number of processes."""

    index: int = 0
    count: int = 1


_PROCESS = _Process()


class ProcessSlice(TypedDict):
    """The arguments of the batch readers that select one process's share of the batch rows."""

    process_index: int
    process_count: int


def start_processes(config: ParallelConfig) -> None:
    """Connect this process to the other processes of the run if `multihost` is set; call before any use of a device.

    JAX detects Slurm, TPU pods, Kubernetes and MPI. Elsewhere `coordinator`, `processes` and `process` are required.

    Raises:
        ConfigError: Neither JAX nor the configuration describes the processes, or some did not connect in time.
    """
    if not config.multihost:
        return
    import jax

    # The training loop handles signals and shares them between processes; JAX's service would intercept them.
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
            f"parallel.multihost: the processes of the run could not connect ({reason}); start each process with "
            "parallel.coordinator=HOST:PORT parallel.processes=N parallel.process=I"
        ) from None
    _PROCESS.index, _PROCESS.count = jax.process_index(), jax.process_count()


def is_host0() -> bool:
    """Return whether this process is host 0, which writes logs and records and runs evaluations."""
    return _PROCESS.index == 0


def is_multihost() -> bool:
    """Return whether the run has more than one process."""
    return _PROCESS.count > 1


def process_slice() -> ProcessSlice:
    """Return the arguments with which the batch readers read this process's rows of every batch."""
    return {"process_index": _PROCESS.index, "process_count": _PROCESS.count}


def broadcast_from_host0(value: T) -> T:
    """Return in every process the `value` that host 0 passes, which must be representable as JSON."""
    if not is_multihost():
        return value
    from jax.experimental import multihost_utils

    message = np.frombuffer(json.dumps(value).encode(), np.uint8) if is_host0() else np.zeros(0, np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
    padded = message if is_host0() else np.zeros(length, np.uint8)
    received: T = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).astype(np.uint8).tobytes())
    return received


def wait_for_all(barrier: str) -> None:
    """Block until every process has called this function with the same barrier name."""
    if is_multihost():
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(barrier)


def on_host0(function: Callable[[], T]) -> T | None:
    """Call `function` on host 0 and return its result; return None in the other processes, which wait for it."""
    result = function() if is_host0() else None
    wait_for_all("on_host0")
    return result


def any_host(flag: bool, step: int) -> bool:
    """Return whether `flag` is true in any process.

    The processes communicate only if `step` is a multiple of 8; at any other step of a multi-process run the result is
    False.
    """
    if not is_multihost():
        return flag
    from jax.experimental import multihost_utils

    return step % _EXCHANGE_EVERY == 0 and bool(multihost_utils.process_allgather(np.array(flag)).any())
