"""The length of an epoch in seconds."""

from __future__ import annotations

import pytest

from ups_jax.trainer import loop
from ups_jax.trainer.loop import EpochClock


def test_an_epoch_takes_the_time_between_evaluations_without_the_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([100.0, 104.0, 110.0])
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(moments))
    clock = EpochClock(steps_per_epoch=16)
    assert clock.read_and_restart(0) == {}
    clock.start_once(1)
    assert clock.read_and_restart(1) == {}
    for step in range(2, 10):
        clock.start_once(step)
    # 8 steps in 4 s, then 4 steps in 6 s.
    assert clock.read_and_restart(9) == {"epoch_time_sec": 8.0}
    assert clock.read_and_restart(13) == {"epoch_time_sec": 24.0}
