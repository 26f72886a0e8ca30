"""Several hosts together draw the same batches as one host, with and without read-ahead, from step 0 or a resume."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from itertools import islice

import h5py
import numpy as np
import pytest
from travelling_waves import DT, waves

from ups_jax import config
from ups_jax.data import batch_at, open_mixture, training_batches

BOTH = ("lines", "short")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Waves on 32 points and, a task of its own, on 24."""
    root = tmp_path_factory.mktemp("waves")
    for name, points in zip(BOTH, (32, 24), strict=True):
        fields, beta = waves(trajectories=12, points=points)
        with h5py.File(root / f"{name}.hdf5", "w") as file:
            file["tensor"] = fields.astype(np.float32)
            file["t-coordinate"] = DT * np.arange(fields.shape[1] + 1)
            file["x-coordinate"] = -1 + 2 / points * np.arange(points)
            file["parameters/beta"] = beta
    return root


@pytest.fixture
def opened(folder):
    """The tasks of these names, read by this many threads."""

    def make(names, threads):
        alike = {"periodic": ["x"], "symmetries": [{"negate": ["u"]}], "coefficients": {"beta": "linear"}}
        tasks = [{"name": name, "path": str(folder / f"{name}.hdf5"), **alike} for name in names]
        loader = {"threads": threads, "buffer": 3}
        values = {
            "seed": 5,
            "data": {"tasks": tasks, "loader": loader},
            "training": {"batch_size": 4, "accum_steps": 2},
        }
        cfg = config.from_dict(values)
        return open_mixture(cfg), cfg

    return make


def drawn(data, cfg, hosts, start, steps):
    """The batches of some steps, each as the rows of every host in turn."""
    with ExitStack() as stack:
        streams = [
            stack.enter_context(training_batches(data, cfg, "operator", start, index, hosts)) for index in range(hosts)
        ]
        return list(islice(zip(*streams, strict=True), steps))


@pytest.mark.parametrize("names", [BOTH[:1], BOTH], ids=["alone", "mixed"])
@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_draw_together_what_one_draws_from_any_step(opened, names, threads, hosts):
    data, cfg = opened(names, threads)
    whole = [batch_at(data, cfg, "operator", n) for n in range(11)]
    assert {batch.task for batch in whole} == set(range(len(names)))
    # A run of these hosts, and those that go on from its steps 3 and 7 with other numbers of hosts.
    for start, count in ((0, hosts), (3, {1: 2, 2: 4, 4: 1}[hosts]), (7, {1: 4, 2: 1, 4: 2}[hosts])):
        steps = drawn(data, cfg, count, start, 4)
        assert len(steps) == 4
        for n, rows in enumerate(steps, start):
            assert [host_batch.task for host_batch in rows] == [whole[n].task] * count
            assert [len(host_batch.mask) for host_batch in rows] == [8 // count] * count
            for name, values in whole[n].arrays.items():
                joined = np.concatenate([host_batch.arrays[name] for host_batch in rows])
                np.testing.assert_array_equal(joined, values, err_msg=name)


def test_no_two_hosts_and_no_two_steps_draw_the_same_windows(opened):
    data, cfg = opened(BOTH[:1], 0)
    first, second = (drawn(data, cfg, 2, start, 1)[0] for start in (3, 4))
    for left, right in ((first[0], first[1]), (first[0], second[0])):
        assert not np.array_equal(left.fields, right.fields)


def test_without_threads_nothing_is_read_before_it_is_asked_for(opened, monkeypatch):
    """And what is asked for is read once, in the thread that asks."""
    data, cfg = opened(BOTH[:1], 0)
    source, readers = data.datasets[0].source, []
    read = type(source).read

    def recording_read(self, *arguments):
        readers.append(threading.current_thread())
        return read(self, *arguments)

    monkeypatch.setattr(type(source), "read", recording_read)
    with training_batches(data, cfg, "operator") as batches:
        for count in (1, 2, 3):
            next(batches)
            assert readers == [threading.current_thread()] * count
