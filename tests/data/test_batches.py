"""The batch of a step is the same after a resume, for any number of hosts, from memory or from the file."""

from __future__ import annotations

import numpy as np
import pytest
from travelling_waves import DT, waves

from ups_jax.core.errors import ConfigError, DataError
from ups_jax.data import batch_at, open_dataset, steps_per_epoch, training_batches, windows_per_step
from ups_jax.data.batch import Batch


def same(left, right):
    assert left.task == right.task and left.arrays.keys() == right.arrays.keys()
    for name, values in left.arrays.items():
        np.testing.assert_array_equal(values, right.arrays[name])


@pytest.fixture
def opened(write, configure):
    """Open the waves with their speeds; options go to the configuration."""

    def make(**options):
        fields, beta = waves(trajectories=15)
        path = write(fields, parameters_beta=beta)
        options = {"periodic": ["x"], "symmetries": [{"negate": ["u"]}], "coefficients": {"beta": "linear"}} | options
        cfg = configure(path=str(path), **options)
        return open_dataset(cfg), cfg

    return make


def test_a_batch_holds_what_the_contract_says(opened):
    dataset, cfg = opened(
        training={"rollout_horizon": 2, "time_stride": 2}, data={"context": 2, "augment": False}, batch_size=6
    )
    batch = batch_at(dataset, cfg, "operator", 1)
    fields, beta = waves(trajectories=15)
    ids, start = batch.trajectory_id, np.rint(batch.time[:, 0] / DT).astype(int)
    frames = start[:, None] + 2 * np.arange(4)
    assert batch.fields.shape == (6, 4, 32, 1) and batch.fields.dtype == np.float32
    np.testing.assert_array_equal(batch.fields[..., 0], fields[ids[:, None], frames])
    np.testing.assert_allclose(batch.time, DT * frames, rtol=1e-6)
    np.testing.assert_allclose(batch.dt, 2 * DT, rtol=1e-6)
    np.testing.assert_array_equal(batch.cond[:, 0], beta[ids].astype(np.float32))
    for name, value, shape, dtype in (
        ("mask", 1, (6,), np.float32),
        ("cond_mask", 1, (6, 1), np.float32),
        ("bc", 2, (6, 1, 2), np.int32),
        ("task_id", 0, (6,), np.int32),
    ):
        values = batch.arrays[name]
        assert (values == value).all() and values.shape == shape and values.dtype == dtype
    assert np.isin(ids, dataset.splits.train).all()


def test_open_sides_are_marked_and_never_rolled(opened):
    dataset, cfg = opened(periodic=[], symmetries=[])
    batch = batch_at(dataset, cfg, "operator", 0)
    assert (batch.bc == 1).all()
    start = np.rint(batch.time / DT).astype(int)
    np.testing.assert_array_equal(batch.fields[..., 0], waves(15)[0][batch.trajectory_id[:, None], start])


def test_the_rows_of_all_hosts_are_the_batch_of_one(opened):
    dataset, cfg = opened()
    whole = batch_at(dataset, cfg, "operator", 5)
    halves = [batch_at(dataset, cfg, "operator", 5, index, 2) for index in range(2)]
    joined = {name: np.concatenate([half.arrays[name] for half in halves]) for name in whole.arrays}
    same(Batch(**joined), whole)
    with pytest.raises(ConfigError, match=r"stages\.operator\.batch_size.*8.*3"):
        batch_at(dataset, cfg, "operator", 0, 0, 3)


@pytest.mark.parametrize(("threads", "coefficients"), [(1, {"beta": "linear"}), (3, {})])
def test_a_resumed_stream_goes_on_with_the_batch_of_its_step(opened, threads, coefficients):
    dataset, cfg = opened(data={"loader": {"threads": threads, "buffer": 4}}, coefficients=coefficients)
    # Small batches are read many as one, in several epochs.
    with training_batches(dataset, cfg, "operator") as batches:
        first = [next(batches) for _ in range(40)]
    with training_batches(dataset, cfg, "operator", start=7) as batches:
        resumed = [next(batches) for _ in range(2)]
    with training_batches(dataset, cfg, "operator", 3, process_index=1, process_count=2) as batches:
        of_a_host = [next(batches) for _ in range(12)]
    for n, batch in enumerate(first):
        same(batch, batch_at(dataset, cfg, "operator", n))
    same(resumed[0], first[7])
    same(resumed[1], first[8])
    for n, batch in enumerate(of_a_host, 3):
        same(batch, batch_at(dataset, cfg, "operator", n, 1, 2))


def test_memory_and_file_give_the_same_batches(opened):
    (in_memory, cfg), (lazy, _) = opened(), opened(data={"loader": {"memory_gib": 0}})
    assert type(in_memory.source) is not type(lazy.source)
    assert (in_memory.fingerprint, in_memory.task) == (lazy.fingerprint, lazy.task)
    for n in range(4):
        same(batch_at(in_memory, cfg, "operator", n), batch_at(lazy, cfg, "operator", n))
    np.testing.assert_array_equal(in_memory.trajectories("val").fields, lazy.trajectories("val").fields)


def test_the_seed_of_the_run_moves_the_stream_and_numpys_does_not(opened):
    dataset, cfg = opened()
    _, other = opened(seed=18)
    one, two = batch_at(dataset, cfg, "operator", 0), batch_at(dataset, other, "operator", 0)
    assert not np.array_equal(one.trajectory_id, two.trajectory_id)
    np.random.seed(3)
    same(batch_at(dataset, cfg, "operator", 0), one)


def test_an_epoch_counts_windows_of_training_trajectories(opened):
    dataset, cfg = opened(data={"windows_per_trajectory": 5}, batch_size=4)
    assert dataset.split_sizes["train"] == 11
    assert steps_per_epoch(dataset, cfg, "operator") == 11 * 5 // 4


def test_accumulated_micro_batches_are_one_batch_and_one_step_of_an_epoch(opened):
    (dataset, whole), (_, parts) = opened(batch_size=8), opened(training={"accum_steps": 4}, batch_size=2)
    assert windows_per_step(parts, "operator") == 8
    assert steps_per_epoch(dataset, parts, "operator") == steps_per_epoch(dataset, whole, "operator") == 11 * 8 // 8
    for n in (0, 3):
        same(batch_at(dataset, parts, "operator", n), batch_at(dataset, whole, "operator", n))


def test_a_window_holds_the_frames_of_the_pushforward_and_of_the_horizon(opened):
    dataset, cfg = opened(training={"rollout_horizon": 2, "pushforward": 3}, data={"context": 2})
    assert batch_at(dataset, cfg, "operator", 0).fields.shape[1] == 7
    with pytest.raises(DataError, match=r"9.*10.*training\.pushforward=7"):
        opened(training={"rollout_horizon": 2, "pushforward": 7})
