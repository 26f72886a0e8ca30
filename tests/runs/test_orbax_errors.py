"""Errors left behind by failed reads of a checkpoint are silenced; other uncaught errors are still reported."""

from __future__ import annotations

import sys

import pytest

from ups_jax.runs.orbax_errors import drop_abandoned_reads


class Broken:
    def __init__(self, text: str) -> None:
        self.text = text

    def __del__(self) -> None:
        raise RuntimeError(self.text)


def test_only_reads_that_end_after_their_loop_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: messages.append(str(unraisable.exc_value)))
    for _ in range(2):
        drop_abandoned_reads()
        for text in ("Event loop is closed", "another"):
            Broken(text)
    assert messages == ["another", "another"]
