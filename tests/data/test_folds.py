"""A fold of the training trajectories is the corrector's alone: its predictor is trained on all others."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from point_files import write_mesh
from travelling_waves import waves

from ups_jax import config
from ups_jax.config import digest, relevant_values, to_dict
from ups_jax.core.errors import ConfigError, DataError
from ups_jax.data import (
    batch_at,
    open_dataset,
    open_mixture,
    splits,
    stage_trajectory_ids,
    steps_per_epoch,
    training_batches,
)

CORRECTORS = ("diffusion_residual", "consistency_distill")


@pytest.fixture
def opened(write, tmp_path):
    """Open 30 waves, of which 24 train, with a fold; options go to the data."""

    def make(share=0.25, *, seed=17, **data):
        write(waves(trajectories=30)[0])
        task = {"name": "waves", "path": str(tmp_path / "waves.hdf5"), "periodic": ["x"]}
        values = {"data": {"tasks": [task]} | data, "diffusion": {"fold": share}, "training": {"batch_size": 8}}
        cfg = config.from_dict({"seed": seed} | values)
        return open_dataset(cfg), cfg

    return make


def drawn(dataset, cfg, stage, batches=20):
    """The trajectories of the first batches."""
    with training_batches(dataset, cfg, stage) as stream:
        return set(np.concatenate([batch.trajectory_id for batch in islice(stream, batches)]).tolist())


def test_the_operator_never_draws_of_the_fold_and_correctors_draw_of_nothing_else(opened):
    dataset, cfg = opened()
    operator, *correctors = (drawn(dataset, cfg, stage) for stage in ("operator", *CORRECTORS))
    assert correctors[0] == correctors[1] and len(correctors[0]) == 6 and len(operator) == 18
    assert operator | correctors[0] == set(dataset.splits.train.tolist()) and not operator & correctors[0]


def test_without_a_fold_all_stages_have_the_training_split_and_older_runs_their_digest(opened):
    dataset, cfg = opened(0.0)
    for stage in ("operator", *CORRECTORS):
        assert stage_trajectory_ids(dataset, cfg, stage) is dataset.splits.train
    assert not {"diffusion", "diffusion.fold"} & set(relevant_values(to_dict(cfg), "operator"))
    _, half = opened(0.5)
    for stage in ("operator", *CORRECTORS):
        assert digest(half, stage) != digest(cfg, stage)
    # As the record of a run that is older than the key has it.
    before = to_dict(cfg)
    del before["diffusion"]["fold"]
    assert relevant_values(before, "operator") == relevant_values(to_dict(cfg), "operator")


def test_the_split_s_seed_draws_the_fold_and_that_of_the_run_does_not(opened):
    fold = {
        name: stage_trajectory_ids(*opened_run, "diffusion_residual").tolist()
        for name, opened_run in {
            "first": opened(),
            "again": opened(),
            "run": opened(seed=3),
            "split": opened(split={"method": "pdebench", "seed": 1}),
            "other": opened(split={"method": "pdebench", "seed": 2}),
        }.items()
    }
    assert fold["first"] == fold["again"] == fold["run"]
    # The same training split by place, whose fold is still drawn.
    assert fold["split"] != fold["other"]


def test_the_batches_of_hosts_and_of_a_resume_are_of_the_same_fold(opened):
    dataset, cfg = opened()
    for stage in ("operator", *CORRECTORS):
        whole = batch_at(dataset, cfg, stage, 5)
        halves = [batch_at(dataset, cfg, stage, 5, index, 2) for index in range(2)]
        with training_batches(dataset, cfg, stage, start=5) as batches:
            resumed = next(batches)
        for name, values in whole.arrays.items():
            np.testing.assert_array_equal(np.concatenate([half.arrays[name] for half in halves]), values)
            np.testing.assert_array_equal(resumed.arrays[name], values)


def test_statistics_are_of_the_whole_training_split_and_an_epoch_of_a_stage_s_own(opened):
    (whole, without), (dataset, cfg) = opened(0.0), opened()
    assert dataset.task == whole.task and dataset.fingerprint == whole.fingerprint
    np.testing.assert_array_equal(dataset.relative_change, whole.relative_change)
    lengths = [steps_per_epoch(dataset, cfg, stage) for stage in ("operator", *CORRECTORS)]
    assert lengths == [18, 6, 6] and steps_per_epoch(whole, without, "operator") == 24


@given(st.integers(2, 300), st.floats(0.01, 0.5), st.integers(0, 99))
def test_every_training_trajectory_is_on_one_side(trajectories, share, seed):
    train = 3 * np.arange(trajectories)
    kept, held_out = splits.split_predictor_and_corrector(train, share, seed, "file")
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held_out])), train)
    assert len(kept) >= 1 and len(held_out) == max(1, round(share * trajectories))
    assert (np.diff(kept) > 0).all() and (np.diff(held_out) > 0).all()


@pytest.mark.parametrize("stage", ["operator", *CORRECTORS])
def test_a_fold_that_leaves_nothing_is_one_line_for_every_stage(opened, stage):
    dataset, cfg = opened(0.99)
    with pytest.raises(DataError, match=r"24.*diffusion\.fold=0\.99") as error:
        steps_per_epoch(dataset, cfg, stage)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [-0.1, 1.0, "nan"])
def test_a_share_is_a_share(opened, share):
    with pytest.raises(ConfigError, match=r"diffusion\.fold"):
        opened(share)


def test_tasks_that_no_corrector_is_for_are_refused_in_one_line(opened, tmp_path):
    opened()
    tasks = [{"name": name, "path": str(tmp_path / "waves.hdf5"), "periodic": ["x"]} for name in "ab"]
    several = config.from_dict({"data": {"tasks": tasks}, "diffusion": {"fold": 0.25}})
    with pytest.raises(ConfigError, match=r"diffusion\.fold`.*\ba\b.*0"):
        batch_at(open_mixture(several), several, "operator", 0)
    write_mesh(tmp_path / "mesh.h5")
    task = {"name": "mesh", "path": str(tmp_path / "mesh.h5"), "channels": ["p", "T"]}
    points = config.from_dict({"data": {"tasks": [task]}, "diffusion": {"fold": 0.25}})
    with pytest.raises(ConfigError, match=r"diffusion\.fold`.*mesh.*0"):
        batch_at(open_dataset(points), points, "operator", 0)
