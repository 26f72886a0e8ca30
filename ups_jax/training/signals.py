"""SIGTERM, Ctrl-C and the hang-up of a terminal as a flag that the loop polls: a stop falls between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ups_jax.terminal import hang_up


@contextmanager
def stop_flag() -> Iterator[Callable[[], bool]]:
    """A function that answers whether to stop; a second Ctrl-C interrupts at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def remember(number: int, _: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    numbers = [signal.SIGTERM, signal.SIGINT, *hang_up()]
    previous = {number: signal.signal(number, remember) for number in numbers}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
