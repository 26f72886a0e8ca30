"""What a person sees while training: a live bar on a terminal, one line every few seconds elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class TrainingProgress:
    """Loss, validation nRMSE, steps a second and time left of one stage."""

    def __init__(self, console: Console, stage: str, total_steps: int, start: int, every_seconds: float) -> None:
        self._console = console
        self._stage = stage
        self._total = total_steps
        self._start = start
        self._every = every_seconds
        self._loss: float | None = None
        self._validation: float | None = None
        self._told = time.monotonic()
        self._newest = start
        # Rates count from the second step: the first one waits for the compiler.
        self._running: float | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(stage, total=total_steps, completed=start, numbers="")

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    @property
    def seconds_per_step(self) -> float | None:
        """Wall time a step, validation and saves included, compilation not; None before the second step."""
        if self._running is None or self._newest == self._start:
            return None
        return (time.monotonic() - self._running) / (self._newest - self._start)

    def loss(self, value: float) -> None:
        """The newest training loss."""
        self._loss = value

    def validation(self, value: float) -> None:
        """The newest validation nRMSE."""
        self._validation = value

    def step(self, step: int) -> None:
        """A step was begun; shows or says it when it is time."""
        moment = time.monotonic()
        self._newest = step
        if self._running is None:
            self._running, self._start = moment, step
            return
        rate = (step - self._start) / max(moment - self._running, 1e-9)
        known = {"loss": self._loss, "validation nRMSE": self._validation}
        told = [f"{name} {value:.2e}" for name, value in known.items() if value is not None]
        numbers = "  ".join([*told, f"{rate:.1f} steps/s"])
        if self._console.is_terminal:
            self._bar.update(self._task, completed=step, numbers=numbers)
        elif moment - self._told >= self._every:
            self._told = moment
            left = (self._total - step) / max(rate, 1e-9)
            self._console.print(
                f"{self._stage} {step}/{self._total}  {numbers}  {left:.0f} s left", highlight=False, soft_wrap=True
            )
