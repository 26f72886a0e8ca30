"""A writer that is told less than everything, for one to which every record is work."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from ups_jax.tracking.writer import Outcome, Tee, Writer


class Thinned(Tee):
    """Hands on one record every `seconds` at the most, one with a validation at once, and the newest at the end."""

    def __init__(self, writer: Writer, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__([writer])
        self._seconds, self._clock = seconds, clock
        self._due: float | None = None
        self._held: tuple[int, Mapping[str, float], str] | None = None

    def scalars(self, step: int, values: Mapping[str, float], stage: str) -> None:
        """Hand the record on or hold it until there is a newer one."""
        moment = self._clock()
        validated = any(name.startswith("validation/") for name in values)
        if self._due is not None and moment < self._due and not validated:
            self._held = step, values, stage
            return
        self._held, self._due = None, moment + self._seconds
        super().scalars(step, values, stage)

    def close(self, outcome: Outcome = "finished") -> None:
        """Hand on what is held, then close, also after an error of that."""
        try:
            if self._held is not None:
                super().scalars(*self._held)
        finally:
            super().close(outcome)
