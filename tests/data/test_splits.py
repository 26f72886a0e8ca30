"""Splits are disjoint, never empty, whole, and fixed by their seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from travelling_waves import waves

from ups_jax.config import SplitConfig
from ups_jax.data import open_dataset, splits
from ups_jax.errors import DataError

SHARES = st.floats(min_value=0.01, max_value=0.4)


@given(st.integers(3, 400), SHARES, SHARES, st.integers(0, 99))
def test_every_trajectory_is_in_exactly_one_split(trajectories, val, test, seed):
    parts = splits.draw(trajectories, SplitConfig(val=val, test=test, seed=seed), "file")
    together = np.concatenate([parts.train, parts.val, parts.test])
    np.testing.assert_array_equal(np.sort(together), np.arange(trajectories))
    assert min(len(parts.train), len(parts.val), len(parts.test)) >= 1


def test_the_seed_decides_and_shares_are_kept():
    draws = [splits.draw(640, SplitConfig(seed=seed), "file") for seed in (0, 0, 1)]
    assert [len(draws[0].ids(name)) for name in ("train", "val", "test")] == [512, 64, 64]
    np.testing.assert_array_equal(draws[0].train, draws[1].train)
    assert not np.array_equal(draws[0].test, draws[2].test)


def test_overlapping_splits_cannot_be_built():
    with pytest.raises(ValueError, match="share"):
        splits.Splits(train=np.arange(3), val=np.array([2]), test=np.array([4]))


def test_a_pair_of_files_keeps_the_second_for_test(write, configure):
    train, test = write(waves(seed=1)[0], "train.hdf5"), write(waves(trajectories=4, seed=2)[0], "test.hdf5")
    dataset = open_dataset(configure(path={"train": str(train), "test": str(test)}))
    assert dataset.sizes == {"train": 11, "val": 1, "test": 4}
    np.testing.assert_array_equal(dataset.trajectories("test").fields[..., 0], waves(trajectories=4, seed=2)[0])


def test_a_test_file_that_repeats_training_trajectories_is_refused(write, configure):
    fields = waves(seed=1)[0]
    train, test = write(fields, "train.hdf5"), write(np.concatenate([waves(seed=2)[0], fields]), "test.hdf5")
    with pytest.raises(DataError, match="11 test trajectories start from the same frame as a training one"):
        open_dataset(configure(path={"train": str(train), "test": str(test)}))


def test_files_of_different_grids_do_not_make_a_pair(write, configure):
    train, test = write(waves()[0], "train.hdf5"), write(waves(points=16, seed=2)[0], "test.hdf5")
    with pytest.raises(DataError, match=r"test.hdf5: has grid points \(16,\)"):
        open_dataset(configure(path={"train": str(train), "test": str(test)}))
