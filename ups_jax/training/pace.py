"""How long an epoch takes, for the records of metrics.jsonl."""

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
