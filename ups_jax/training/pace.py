"""How long epochs take, for the records of metrics.jsonl, and calls, for how many steps the next one makes."""

from __future__ import annotations

import time


class EpochClock:
    """Wall seconds an epoch, from one evaluation to the next, evaluation and saves included.

    It starts after the first step, which waits for the compiler.
    """

    def __init__(self, steps_per_epoch: int) -> None:
        self._steps_per_epoch = steps_per_epoch
        self._since: tuple[int, float] | None = None

    def step(self, step: int) -> None:
        """A step was begun."""
        if self._since is None:
            self._since = step, time.monotonic()

    def read(self, step: int) -> dict[str, float]:
        """`epoch_time_sec` at a finished step, from which the next reading counts; nothing where no step was timed."""
        if self._since is None or step == self._since[0]:
            return {}
        begin, moment = self._since
        self._since = step, time.monotonic()
        return {"epoch_time_sec": (self._since[1] - moment) / (step - begin) * self._steps_per_epoch}


class CallPace:
    """How many steps a call makes: as many as take `seconds`, and `most` at the most, so that a signal and a save need
    not wait for long. A call is waited for while the next one is under way."""

    def __init__(self, most: int, seconds: float = 0.5) -> None:
        self._most, self._seconds = most, seconds
        self._steps = 1
        self._begun: float | None = None
        # Of the call that began last, and of the one before it, for which the time since then was spent.
        self._newest: int | None = None
        self._waited: int | None = None

    def begin(self, at_most: int) -> int:
        """A call begins: how many steps it makes, of those that there are until something else is to be done."""
        moment = time.monotonic()
        if self._begun is not None and self._waited is not None:
            each = max(moment - self._begun, 1e-9) / self._waited
            self._steps = min(self._most, max(1, int(self._seconds / each)))
        count = min(self._steps, at_most)
        self._begun, self._waited, self._newest = moment, self._newest, count
        return count

    def interrupt(self) -> None:
        """Something else was done since the last call, whose time tells nothing."""
        self._begun = self._newest = self._waited = None
