"""Windows are a pure function of (seed, stage, n); an epoch is complete; augmentation is a symmetry or a roll."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ups_jax.core.rng import philox_key
from ups_jax.core.task import Symmetry
from ups_jax.data import windows
from ups_jax.data.symmetry_check import apply_symmetry


def plan(trajectories=7, per_trajectory=3, batch_size=5, seed=0, name="data/operator", **changes):
    return windows.WindowPlan(
        **{
            "key": philox_key(seed, name),
            "train_ids": 10 + np.arange(trajectories),
            "windows_per_trajectory": per_trajectory,
            "batch_size": batch_size,
            "offsets": np.arange(2),
            "start_probabilities": np.full(6, 1 / 6),
            "shape": (16,),
            "roll_axes": (True,),
            "channels": 1,
            "symmetries": (),
        }
        | changes
    )


@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 40), st.integers(0, 3))
def test_each_epoch_holds_every_trajectory_as_often_as_configured(trajectories, per_trajectory, batch_size, epoch):
    window_plan = plan(trajectories, per_trajectory, batch_size)
    size = trajectories * per_trajectory
    batches = range(epoch * size // batch_size, ((epoch + 1) * size - 1) // batch_size + 1)
    stream = np.concatenate([windows.draw_windows(window_plan, n).ids for n in batches])
    first = epoch * size - batches.start * batch_size
    ids, counts = np.unique(stream[first : first + size], return_counts=True)
    np.testing.assert_array_equal(ids, window_plan.train_ids)
    np.testing.assert_array_equal(counts, per_trajectory)


def test_epochs_batches_seeds_and_stages_are_shuffled_differently():
    big = {"trajectories": 50, "per_trajectory": 1, "batch_size": 50}
    orders = [
        windows.draw_windows(plan(**big), 0),
        windows.draw_windows(plan(**big), 1),
        windows.draw_windows(plan(**big, seed=1), 0),
        windows.draw_windows(plan(**big, name="data/other"), 0),
    ]
    for left in range(4):
        for right in range(left):
            assert not np.array_equal(orders[left].ids, orders[right].ids)
            assert not np.array_equal(orders[left].shifts, orders[right].shifts)


def test_a_draw_far_away_needs_no_draws_before_it():
    window_plan = plan()
    first = windows.draw_windows(window_plan, 10**9)
    windows.draw_windows(window_plan, 3)
    again = windows.draw_windows(window_plan, 10**9)
    for name in ("ids", "frames", "shifts", "flips", "signs"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))


def test_hosts_share_out_the_rows_of_one_global_draw():
    whole = windows.draw_windows(plan(batch_size=6), 4)
    parts = [whole.rows_of_host(p, 3) for p in range(3)]
    np.testing.assert_array_equal(np.concatenate([part.ids for part in parts]), whole.ids)
    np.testing.assert_array_equal(np.concatenate([part.frames for part in parts]), whole.frames)


def test_starts_follow_their_distribution():
    change = np.array([8.0, 4.0, 2.0, 1.0, 1.0, 0.0])
    expected = 0.5 / 5 + 0.5 * change[:5] / 16
    probabilities = windows.start_distribution(change, 5, 0, 0.5)
    np.testing.assert_allclose(probabilities, expected)
    drawn = windows.draw_windows(plan(batch_size=20_000, start_probabilities=probabilities), 0).frames[:, 0]
    np.testing.assert_allclose(np.bincount(drawn, minlength=5) / 20_000, expected, atol=0.015)


def test_the_change_counts_after_the_last_context_frame():
    change = np.array([0.0, 0.0, 3.0, 1.0])
    np.testing.assert_allclose(windows.start_distribution(change, 2, 2, 1.0), [0.75, 0.25])
    np.testing.assert_allclose(windows.start_distribution(np.zeros(4), 4, 0, 1.0), np.full(4, 0.25))


def test_augmentation_rolls_flips_and_signs_as_drawn():
    fields = np.random.default_rng(0).normal(size=(3, 2, 16, 5, 2)).astype(np.float32)
    drawn = windows.WindowDraw(
        ids=np.arange(3),
        frames=np.zeros((3, 2), int),
        shifts=np.array([[0, 0], [3, 0], [5, 2]]),
        flips=np.array([[False, False], [True, False], [False, True]]),
        signs=np.array([[1, 1], [-1, 1], [1, -1]], np.float32),
        axis_order=np.tile([0, 1], (3, 1)),
        channel_order=np.tile([0, 1], (3, 1)),
    )
    result = windows.augment(fields, drawn)
    np.testing.assert_array_equal(result[0], fields[0])
    np.testing.assert_array_equal(result[1], np.roll(fields[1, :, ::-1], 3, axis=1) * [-1, 1])
    np.testing.assert_array_equal(result[2], np.roll(fields[2, :, :, ::-1], (5, 2), axis=(1, 2)) * [1, -1])


def test_symmetries_are_drawn_half_of_the_time_and_combine():
    symmetries = (Symmetry(reflect=(0,), negate=(0,)), Symmetry(negate=(0,)))
    drawn = windows.draw_windows(plan(batch_size=4000, symmetries=symmetries), 0)
    flipped, negative = drawn.flips[:, 0], drawn.signs[:, 0] < 0
    assert flipped.mean() == pytest.approx(0.5, abs=0.05)
    assert (flipped & negative).mean() == pytest.approx(0.25, abs=0.05)
    assert not windows.draw_windows(plan(roll_axes=(False,)), 0).shifts.any()


def test_symmetries_act_one_after_the_other_with_all_their_products():
    group = (
        Symmetry(reflect=(0,), negate=(0,)),
        Symmetry(swap=(0, 1), swap_channels=(0, 1)),
        Symmetry(reflect=(1,), swap=(0, 1), negate=(1,)),
    )
    fields = np.random.default_rng(0).normal(size=(64, 2, 6, 6, 2)).astype(np.float32)
    options = dict(batch_size=64, symmetries=group, shape=(6, 6), roll_axes=(False, False), channels=2)
    drawn = windows.draw_windows(plan(**options), 0)
    result = windows.augment(fields, drawn)
    seen = set()
    for before, after in zip(fields, result, strict=True):
        matches = []
        for chosen in itertools.product((False, True), repeat=3):
            moved = before[None].astype(np.float64)
            for symmetry in itertools.compress(group, chosen):
                moved = apply_symmetry(moved, symmetry)
            matches += [chosen] * np.array_equal(moved[0].astype(np.float32), after)
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) == 8
    # Nothing else of a batch depends on whether a symmetry swaps.
    np.testing.assert_array_equal(
        drawn.ids, windows.draw_windows(plan(**options | {"symmetries": group[:1] * 3}), 0).ids
    )


def test_given_fields_are_swapped_with_their_solutions():
    drawn = windows.draw_windows(
        plan(
            batch_size=40,
            symmetries=(Symmetry(swap=(0, 1), negate=(0,)),),
            shape=(5, 5),
            roll_axes=(False, False),
            channels=1,
        ),
        0,
    )
    fields = np.random.default_rng(1).normal(size=(40, 1, 5, 5, 1)).astype(np.float32)
    inputs = np.concatenate([fields[:, 0], 2 * fields[:, 0]], axis=-1)
    moved = windows.augment(fields, drawn)[:, 0] * drawn.signs[:, None, None]
    np.testing.assert_array_equal(windows.augment_inputs(inputs, drawn), np.concatenate([moved, 2 * moved], axis=-1))
    assert 5 < (drawn.axis_order[:, 0] == 1).sum() < 35
