"""What takes the numbers of a run: the `Writer` protocol, and several writers as one."""

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
# How whatever wrote came to its end: by itself, by a signal that it may be started again after, or by an error.
Outcome = Literal["finished", "stopped", "failed"]
# A number, a word, or nothing where a row has no such column.
Cell = float | int | str | None


@runtime_checkable
class Writer(Protocol):
    """Takes the numbers of a run. A class that derives from it does nothing in what it does not define."""

    def scalars(self, step: int, values: Mapping[str, float], stage: str) -> None:
        """One record: the metrics after `step` completed steps of `stage`, `epoch` among them."""
        return None

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final numbers of the run, in sections if they are nested; a later value of a name replaces an earlier one."""
        return None

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """A table of the run."""
        return None

    def image(self, name: str, path: Path) -> None:
        """A picture of the run."""
        return None

    def file(self, path: Path) -> None:
        """A file of the run that should be kept with it, under its own name."""
        return None

    def artifact(self, path: Path, name: str, *, kind: str, labels: Sequence[str], about: Mapping[str, Any]) -> None:
        """A folder that is one version of the thing `name`, such as a checkpoint, with labels and facts about it."""
        return None

    def config(self, values: Mapping[str, Any]) -> None:
        """Settings and facts that are known only after the start, beside the configuration."""
        return None

    def tags(self, names: Sequence[str]) -> None:
        """More words to find the run by."""
        return None

    def alert(self, title: str, text: str, level: Level = "INFO") -> None:
        """Something that a person who is not looking should hear of."""
        return None

    def close(self, outcome: Outcome = "finished") -> None:
        """Write what is still waiting, and how the run ended; nothing may follow."""
        return None

    def delivered(self, *kinds: str) -> bool:
        """Of a closed writer: whether all that it was given of these kinds, named as its methods, has gone out."""
        return True


def _to_all(method: Callable[Concatenate[Writer, P], None]) -> Callable[Concatenate[Tee, P], None]:
    """A method of `Writer` that calls those of several writers."""

    @functools.wraps(method)
    def call(self: Tee, *args: P.args, **kwargs: P.kwargs) -> None:
        for writer in self.writers:
            getattr(writer, method.__name__)(*args, **kwargs)

    return call


class Tee(Writer):
    """Hands everything to several writers in order."""

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
        """Close every writer, also after one of them raised."""
        with contextlib.ExitStack() as stack:
            for writer in reversed(self.writers):
                stack.callback(writer.close, outcome)

    def delivered(self, *kinds: str) -> bool:
        """See `Writer`."""
        return all(writer.delivered(*kinds) for writer in self.writers)


@contextlib.contextmanager
def ending(writer: Writer, goes_on: Callable[[Exception], bool] = lambda _error: False) -> Iterator[Writer]:
    """Close the writer where the block ends, with the outcome that its error tells: stopped by a signal, or by an error
    after which the run `goes_on`; failed by any other.
    """
    outcome: Outcome = "failed"
    try:
        yield writer
        outcome = "finished"
    except (Stopped, KeyboardInterrupt):
        outcome = "stopped"
        raise
    except Exception as error:
        outcome = "stopped" if goes_on(error) else "failed"
        raise
    finally:
        writer.close(outcome)


def flat(values: Mapping[str, Any], separator: str = "/") -> dict[str, Any]:
    """Nested sections as one level: `{"eval": {"nrmse": 1}}` is `{"eval/nrmse": 1}`."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            result |= {f"{name}{separator}{inner}": item for inner, item in flat(value, separator).items()}
        else:
            result[name] = value
    return result


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
