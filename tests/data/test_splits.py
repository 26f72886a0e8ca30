"""Splits are disjoint, never empty, whole, and fixed by their seed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from travelling_waves import waves
from written_layouts import write_seeds

from ups_jax.config import SplitConfig
from ups_jax.core.errors import ConfigError, DataError
from ups_jax.data import open_dataset, splits

SHARES = st.floats(min_value=0.01, max_value=0.4)


@given(st.integers(3, 400), SHARES, SHARES, st.integers(0, 99))
def test_every_trajectory_is_in_exactly_one_split(trajectories, val, test, seed):
    parts = splits.random_split(trajectories, SplitConfig(val=val, test=test, seed=seed), "file")
    together = np.concatenate([parts.train, parts.val, parts.test])
    np.testing.assert_array_equal(np.sort(together), np.arange(trajectories))
    assert min(len(parts.train), len(parts.val), len(parts.test)) >= 1


def test_the_seed_decides_and_shares_are_kept():
    draws = [splits.random_split(640, SplitConfig(seed=seed), "file") for seed in (0, 0, 1)]
    assert [len(draws[0].ids(name)) for name in ("train", "val", "test")] == [512, 64, 64]
    np.testing.assert_array_equal(draws[0].train, draws[1].train)
    assert not np.array_equal(draws[0].test, draws[2].test)


def test_overlapping_splits_cannot_be_built():
    with pytest.raises(ValueError, match="share"):
        splits.Splits(train=np.arange(3), val=np.array([2]), test=np.array([4]))


def test_a_pair_of_files_keeps_the_second_for_test(write, configure):
    train, test = write(waves(seed=1)[0], "train.hdf5"), write(waves(trajectories=4, seed=2)[0], "test.hdf5")
    dataset = open_dataset(configure(path={"train": str(train), "test": str(test)}))
    assert dataset.split_sizes == {"train": 11, "val": 1, "test": 4}
    np.testing.assert_array_equal(dataset.trajectories("test").fields[..., 0], waves(trajectories=4, seed=2)[0])


def test_a_test_file_that_repeats_training_trajectories_is_refused(write, configure):
    fields = waves(seed=1)[0]
    train, test = write(fields, "train.hdf5"), write(np.concatenate([waves(seed=2)[0], fields]), "test.hdf5")
    with pytest.raises(DataError, match=r"11.*12.*0"):
        open_dataset(configure(path={"train": str(train), "test": str(test)}))


def test_files_of_different_grids_do_not_make_a_pair(write, configure):
    train, test = write(waves()[0], "train.hdf5"), write(waves(points=16, seed=2)[0], "test.hdf5")
    with pytest.raises(DataError, match=r"test\.hdf5.*\(16,\)"):
        open_dataset(configure(path={"train": str(train), "test": str(test)}))


def opened(configure, where, **split):
    return open_dataset(configure(path=where, data={"split": split}))


@pytest.mark.parametrize("last", [False, True])
def test_pdebenchs_split_is_by_place_and_validation_lies_next_to_it(write, configure, tmp_path, last):
    if last:
        write_seeds(tmp_path / "seeds.h5", 1, 1, tuple(f"{index:04d}" for index in range(20)))
        dataset = opened(configure, str(tmp_path / "seeds.h5"), method="pdebench")
    else:
        dataset = opened(configure, str(write(waves(trajectories=20)[0])), method="pdebench")
    order = list(range(20))[::-1] if last else list(range(20))
    assert sorted(dataset.splits.test.tolist()) == sorted(order[:2])
    assert sorted(dataset.splits.val.tolist()) == sorted(order[2:4])
    assert sorted(dataset.splits.train.tolist()) == sorted(order[4:])


def test_a_hashed_trajectory_stays_where_it_is_when_others_are_added():
    keys = [f"a.hdf5|{index}" for index in range(300)]
    cfg = SplitConfig(method="hash", val=0.2, test=0.1)
    few, more = splits.split_by_hash(keys[:200], cfg, "a"), splits.split_by_hash(keys, cfg, "a")
    for name in ("train", "val", "test"):
        np.testing.assert_array_equal(few.ids(name), more.ids(name)[more.ids(name) < 200])
    assert 20 < len(more.test) < 42 and 42 < len(more.val) < 80
    other = splits.split_by_hash(keys, SplitConfig(method="hash", val=0.2, test=0.1, seed=1), "a")
    assert not np.array_equal(other.test, more.test)
    with pytest.raises(DataError, match=r"data\.split\.method=hash"):
        splits.split_by_hash(keys[:3], cfg, "a")


def test_a_folder_says_its_own_split_and_held_out_files_are_the_test(write, configure, tmp_path):
    folder = tmp_path / "set" / "data"
    for seed, role in enumerate(("train", "train", "valid", "test")):
        path = write(waves(trajectories=3 + seed, seed=seed)[0], f"beta0.{seed + 1}.hdf5")
        (folder / role).mkdir(parents=True, exist_ok=True)
        path.rename(folder / role / path.name)
    dataset = opened(configure, str(tmp_path / "set"), method="native")
    assert dataset.split_sizes == {"train": 7, "val": 5, "test": 6}
    np.testing.assert_array_equal(dataset.trajectories("val").fields[..., 0], waves(trajectories=5, seed=2)[0])
    files = [str(folder / role / f"beta0.{number}.hdf5") for number, role in enumerate(("train", "train", "valid"), 1)]
    held_out = opened(configure, {"train": files[:2], "test": files[2:]}, method="file")
    assert held_out.split_sizes == {"train": 6, "val": 1, "test": 5}
    with pytest.raises(DataError, match="`test`"):
        (folder / "test" / "beta0.4.hdf5").unlink()
        opened(configure, str(tmp_path / "set"))


@pytest.mark.parametrize(
    ("method", "pair", "named"), [("file", False, "file"), ("native", True, "native"), ("hash", True, "hash")]
)
def test_a_method_that_the_files_do_not_go_with_is_refused(write, configure, method, pair, named):
    path = str(write(waves()[0]))
    with pytest.raises(ConfigError, match=f"data.split.method.*{named}"):
        opened(configure, {"train": path, "test": path} if pair else path, method=method)


def test_a_listed_split_is_the_one_that_another_run_left(write, configure, tmp_path):
    path = str(write(waves(trajectories=20)[0]))
    first = opened(configure, path, seed=3)
    file = tmp_path / "split.json"
    file.write_text(json.dumps(splits.split_record(first.splits, 20)))
    again = opened(configure, path, method="listed", path=str(file))
    for name in ("train", "val", "test"):
        np.testing.assert_array_equal(first.splits.ids(name), again.splits.ids(name))
    assert first.fingerprint == again.fingerprint
    shorter = str(write(waves(trajectories=12)[0], "shorter.hdf5"))
    with pytest.raises(DataError, match=r"20.*shorter\.hdf5.*12"):
        opened(configure, shorter, method="listed", path=str(file))
    content = splits.split_record(first.splits, 20)
    for wrong in ("[", "{}", json.dumps(content | {"val": content["test"]}), json.dumps(content | {"val": [99]})):
        file.write_text(wrong)
        with pytest.raises(DataError, match=r"split\.json"):
            opened(configure, path, method="listed", path=str(file))
    with pytest.raises(ConfigError, match=r"data\.split"):
        opened(configure, path, path=str(file))


def test_the_same_trajectory_in_two_splits_of_one_file_is_refused(write, configure):
    fields = waves(trajectories=20)[0]
    fields[7] = fields[0]
    with pytest.raises(DataError, match=r"1.*0.*7"):
        opened(configure, str(write(fields)), method="pdebench")
    # Trajectories that only start alike may be meant.
    fields[7, 1:] *= 0.5
    assert any(
        "start from the same frame" in note for note in opened(configure, str(write(fields)), method="pdebench").notes
    )
