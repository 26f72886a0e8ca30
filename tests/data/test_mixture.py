"""Several tasks open together: coefficients by name over all, batches of one task each, the same on all hosts."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from travelling_waves import waves

from ups_jax import config
from ups_jax.core.errors import ConfigError
from ups_jax.core.task import Task
from ups_jax.data import batch_at, first_batches, open_dataset, open_mixture, steps_per_epoch, training_batches
from ups_jax.data.coefficients import coefficient_scales


@pytest.fixture
def together(write, tmp_path):
    """Waves on 32 points with their speed, and on 24 points with a speed and a constant that the others lack."""

    def make(*, mixing=None, scale="linear", seed=17, **first):
        fields, beta = waves(trajectories=20)
        others, speeds = waves(trajectories=10, points=24, seed=1)
        write(fields, "a.hdf5", parameters_beta=beta)
        write(others, "b.hdf5", spacing=2 / 24, parameters_beta=3 * speeds, parameters_nu=np.linspace(1, 2, 10))
        tasks = [
            {"name": "a", "path": str(tmp_path / "a.hdf5"), "periodic": ["x"], "coefficients": {"beta": "linear"}},
            {
                "name": "b",
                "path": str(tmp_path / "b.hdf5"),
                "periodic": ["x"],
                "coefficients": {"nu": "linear", "beta": scale},
            },
        ]
        tasks[0] |= first
        values = {"seed": seed, "data": {"tasks": tasks, "mixing": mixing or {}}, "training": {"batch_size": 8}}
        cfg = config.from_dict(values)
        return open_mixture(cfg), cfg

    return make


def test_a_coefficient_has_one_column_and_the_statistics_of_all_training_trajectories(together):
    data, _ = together()
    first, second = data.datasets
    assert [item.name for item in first.task.coefficients] == ["beta", "nu"]
    assert first.task.coefficients == second.task.coefficients
    train = np.concatenate([dataset.conditions[dataset.splits.train, 0] for dataset in data.datasets]).astype(
        np.float64
    )
    beta, nu = first.task.coefficients
    assert (beta.mean, beta.std) == (pytest.approx(train.mean()), pytest.approx(train.std()))
    assert nu.mean == pytest.approx(second.conditions[second.splits.train, 1].mean())
    assert (first.condition_mask == [1, 0]).all() and (second.condition_mask == [1, 1]).all()
    # What the first lacks by its equation is not told as missing.
    assert not any("nu is missing" in note for note in first.notes)
    assert [item.name for item in first.task.equation_coefficients] == ["beta"]
    assert first.task.foreign == ("nu",) and second.task.foreign == ()


def test_one_scale_for_a_coefficient(together):
    with pytest.raises(ConfigError, match=r"data\.tasks\.b\.coefficients.*beta.*log10.*linear"):
        together(scale="log10")
    tasks = [{"name": name, "coefficients": {"beta": scale}} for name, scale in (("a", "linear"), ("b", "log10"))]
    cfg = config.from_dict({"data": {"tasks": tasks}})
    with pytest.raises(ConfigError, match="beta"):
        coefficient_scales(cfg.data.tasks)


@pytest.mark.parametrize(
    "tasks, message",
    [
        ([{"name": "a"}, {"name": "a"}], "key `data`"),
        ([{"name": "a"}, {"name": "b", "kind": "steady"}], "transient.*steady"),
    ],
)
def test_tasks_that_cannot_be_together_are_refused(tasks, message):
    with pytest.raises(ConfigError, match=message):
        config.from_dict({"data": {"tasks": tasks}})


@pytest.mark.parametrize("mixing", [{"method": "temperature"}, {"temperature": 2}, {"weights": {"a": 1}}])
def test_a_mixing_method_and_its_numbers_go_together(mixing):
    with pytest.raises(ConfigError, match="mixing"):
        config.from_dict({"data": {"tasks": [{"name": "a"}], "mixing": mixing}})


def test_tasks_know_of_each_other_and_survive_json(together):
    data, _ = together(periodic=[])
    marks = [np.array(task.task_embedding) for task in data.tasks]
    assert marks[0].shape == marks[1].shape and (marks[0][:2] == [1, 0]).all() and (marks[1][:2] == [0, 1]).all()
    # Another boundary type on both sides of x, none of y and z on either.
    sides = [values[2:].reshape(6, -1).argmax(axis=1).tolist() for values in marks]
    assert sides == [[1, 1, 0, 0, 0, 0], [2, 2, 0, 0, 0, 0]]
    assert all(Task.from_dict(task.to_dict()) == task for task in data.tasks)
    assert open_dataset(config.restrict_to_task(together()[1], "a")).task.task_embedding == ()


def test_the_time_step_is_measured_by_the_tasks_geometric_mean(together):
    data, _ = together()
    assert [task.dt_unit for task in data.tasks] == [pytest.approx(0.02)] * 2


def test_each_batch_is_of_one_task_and_hosts_share_it(together):
    data, cfg = together(mixing={"method": "weights", "weights": {"a": 1, "b": 2}})
    points = {0: 32, 1: 24}
    tasks = []
    for n in range(24):
        whole = batch_at(data, cfg, "operator", n)
        hosts = [batch_at(data, cfg, "operator", n, index, 2) for index in range(2)]
        task = whole.task
        tasks.append(task)
        assert whole.fields.shape == (8, 2, points[task], 1) and (whole.task_id == task).all()
        assert [host_batch.task for host_batch in hosts] == [task, task]
        for name, values in whole.arrays.items():
            np.testing.assert_array_equal(np.concatenate([host_batch.arrays[name] for host_batch in hosts]), values)
    assert 12 <= tasks.count(1) <= 20


def test_a_task_s_own_batches_follow_one_another_whatever_the_mixing(together):
    drawn = {}
    for method in ("uniform", "proportional"):
        data, cfg = together(mixing={"method": method})
        batches = (batch_at(data, cfg, "operator", n) for n in range(60))
        drawn[method] = [batch.trajectory_id for batch in batches if batch.task == 1]
    fewest = min(map(len, drawn.values()))
    assert fewest > 5 and len(drawn["uniform"]) > len(drawn["proportional"])
    np.testing.assert_array_equal(drawn["uniform"][:fewest], drawn["proportional"][:fewest])
    # The first task's windows are those that it has alone.
    alone = open_dataset(config.restrict_to_task(cfg, "a"))
    np.testing.assert_array_equal(
        first_batches(data, cfg, "operator")[0].fields, batch_at(alone, cfg, "operator", 0).fields
    )


def test_a_resumed_run_draws_what_the_whole_one_does(together):
    data, cfg = together()
    with training_batches(data, cfg, "operator", start=5) as batches:
        for n, batch in enumerate(islice(batches, 6), start=5):
            expected = batch_at(data, cfg, "operator", n)
            assert batch.task == expected.task
            np.testing.assert_array_equal(batch.fields, expected.fields)


def test_an_epoch_is_of_all_trajectories(together):
    data, cfg = together()
    trajectories = sum(len(dataset.splits.train) for dataset in data.datasets)
    assert steps_per_epoch(data, cfg, "operator") == trajectories * 8 // 8


def test_files_of_other_coefficients_are_one_task(write, tmp_path):
    """Two files with an attribute each: the values belong to the files' trajectories, and both are in every split."""
    fields, _ = waves(trajectories=20)
    paths = [
        str(write(fields[:10], "1D_Nu0.01.hdf5", {"Nu": 0.01})),
        str(write(fields[10:], "1D_Nu0.1.hdf5", {"Nu": 0.1})),
    ]
    task = {"name": "waves", "path": paths, "periodic": ["x"], "coefficients": {"Nu": "log10"}}
    for method in ("random", "pdebench", "hash"):
        data = {"tasks": [task], "split": {"method": method, "val": 0.2, "test": 0.2}}
        dataset = open_dataset(config.from_dict({"data": data}))
        assert sum(dataset.split_sizes.values()) == 20
        np.testing.assert_allclose(dataset.conditions[:, 0], np.repeat([0.01, 0.1], 10), rtol=1e-6)
        if method == "pdebench":
            assert dataset.splits.test.tolist() == [0, 1, 10, 11] and dataset.splits.val.tolist() == [2, 3, 12, 13]
    (nu,) = dataset.task.coefficients
    assert nu.std > 0.4
