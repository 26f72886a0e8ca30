"""A thinned writer passes on only some of the records."""

from __future__ import annotations

from collections.abc import Mapping

from ups_jax.tracking.writer import Outcome, ThrottledWriter, Writer


class _Heard(Writer):
    def __init__(self) -> None:
        self.steps: list[int] = []
        self.outcome: Outcome | None = None

    def scalars(self, step: int, values: Mapping[str, float], stage: str) -> None:
        assert self.outcome is None, "after its end"
        self.steps.append(step)

    def close(self, outcome: Outcome = "finished") -> None:
        self.outcome = outcome


def test_a_record_each_half_second_and_the_newest_at_the_end() -> None:
    heard, now = _Heard(), [0.0]
    writer = ThrottledWriter(heard, 0.5, clock=lambda: now[0])
    for step in range(1, 24):
        writer.scalars(step, {"loss": 1.0}, "operator")
        now[0] += 0.125
    assert heard.steps == [1, 5, 9, 13, 17, 21]
    writer.close("stopped")
    assert heard.steps[6:] == [23]
    assert heard.outcome == "stopped"


def test_a_validation_is_never_held() -> None:
    heard = _Heard()
    writer = ThrottledWriter(heard, 10.0, clock=lambda: 0.0)
    for step in (1, 2, 3):
        writer.scalars(step, {"loss": 1.0} | ({"validation/nrmse": 0.5} if step == 2 else {}), "operator")
    assert heard.steps == [1, 2]


def test_without_a_pause_every_record_is_handed_on_and_none_twice() -> None:
    heard = _Heard()
    writer = ThrottledWriter(heard, 0.0, clock=lambda: 0.0)
    for step in (1, 2, 3):
        writer.scalars(step, {"loss": 1.0}, "operator")
    writer.close()
    assert heard.steps == [1, 2, 3]
