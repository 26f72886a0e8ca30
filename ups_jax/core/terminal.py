"""What a script was started from: a terminal or a pipe, which may go away while it works."""

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

# Nobody reads the pipe any more; the terminal hung up.
_GONE = (errno.EPIPE, errno.EIO)
# Characters of a message.
_LONGEST = 1600


def hang_up() -> tuple[signal.Signals, ...]:
    """SIGHUP, where it ends a process: `nohup` has it ignored, and that is left so."""
    return () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)


@contextmanager
def lasting_output() -> Iterator[None]:
    """A program whose listener goes away works on to its end: what it prints after that is dropped. A stream that was
    closed at its start is one that nobody listens to."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # Or else the next file that is opened is what prints go to.
            os.open(os.devnull, os.O_RDWR)
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (None if stream is None else LastingStream(stream) for stream in streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


def say(console: Console, line: str) -> None:
    """Print a line as it is: not folded, without markup."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def one_line(text: object) -> str:
    """What a message says in one line of bounded length: what would move the cursor or speak to the terminal is
    written out, as texts in files that were received may hold it, and the middle of a very long line is left out."""
    shown = "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in str(text))
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST * 3 // 4]} ... {shown[-_LONGEST // 4 :]}"


class LastingStream:
    """A text stream that drops what it is given once its reader is gone. `StorageError` where it is a file on a disk
    that is full."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or drop."""
        self._while_heard(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush, or drop."""
        self._while_heard(lambda: self._stream.flush())

    def _while_heard(self, call: Callable[[], object]) -> None:
        try:
            call()
        except OSError as error:
            # What still waits in the stream's buffer goes there too, now and when the program ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if error.errno not in _GONE:
                raise storage_error(Path(self._stream.name), error) from None
