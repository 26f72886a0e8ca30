"""The `Writer` protocol for the metrics and results of a run, and writers that combine or throttle other writers."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, runtime_checkable

from ups_jax.core.errors import Stopped

P = ParamSpec("P")
Level = Literal["INFO", "WARN", "ERROR"]
# How a run ended: normally, by a signal or an error after which it may be restarted, or by a fatal error.
Outcome = Literal["finished", "stopped", "failed"]
# A table cell; None leaves it empty.
Cell = float | int | str | None


@runtime_checkable
class Writer(Protocol):
    """Interface of everything that logs a run; every method does nothing by default."""

    def scalars(self, step: int, values: Mapping[str, float], stage: str) -> None:
        """Log one record of metrics after `step` completed steps of `stage`; `values` contains `epoch`."""
        return None

    def summary(self, values: Mapping[str, Any]) -> None:
        """Log final values of the run, possibly nested in sections; a later value replaces an earlier one."""
        return None

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Log a table."""
        return None

    def image(self, name: str, path: Path) -> None:
        """Log an image file."""
        return None

    def file(self, path: Path) -> None:
        """Attach a file to the run under its own file name."""
        return None

    def artifact(self, path: Path, name: str, *, kind: str, labels: Sequence[str], metadata: Mapping[str, Any]) -> None:
        """Log a folder, such as a checkpoint, as a new version of the artifact `name`."""
        return None

    def config(self, values: Mapping[str, Any]) -> None:
        """Add values to the logged configuration that are available only after the start."""
        return None

    def tags(self, names: Sequence[str]) -> None:
        """Add tags to the run."""
        return None

    def alert(self, title: str, text: str, level: Level = "INFO") -> None:
        """Send a notification to the user."""
        return None

    def close(self, outcome: Outcome = "finished") -> None:
        """Write everything that is buffered and the run's outcome; no other call may follow."""
        return None

    def delivered(self, *kinds: str) -> bool:
        """Return whether a closed writer has written every item of these kinds (names of the methods above)."""
        return True


def _to_all(method: Callable[Concatenate[Writer, P], None]) -> Callable[Concatenate[Tee, P], None]:
    """Return a `Tee` method that calls the `Writer` method of the same name on every writer."""

    @functools.wraps(method)
    def call(self: Tee, *args: P.args, **kwargs: P.kwargs) -> None:
        for writer in self.writers:
            getattr(writer, method.__name__)(*args, **kwargs)

    return call


class Tee(Writer):
    """Forwards every call to several writers, in order."""

    def __init__(self, writers: Sequence[Writer]) -> None:
        self.writers = tuple(writers)

    scalars = _to_all(Writer.scalars)
    summary = _to_all(Writer.summary)
    table = _to_all(Writer.table)
    image = _to_all(Writer.image)
    file = _to_all(Writer.file)
    artifact = _to_all(Writer.artifact)
    config = _to_all(Writer.config)
    tags = _to_all(Writer.tags)
    alert = _to_all(Writer.alert)

    def close(self, outcome: Outcome = "finished") -> None:
        """Close every writer, even if closing one of them raises."""
        with contextlib.ExitStack() as stack:
            for writer in reversed(self.writers):
                stack.callback(writer.close, outcome)

    def delivered(self, *kinds: str) -> bool:
        """Return whether every writer has written every item of these kinds."""
        return all(writer.delivered(*kinds) for writer in self.writers)


@contextlib.contextmanager
def close_on_exit(writer: Writer, is_retryable: Callable[[Exception], bool] = lambda _error: False) -> Iterator[Writer]:
    """Close the writer at the end of a `with` block, with the outcome that the block's exception implies.

    Args:
        writer: The writer to close.
        is_retryable: Returns True for an exception after which the run is started again. Such an exception, like a stop
            signal, closes the writer as `stopped`; any other exception closes it as `failed`.
    """
    outcome: Outcome = "failed"
    try:
        yield writer
        outcome = "finished"
    except (Stopped, KeyboardInterrupt):
        outcome = "stopped"
        raise
    except Exception as error:
        outcome = "stopped" if is_retryable(error) else "failed"
        raise
    finally:
        writer.close(outcome)


def flatten_sections(values: Mapping[str, Any], separator: str = "/") -> dict[str, Any]:
    """Return nested sections as one level: `{"eval": {"nrmse": 1}}` becomes `{"eval/nrmse": 1}`."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            result |= {f"{name}{separator}{inner}": item for inner, item in flatten_sections(value, separator).items()}
        else:
            result[name] = value
    return result


class ThrottledWriter(Tee):
    """Forwards at most one record of metrics per `seconds`, records with validation metrics always.

    `close` forwards the newest record if it was held back. All other calls are forwarded immediately.

    Args:
        writer: The writer to forward to.
        seconds: Minimum time between two forwarded records.
        clock: Returns the current time in seconds.
    """

    def __init__(self, writer: Writer, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__([writer])
        self._seconds, self._clock = seconds, clock
        self._next_time: float | None = None
        self._pending: tuple[int, Mapping[str, float], str] | None = None

    def scalars(self, step: int, values: Mapping[str, float], stage: str) -> None:
        """Forward the record, or keep it until the next one replaces it."""
        now = self._clock()
        is_validated = any(name.startswith("validation/") for name in values)
        if self._next_time is not None and now < self._next_time and not is_validated:
            self._pending = step, values, stage
            return
        self._pending, self._next_time = None, now + self._seconds
        super().scalars(step, values, stage)

    def close(self, outcome: Outcome = "finished") -> None:
        """Forward the pending record and close the writer, even if forwarding raises."""
        try:
            if self._pending is not None:
                super().scalars(*self._pending)
        finally:
            super().close(outcome)
