"""A steady task: PDEBench's Darcy layout bit by bit, one line for each defect, solutions with their given fields."""

from __future__ import annotations

import pickle
from dataclasses import replace

import h5py
import numpy as np
import pytest

from ups_jax.core.errors import ConfigError, DataError
from ups_jax.core.task import Input, Task
from ups_jax.data import batch_at, from_arrays, open_dataset, training_batches
from ups_jax.data.sources.pdebench_tensor import DarcySource

X, Y = 8, 6


def solutions(count=20, x=X, y=Y, seed=0):
    rng = np.random.default_rng(seed)
    # A ramp along both axes, which nothing takes for periodic.
    nu = (rng.uniform(3, 4, (count, x, y)) + np.arange(x)[:, None] + np.arange(y)).astype(np.float32)
    return nu, (1 / nu + 0.01 * rng.normal(size=nu.shape)).astype(np.float32)


@pytest.fixture
def write_steady(tmp_path):
    """Write a Darcy file; a dataset given as None is left out."""

    def make(permeability, solved, file_name="darcy.hdf5", attributes=None, **datasets):
        content = {"nu": permeability, "tensor": solved[:, None]}
        for axis, points in zip("xy", solved.shape[1:], strict=True):
            content[f"{axis}-coordinate"] = ((np.arange(points) + 0.5) / points).astype(np.float32)
        with h5py.File(tmp_path / file_name, "w") as file:
            for name, values in (content | {key.replace("__", "-"): value for key, value in datasets.items()}).items():
                if values is not None:
                    file[name] = values
            file.attrs.update(attributes or {})
        return tmp_path / file_name

    return make


def test_a_file_is_read_exactly_and_survives_pickling(write_steady):
    nu, u = solutions()
    source = pickle.loads(pickle.dumps(DarcySource(write_steady(nu, u, attributes={"beta": 1.0}))))
    ids = np.array([7, 0, 7])
    np.testing.assert_array_equal(source.read(ids, np.zeros((3, 1), int)), u[ids][:, None, ..., None])
    np.testing.assert_array_equal(source.read_input_fields(ids), nu[ids][..., None])
    assert (source.trajectories, source.frames, source.channels, source.input_channels) == (20, 1, 1, ("nu",))
    assert source.grid.shape == (X, Y) and source.grid.spacing == pytest.approx((1 / X, 1 / Y))
    np.testing.assert_array_equal(source.coefficient("beta"), np.ones(20))


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(nu=None), "`nu`"),
        (dict(tensor=None), "`tensor`"),
        (dict(y__coordinate=None), "`y-coordinate`"),
        (dict(tensor=np.zeros((20, 3, X, Y))), r"\(N, 1, X, Y\)"),
        (dict(nu=np.zeros((20, Y, X))), r"`nu`.*\(20, 6, 8\).*\(20, 8, 6\)"),
        (dict(nu=np.zeros((20, X, Y), int)), "`nu`.*int64"),
        (dict(x__coordinate=np.arange(3.0)), r"`x-coordinate`.*\(3,\).*8"),
        (dict(x__coordinate=np.arange(8.0) ** 2), "`x-coordinate`"),
    ],
)
def test_every_defect_is_one_line_that_names_the_file(write_steady, changes, message):
    path = write_steady(*solutions(), **changes)
    with pytest.raises(DataError, match=message) as caught:
        DarcySource(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_given_field_that_is_not_finite_is_refused(write_steady, configure):
    nu, u = solutions()
    nu[5, 0, 0] = np.nan
    with pytest.raises(DataError, match=r"1 frames.*frame 0.*trajectory 5"):
        open_dataset(configure(kind="steady", path=str(write_steady(nu, u))))


@pytest.mark.parametrize("memory_gib", [0, 1])
def test_statistics_are_of_both_and_of_the_training_split(write_steady, configure, memory_gib):
    nu, u = solutions()
    cfg = configure(kind="steady", path=str(write_steady(nu, u)), data={"loader": {"memory_gib": memory_gib}})
    dataset = open_dataset(cfg)
    task, train = dataset.task, dataset.splits.train
    assert task.kind == "steady" and task.periodic == (False, False) and dataset.notes == ()
    (input_field,) = task.inputs
    values = nu[train].astype(np.float64)
    assert input_field.name == "nu" and (input_field.mean, input_field.std) == pytest.approx(
        (values.mean(), values.std())
    )
    values = u[train].astype(np.float64)
    assert task.statistics.mean == pytest.approx((values.mean(),))
    assert task.statistics.std == task.statistics.delta_std == pytest.approx((values.std(),))
    assert Task.from_dict(task.to_dict()) == task
    test = dataset.trajectories("test")
    np.testing.assert_array_equal(test.fields[:, 0, ..., 0], u[test.ids])
    np.testing.assert_array_equal(test.inputs[..., 0], nu[test.ids])


def test_solutions_and_given_fields_are_mirrored_together(write_steady, configure):
    nu, u = solutions()
    symmetries = [{"reflect": ["x"], "negate": ["u"]}]
    cfg = configure(kind="steady", path=str(write_steady(nu, u)), symmetries=symmetries, batch_size=64)
    dataset = open_dataset(cfg)
    assert any("symmetr" in note for note in dataset.notes)
    batch = batch_at(dataset, cfg, "operator", 3)
    assert batch.fields.shape == (64, 1, X, Y, 1) and batch.inputs.shape == (64, X, Y, 1)
    assert batch.inputs.dtype == np.float32 and (batch.dt == 1).all() and (batch.time == 0).all()
    mirrored = 0
    for index, field, input_field in zip(batch.trajectory_id, batch.fields, batch.inputs, strict=True):
        flipped = not np.array_equal(input_field[..., 0], nu[index])
        mirrored += flipped
        np.testing.assert_array_equal(input_field[..., 0], nu[index][::-1] if flipped else nu[index])
        np.testing.assert_array_equal(field[0, ..., 0], -u[index][::-1] if flipped else u[index])
    assert 16 < mirrored < 48
    with training_batches(dataset, cfg, "operator", start=3) as batches:
        np.testing.assert_array_equal(next(batches).inputs, batch.inputs)


def test_batches_of_trajectories_have_no_given_fields(configure):
    fields = np.random.default_rng(0).normal(size=(12, 4, 8))
    cfg = configure()
    dataset = from_arrays(cfg, fields, 0.1)
    assert batch_at(dataset, cfg, "operator", 0).inputs is None and dataset.trajectories("val").inputs.shape == (
        1,
        8,
        0,
    )


def test_a_trained_task_takes_another_grid_and_refuses_trajectories(write_steady, write, configure):
    cfg = configure(kind="steady", path=str(write_steady(*solutions())))
    trained = open_dataset(cfg).task
    finer = write_steady(*solutions(x=2 * X, y=2 * Y, seed=1), "finer.hdf5")
    dataset = open_dataset(configure(kind="steady", path=str(finer)), trained)
    assert dataset.task.shape == (2 * X, 2 * Y) and dataset.task.statistics == trained.statistics
    assert replace(dataset.task, shape=trained.shape, origin=trained.origin, spacing=trained.spacing) == trained
    plane = write(np.random.default_rng(0).normal(size=(12, 4, 6, 8)))
    with pytest.raises(ConfigError, match=r"kind`.*transient.*waves.*steady"):
        open_dataset(configure(path=str(plane)), trained)


def test_a_pair_of_files_keeps_given_fields_with_their_solutions(write_steady, configure):
    (nu, u), (other, v) = solutions(seed=1), solutions(count=4, seed=2)
    paths = {"train": str(write_steady(nu, u, "a.hdf5")), "test": str(write_steady(other, v, "b.hdf5"))}
    cfg = configure(kind="steady", path=paths, data={"loader": {"memory_gib": 0}})
    test = open_dataset(cfg).trajectories("test")
    np.testing.assert_array_equal(test.inputs[..., 0], other)
    np.testing.assert_array_equal(test.fields[:, 0, ..., 0], v)


def test_what_does_not_fit_a_steady_task_is_refused(write_steady, configure):
    path = str(write_steady(*solutions()))
    with pytest.raises(ConfigError, match="conserved"):
        open_dataset(configure(kind="steady", path=path, conserved=["u"]))
    with pytest.raises(DataError, match="kind: steady"):
        open_dataset(configure(path=path))
    with pytest.raises(ConfigError, match="steady"):
        from_arrays(configure(kind="steady"), np.zeros((12, 4, 8)), 0.1)
    task = open_dataset(configure(kind="steady", path=path)).task
    with pytest.raises(ValueError, match=r"transient.*1"):
        replace(task, kind="transient", inputs=(Input(name="nu"),))
