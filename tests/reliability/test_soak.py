"""The complaints of a soak about made-up starts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from soak import Life, complaints, lost_steps, summed

FLAT = Life(
    fault="SIGTERM",
    code=75,
    seconds=60.0,
    until_first_step=8.0,
    resumed=0,
    reached=6400,
    megabytes=[500.0] * 100,
    files=[30] * 100,
)
NEXT = replace(FLAT, resumed=6000, reached=9000)


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (NEXT, None),
        # A heap that is made once and stays.
        (replace(NEXT, megabytes=[460.0] * 20 + [515.0] * 80), None),
        (replace(NEXT, resumed=5000), "1400 steps were lost"),
        (replace(NEXT, megabytes=[500.0 + number for number in range(100)]), "memory grew"),
        (replace(NEXT, files=[30 + number // 10 for number in range(100)]), "open files grew"),
    ],
)
def test_what_a_soak_must_not_show(second: Life, said: str | None) -> None:
    problems = complaints([replace(second, resumed=0, reached=6400), second])
    assert problems == [] if said is None else said in problems[0]
    assert "2 starts" in summed([FLAT, second])


def test_a_start_that_ends_ahead_of_its_loop_has_lost_nothing() -> None:
    early = replace(FLAT, resumed=None, reached=FLAT.reached, megabytes=[], files=[])
    assert lost_steps([FLAT, early, replace(NEXT, resumed=6300)]) == [0, 100]


def test_a_soak_without_a_long_life_shows_nothing() -> None:
    assert "no start lived" in complaints([replace(FLAT, megabytes=[], files=[])])[0]
