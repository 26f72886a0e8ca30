"""Output to a terminal or pipe that may be closed while a command runs."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ups_jax.core.files import storage_error

if TYPE_CHECKING:
    from rich.console import Console

# The reader of the pipe has ended; the terminal was closed.
_GONE = (errno.EPIPE, errno.EIO)
# Most characters of a message.
_LONGEST = 1600


def hangup_signals() -> tuple[signal.Signals, ...]:
    """Return a tuple of SIGHUP, or an empty one if the process ignores SIGHUP, as under `nohup`."""
    return () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)


@contextmanager
def tolerate_closed_output() -> Iterator[None]:
    """Let the block continue when the reader of stdout or stderr has ended; further output to it is dropped.

    A standard stream that is already closed when the block starts is replaced by the null device.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # Otherwise the next file that is opened gets this descriptor, and prints go into it.
            os.open(os.devnull, os.O_RDWR)
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (None if stream is None else TolerantStream(stream) for stream in streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


def print_line(console: Console, line: str) -> None:
    """Print a line without wrapping and without markup."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def one_line(text: object) -> str:
    """Return a text as one printable line of bounded length.

    Control characters, which may come from a file of unknown origin, are escaped; the middle of a long text is cut.
    """
    shown = "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in str(text))
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST * 3 // 4]} ... {shown[-_LONGEST // 4 :]}"


class TolerantStream:
    """A text stream that drops output when its reader, a process or a terminal, has ended.

    A stream to a file that cannot be written raises `StorageError`.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, or drop it if the reader has ended."""
        self._call_or_drop(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream, or drop the buffered output if the reader has ended."""
        self._call_or_drop(lambda: self._stream.flush())

    def _call_or_drop(self, operation: Callable[[], object]) -> None:
        try:
            operation()
        except OSError as error:
            # The null device also takes the rest of the buffer, now and at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if error.errno not in _GONE:
                raise storage_error(Path(self._stream.name), error) from None
