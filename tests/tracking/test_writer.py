"""Several writers as one."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from ups_jax.core.errors import DivergedError, Stopped, StorageError
from ups_jax.tracking import Tee, Writer, close_on_exit, flatten_sections, read_jsonl
from ups_jax.tracking.jsonl import JsonlWriter
from ups_jax.trainer.oom import StateLost, is_retried

CALLS = {
    "scalars": ((1, {"loss": 2.0}, "operator"), {}),
    "summary": (({"x": 1},), {}),
    "table": (("t", ["a"], [[1.0]]), {}),
    "image": (("plot", Path("p.png")), {}),
    "file": ((Path("r.html"),), {}),
    "artifact": ((Path("best"), "run"), {"kind": "model", "labels": ["best"], "metadata": {"step": 3}}),
    "config": (({"parameters": 5},), {}),
    "tags": ((["a"],), {}),
    "alert": (("title", "text", "WARN"), {}),
}


def recorder(name, calls):
    def note(kind):
        return lambda *args, **kwargs: calls.append((name, kind, args, kwargs))

    return SimpleNamespace(**{kind: note(kind) for kind in (*CALLS, "close", "has_delivered")})


def test_tee_hands_on_everything_and_closes_all_even_when_one_raises():
    calls = []
    first, second = recorder("a", calls), recorder("b", calls)
    tee = Tee([first, second])
    for kind, (args, kwargs) in CALLS.items():
        getattr(tee, kind)(*args, **kwargs)
    assert calls == [(name, kind, *CALLS[kind]) for kind in CALLS for name in ("a", "b")]

    def fail(outcome):
        raise StorageError("full")

    first.close = fail
    second.close = calls.append
    with pytest.raises(StorageError):
        tee.close("stopped")
    assert calls[-1] == "stopped"
    for lost in ((), ("alert",)):
        second.has_delivered = lambda *kinds, lost=lost: not set(kinds) & set(lost)
        first.has_delivered = lambda *kinds: True
        assert [tee.has_delivered(kind) for kind in ("alert", "table")] == [not lost, True]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "finished"),
        (Stopped("at step 3"), "stopped"),
        (KeyboardInterrupt(), "stopped"),
        (DivergedError("lost"), "failed"),
        (RuntimeError("anything"), "failed"),
        (SystemExit(1), "failed"),
    ],
)
def test_the_end_of_a_block_tells_its_outcome(error, outcome):
    heard = []

    class Listening(Writer):
        def close(self, outcome="finished"):
            heard.append(outcome)

    with contextlib.nullcontext() if error is None else pytest.raises(type(error)), close_on_exit(Listening()):
        if error is not None:
            raise error
    assert heard == [outcome]


def test_an_error_after_which_a_run_goes_on_has_stopped_it():
    heard = []

    class Listening(Writer):
        def close(self, outcome="finished"):
            heard.append(outcome)

    for error in (StateLost(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED"), jax.errors.JaxRuntimeError("another")):
        with pytest.raises(type(error)), close_on_exit(Listening(), is_retried):
            raise error
    assert heard == ["stopped", "stopped", "failed"]


def test_a_writer_takes_whatever_any_writer_takes(tmp_path):
    # The test above knows every method; one that is new must be handed on as well.
    methods = {name for name, value in vars(Writer).items() if callable(value) and not name.startswith("_")}
    assert methods == {*CALLS, "close", "has_delivered"}
    writer = JsonlWriter(tmp_path / "metrics.jsonl")
    assert isinstance(writer, Writer) and isinstance(Tee([]), Writer)
    for kind, (args, kwargs) in CALLS.items():
        getattr(writer, kind)(*args, **kwargs)
    writer.close()
    assert [record["step"] for record in read_jsonl(writer.path)] == [1]


def test_sections_become_one_level_of_names():
    assert flatten_sections({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a/b": 1, "a/c/d": [2], "e": None}
