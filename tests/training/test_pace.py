"""Epochs in the records: their length in seconds, and how many since the best evaluation."""

from __future__ import annotations

import pytest

from ups_jax.training import pace
from ups_jax.training.pace import EpochClock, epochs_since_best
from ups_jax.training.plan import Plan


def test_an_epoch_takes_the_time_between_evaluations_without_the_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([100.0, 104.0, 110.0])
    monkeypatch.setattr(pace.time, "monotonic", lambda: next(moments))
    clock = EpochClock(steps_per_epoch=16)
    assert clock.read(0) == {}
    clock.step(1)
    assert clock.read(1) == {}
    for step in range(2, 10):
        clock.step(step)
    # 8 steps in 4 s, then 4 steps in 6 s.
    assert clock.read(9) == {"epoch_time_sec": 8.0}
    assert clock.read(13) == {"epoch_time_sec": 24.0}


@pytest.mark.parametrize(("total", "eval_steps"), [(20, 5), (12, 5), (3, 5), (7, 1), (10, 4)])
def test_epochs_since_the_best_count_from_the_best_evaluation(total: int, eval_steps: int) -> None:
    plan = Plan(total_steps=total, steps_per_epoch=8, eval_steps=eval_steps)
    evaluated = [step for step in range(1, total + 1) if step % eval_steps == 0 or step == total]
    for best in range(len(evaluated)):
        for now in range(best, len(evaluated)):
            epochs = epochs_since_best(evaluated[now], now - best, plan)
            assert epochs == (evaluated[now] - evaluated[best]) / 8
