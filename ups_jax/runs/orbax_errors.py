"""Errors of the libraries that write and read checkpoints, as ours, and what their failures leave behind."""

from __future__ import annotations

import gc
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import jax

from ups_jax.core.files import storage_error


class _AllButLateReads:
    """A hook for errors that nobody can catch, `sys.unraisablehook`: passes all on but those of reads that end when the
    event loop that asked for them is closed."""

    def __init__(self, told: Callable[[sys.UnraisableHookArgs], object]) -> None:
        self._told = told

    def __call__(self, unraisable: sys.UnraisableHookArgs) -> None:
        if unraisable.exc_type is not RuntimeError or str(unraisable.exc_value) != "Event loop is closed":
            self._told(unraisable)


def drop_abandoned_reads() -> None:
    """Collect the coroutines that a failed restore leaves behind, or each would complain when the program ends; reads
    that are still under way then say nothing, as long as the process lives."""
    complain, sys.unraisablehook = sys.unraisablehook, lambda _: None
    logging.getLogger("asyncio").disabled = True
    try:
        with warnings.catch_warnings(action="ignore"):
            gc.collect()
    finally:
        sys.unraisablehook = complain if isinstance(complain, _AllButLateReads) else _AllButLateReads(complain)
        logging.getLogger("asyncio").disabled = False


def is_memory_error(error: Exception) -> bool:
    """Whether a checkpoint could not be read because memory ran out, which says nothing of the checkpoint."""
    of_device = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    return of_device or isinstance(error, MemoryError)


class storage_errors:
    """Turns a full or read-only disk under a save into `StorageError`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        cause = error
        while cause is not None:
            if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
                raise storage_error(self._directory, cause) from error
            # What tensorstore, which writes the arrays, makes of an error of the system.
            found = re.search(r"os_error_code='(\d+)'", str(cause))
            if found is not None:
                number = int(found[1])
                raise storage_error(self._directory, OSError(number, os.strerror(number))) from error
            cause = cause.__cause__ or cause.__context__
