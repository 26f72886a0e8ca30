"""Which of several tasks a step is of: shares as configured, a pure function of the seed and the step."""

from __future__ import annotations

import numpy as np
import pytest

from ups_jax.config import MixingConfig
from ups_jax.core.errors import ConfigError
from ups_jax.core.rng import philox_key
from ups_jax.data.mixture import BLOCK_STEPS, TaskSchedule, task_shares

SIZES = {"a": 100, "b": 25, "c": 400}


@pytest.mark.parametrize(
    "mixing, expected",
    [
        ({}, [1 / 3, 1 / 3, 1 / 3]),
        ({"method": "proportional"}, [100 / 525, 25 / 525, 400 / 525]),
        # Square roots are 10, 5 and 20.
        ({"method": "temperature", "temperature": 2}, [10 / 35, 5 / 35, 20 / 35]),
        ({"method": "temperature", "temperature": 1}, [100 / 525, 25 / 525, 400 / 525]),
        ({"method": "weights", "weights": {"c": 1, "a": 2, "b": 5}}, [2 / 8, 5 / 8, 1 / 8]),
    ],
)
def test_shares_are_those_of_the_method(mixing, expected):
    np.testing.assert_allclose(task_shares(MixingConfig(**mixing), SIZES), expected, rtol=1e-12)


def test_weights_are_of_the_tasks_that_there_are():
    with pytest.raises(ConfigError, match=r"data\.mixing\.weights.*a, z.*a, b, c"):
        task_shares(MixingConfig(method="weights", weights={"a": 1, "z": 2}), SIZES)


@pytest.mark.parametrize("parts", [(1.0,), (0.5, 0.5), (0.01, 0.29, 0.7)])
def test_a_step_s_place_is_the_number_of_its_task_s_steps_before_it(parts):
    schedule = TaskSchedule(philox_key(3, "mixing/operator"), parts)
    steps = 5 * BLOCK_STEPS + 7
    drawn = [schedule.task_and_number_at(n) for n in range(steps)]
    counts = dict.fromkeys(range(len(parts)), 0)
    for task, place in drawn:
        assert place == counts[task]
        counts[task] += 1
    # Asked in any order, and of another object, the answer is the same.
    again = TaskSchedule(philox_key(3, "mixing/operator"), parts)
    assert [again.task_and_number_at(n) for n in reversed(range(steps))] == drawn[::-1]
    if len(parts) > 1:
        other = TaskSchedule(philox_key(4, "mixing/operator"), parts)
        assert [other.task_and_number_at(n) for n in range(steps)] != drawn


def test_tasks_have_their_shares_in_every_block_and_rare_ones_on_average():
    parts = (0.7, 0.295, 0.005)
    schedule = TaskSchedule(philox_key(0, "mixing/operator"), parts)
    drawn = np.array([schedule.task_and_number_at(n)[0] for n in range(200 * BLOCK_STEPS)]).reshape(200, BLOCK_STEPS)
    counts = np.stack([(drawn == task).sum(axis=1) for task in range(3)], axis=1)
    assert np.abs(counts - BLOCK_STEPS * np.array(parts)).max() < 1.0 + 1e-9
    np.testing.assert_allclose(counts.mean(axis=0) / BLOCK_STEPS, parts, atol=1.5e-3)
    # Not the same order in every block.
    assert len(np.unique(drawn, axis=0)) > 150


def test_far_steps_cost_no_more_than_the_blocks_before_them():
    schedule = TaskSchedule(philox_key(0, "mixing/operator"), (0.5, 0.5))
    task, place = schedule.task_and_number_at(1_000_003)
    assert abs(place - 500_000) < BLOCK_STEPS and task in (0, 1)
