"""The `Writer` interface for logging metrics and results of a run, and writers that combine or throttle writers."""

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
    """Interface of the classes that log metrics and results of a run; by default every method does nothing."""

    def scalars(self, step: int, values: Mapping[str, float], stage: str) -> None:
        """Log the values of named metrics, among them `epoch`, as of `step` completed steps of `stage`."""
        return None

    def summary(self, values: Mapping[str, Any]) -> None:
        """Log final values of the run by name, possibly in nested mappings; a later value replaces an earlier one."""
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
        """Add values to the logged configuration that were not available when the writer was opened."""
        return None

    def tags(self, names: Sequence[str]) -> None:
        """Add tags to the run."""
        return None

    def alert(self, title: str, text: str, level: Level = "INFO") -> None:
        """Send a notification to the user."""
        return None

    def close(self, outcome: Outcome = "finished") -> None:
        """Write all buffered data and the outcome of the run; afterwards only `has_delivered` may be called."""
        return None

    def has_delivered(self, *method_names: str) -> bool:
        """Return whether this closed writer has written the data of every call of the methods with these names."""
        return True


def _forwarding(method: Callable[Concatenate[Writer, P], None]) -> Callable[Concatenate[Tee, P], None]:
    """Return a method of `Tee` that calls `method`, a method of `Writer`, on every writer of the tee."""

    @functools.wraps(method)
    def call_on_all(self: Tee, *args: P.args, **kwargs: P.kwargs) -> None:
        for writer in self.writers:
            getattr(writer, method.__name__)(*args, **kwargs)

    return call_on_all


class Tee(Writer):
    """Forwards every call to several writers, in order."""

    def __init__(self, writers: Sequence[Writer]) -> None:
        self.writers = tuple(writers)

    scalars = _forwarding(Writer.scalars)
    summary = _forwarding(Writer.summary)
    table = _forwarding(Writer.table)
    image = _forwarding(Writer.image)
    file = _forwarding(Writer.file)
    artifact = _forwarding(Writer.artifact)
    config = _forwarding(Writer.config)
    tags = _forwarding(Writer.tags)
    alert = _forwarding(Writer.alert)

    def close(self, outcome: Outcome = "finished") -> None:
        """Close every writer, even if closing one of them raises."""
        with contextlib.ExitStack() as stack:
            for writer in reversed(self.writers):
                stack.callback(writer.close, outcome)

    def has_delivered(self, *method_names: str) -> bool:
        """Return whether every writer has written the data of every call of the methods with these names."""
        return all(writer.has_delivered(*method_names) for writer in self.writers)


@contextlib.contextmanager
def close_on_exit(writer: Writer, is_retryable: Callable[[Exception], bool] = lambda _error: False) -> Iterator[Writer]:
    """Close the writer at the end of a `with` block, with an outcome that depends on how the block ends.

    The outcome is `stopped` if a stop signal or a retryable exception ends the block, `failed` for other exceptions.

    Args:
        is_retryable: Returns whether the run will be started again after an exception.
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
    """Return nested mappings as one mapping with joined keys: `{"eval": {"nrmse": 1}}` becomes `{"eval/nrmse": 1}`."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            result |= {f"{name}{separator}{inner}": item for inner, item in flatten_sections(value, separator).items()}
        else:
            result[name] = value
    return result


class ThrottledWriter(Tee):
    """Forwards training metrics to another writer at most once per `seconds`, and drops the metrics in between.

    Metrics that include validation metrics are always forwarded. `close` forwards the last metrics if they
    were dropped. All other calls are forwarded immediately.

    Args:
        seconds: Minimum time between forwarded training metrics.
        clock: Returns the current time in seconds.
    """

    def __init__(self, writer: Writer, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__([writer])
        self._seconds, self._clock = seconds, clock
        self._next_time: float | None = None
        self._pending: tuple[int, Mapping[str, float], str] | None = None

    def scalars(self, step: int, values: Mapping[str, float], stage: str) -> None:
        """Forward the metrics, or if it is too early keep them until the next call replaces them."""
        now = self._clock()
        is_validated = any(name.startswith("validation/") for name in values)
        if self._next_time is not None and now < self._next_time and not is_validated:
            self._pending = step, values, stage
            return
        self._pending, self._next_time = None, now + self._seconds
        super().scalars(step, values, stage)

    def close(self, outcome: Outcome = "finished") -> None:
        """Forward the metrics that were kept, and close the writer even if forwarding raises an error."""
        try:
            if self._pending is not None:
                super().scalars(*self._pending)
        finally:
            super().close(outcome)
