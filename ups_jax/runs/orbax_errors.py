"""Conversion of errors of orbax and tensorstore, and cleanup after a failed restore."""

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


class _LateReadFilter:
    """A `sys.unraisablehook` that ignores the error of a read that ends after the event loop was closed."""

    def __init__(self, hook: Callable[[sys.UnraisableHookArgs], object]) -> None:
        self._hook = hook

    def __call__(self, unraisable: sys.UnraisableHookArgs) -> None:
        if unraisable.exc_type is not RuntimeError or str(unraisable.exc_value) != "Event loop is closed":
            self._hook(unraisable)


def drop_abandoned_reads() -> None:
    """Garbage-collect the coroutines of a failed restore without their warnings.

    Errors of reads that end later are ignored for the rest of the process.
    """
    previous_hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    logging.getLogger("asyncio").disabled = True
    try:
        with warnings.catch_warnings(action="ignore"):
            gc.collect()
    finally:
        sys.unraisablehook = (
            previous_hook if isinstance(previous_hook, _LateReadFilter) else _LateReadFilter(previous_hook)
        )
        logging.getLogger("asyncio").disabled = False


def is_memory_error(error: Exception) -> bool:
    """Return whether a restore failed because memory was exhausted; the checkpoint is then not damaged."""
    out_of_device_memory = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    return out_of_device_memory or isinstance(error, MemoryError)


class storage_errors:
    """A context manager for saves that raises `StorageError` if the disk is full or read-only."""

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
            # tensorstore, which writes the arrays, reports errors of the system in this form.
            match = re.search(r"os_error_code='(\d+)'", str(cause))
            if match is not None:
                number = int(match[1])
                raise storage_error(self._directory, OSError(number, os.strerror(number))) from error
            cause = cause.__cause__ or cause.__context__
