"""Layout A is read bit by bit, coefficients are found where they stand, and every defect is one line of exit code 3."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from travelling_waves import DT, SPACING, waves

from ups_jax.core.errors import DataError
from ups_jax.data import open_dataset
from ups_jax.data.sources import ConcatenatedSource
from ups_jax.data.sources.hdf5 import number_in_file_name
from ups_jax.data.sources.pdebench_tensor import TensorSource


@pytest.mark.parametrize("extra_times", [0, 1])
def test_one_dimension_is_read_exactly(write, extra_times):
    fields, _ = waves()
    path = write(fields, t__coordinate=(DT * np.arange(fields.shape[1] + extra_times)).astype(np.float32))
    source = TensorSource(path)
    ids, frames = np.array([3, 0]), np.array([[1, 3, 5], [0, 2, 4]])
    np.testing.assert_array_equal(source.read(ids, frames)[..., 0], fields[ids[:, None], frames])
    assert (source.trajectories, source.frames, source.channels) == (12, 9, 1)
    assert (source.grid.shape, source.grid.origin, source.grid.spacing) == ((32,), (-1.0,), (SPACING,))
    assert (source.grid.start, source.grid.dt) == (0.0, DT)


def test_two_dimensions_are_read_exactly(write):
    fields = np.random.default_rng(0).normal(size=(5, 4, 6, 8)).astype(np.float32)
    source = TensorSource(write(fields))
    windows = source.read(np.array([4]), np.array([[2, 3]]))
    np.testing.assert_array_equal(windows, fields[[4], 2:4][..., None])
    assert source.grid.shape == (6, 8) and source.grid.axes == ("x", "y")


def test_a_source_survives_pickling_and_threads(write):
    fields, _ = waves()
    source = TensorSource(write(fields))
    source.read(np.array([0]), np.array([[0]]))
    copy = pickle.loads(pickle.dumps(source))
    wrong = []

    def read(index):
        for _ in range(20):
            if not np.array_equal(copy.read(np.array([index]), np.array([[0, 1]]))[0, ..., 0], fields[index, :2]):
                wrong.append(index)

    threads = [threading.Thread(target=read, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_coefficient_is_looked_up_in_the_documented_order(write):
    fields, beta = waves()
    in_name = TensorSource(write(fields, "1D_Advection_Sols_beta0.4.hdf5"))
    in_attribute = TensorSource(write(fields, "attribute_beta0.4.hdf5", {"Beta": 0.7}))
    in_dataset = TensorSource(write(fields, "dataset_beta0.4.hdf5", {"Beta": 0.7}, parameters_beta=beta))
    np.testing.assert_array_equal(in_name.coefficient("beta"), np.full(12, 0.4))
    np.testing.assert_array_equal(in_attribute.coefficient("beta"), np.full(12, 0.7))
    np.testing.assert_array_equal(in_attribute.coefficient("BETA"), np.full(12, 0.7))
    np.testing.assert_array_equal(in_dataset.coefficient("beta"), beta)
    np.testing.assert_array_equal(in_dataset.coefficient("Beta"), np.full(12, 0.7))
    with pytest.raises(DataError, match="'Beta' and 'beta'"):
        in_dataset.coefficient("BETA")
    assert in_dataset.coefficient("nu") is None


@pytest.mark.parametrize(
    "file_name, coefficient, value",
    [
        ("1D_Burgers_Sols_Nu0.001.hdf5", "nu", 0.001),
        ("1D_CFD_Rand_Eta1.e-8_Zeta1.e-8_periodic_Train.hdf5", "zeta", 1e-8),
        ("2D_CFD_Rand_M0.1_Eta1e-08_Zeta1e-08_periodic_128_Train.hdf5", "eta", 1e-8),
        ("ReacDiff_Nu0.5_Rho10.0.hdf5", "rho", 10.0),
        ("1D_Advection_Sols_beta4.0.hdf5", "eta", None),
        ("menu3.hdf5", "nu", None),
        ("burgers_nu0p01.hdf5", "nu", 0.01),
        ("burgers_nu0.01", "nu", 0.01),
        ("burgers_nu0.01.train.hdf5", "nu", 0.01),
        ("burgers_nu0,01.hdf5", "nu", None),
        ("burgers_nu01.hdf5", "nu", None),
        ("burgers_nu0.01x.hdf5", "nu", None),
        ("burgers_nu1.e-8x.hdf5", "nu", None),
        ("swirl_rho2d.hdf5", "rho", None),
        ("from_nu0.1_to_nu0.2.hdf5", "nu", None),
        ("K2.0_k3.0.hdf5", "K", 2.0),
        ("K2.0_k3.0.hdf5", "k", 3.0),
    ],
)
def test_coefficients_in_published_file_names(tmp_path, file_name, coefficient, value):
    assert number_in_file_name(tmp_path / file_name, coefficient) == value


@given(st.floats(min_value=1e-12, max_value=1e12))
def test_any_printed_number_in_a_file_name_is_read_back(value):
    assert number_in_file_name(Path(f"data_nu{value}_train.hdf5"), "nu") == value


def test_joined_sources_are_numbered_one_after_the_other(write):
    (first, beta), (second, _) = waves(seed=1), waves(trajectories=5, seed=2)
    joined = ConcatenatedSource(
        (TensorSource(write(first, "a.hdf5", parameters_beta=beta)), TensorSource(write(second, "b.hdf5")))
    )
    ids = np.array([13, 0, 16])
    frames = np.tile(np.arange(4), (3, 1))
    expected = np.concatenate([first, second])[ids, :4, :, None]
    np.testing.assert_array_equal(joined.read(ids, frames), expected)
    np.testing.assert_array_equal(joined.coefficient("beta"), np.concatenate([beta, np.full(5, np.nan)]))


FIELDS = waves()[0]
BAD = FIELDS.copy()
BAD[4, 3, 7] = np.nan
BAD[9, 0, 0] = np.inf
DEFECTS = {
    "no tensor": (dict(tensor=None, density=FIELDS), "'u'.*density"),
    "no grid": (dict(x__coordinate=None), "`x-coordinate`"),
    "no times": (dict(t__coordinate=None), "`t-coordinate`"),
    "rank without channels": (dict(tensor=FIELDS[..., None]), r"\(12, 9, 32, 1\).*\(N, T, X\)"),
    "rank without frames": (dict(tensor=FIELDS[:, 0]), r"\(12, 32\)"),
    "integers": (dict(tensor=FIELDS.astype(np.int32)), "`tensor`.*int32"),
    "short grid": (dict(x__coordinate=SPACING * np.arange(31.0)), r"`x-coordinate`.*\(31,\).*32"),
    "long times": (dict(t__coordinate=DT * np.arange(11.0)), r"`t-coordinate`.*\(11,\).*9"),
    "uneven grid": (dict(x__coordinate=np.linspace(0, 1, 32) ** 2), "`x-coordinate`"),
    "falling times": (dict(t__coordinate=-DT * np.arange(9.0)), "`t-coordinate`: descends"),
    "constant grid": (dict(x__coordinate=np.ones(32)), "`x-coordinate`"),
    "uneven times": (dict(t__coordinate=np.geomspace(1, 2, 9)), "`t-coordinate`"),
    "one number as times": (dict(t__coordinate=np.float64(DT)), "`t-coordinate`"),
    "one number as grid": (dict(x__coordinate=np.float64(SPACING)), "`x-coordinate`"),
    "nan grid": (dict(x__coordinate=np.full(32, np.nan)), "`x-coordinate`.*NaN"),
    "not finite": (dict(tensor=BAD), "2 frames.*frame 3.*trajectory 4"),
    "parameter length": (dict(parameters_nu=np.ones(3)), r"`parameters/nu`.*\(3,\).*\(12,\)"),
    "few trajectories": (dict(tensor=FIELDS[:2]), "2 trajectories.*3"),
    "few frames": (dict(tensor=FIELDS[:, :1], t__coordinate=DT * np.arange(2.0)), "frames is 1.*2"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_one_line_that_names_file_and_dataset(write, configure, defect):
    datasets, message = DEFECTS[defect]
    path = write(FIELDS, **datasets)
    with pytest.raises(DataError, match=message) as error:
        open_dataset(configure(path=str(path)))
    assert error.value.exit_code == 3
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(channels=["u", "v"]), "1 channels.*2 .*channels"),
        (dict(training={"rollout_horizon": 9}), "9 frames.*10"),
        (dict(training={"rollout_horizon": 4, "time_stride": 3}), "13.*time_stride=3"),
        (dict(coefficients={"level": "log10"}), "level.*log10.*-1.*trajectory 5"),
    ],
)
def test_a_file_that_does_not_fit_the_configuration(write, configure, change, message):
    path = write(FIELDS, parameters_level=np.where(np.arange(12) == 5, -1.0, 2.0))
    with pytest.raises(DataError, match=message):
        open_dataset(configure(path=str(path), **change))


def test_files_that_are_missing_damaged_or_something_else(write, configure, tmp_path):
    whole = write(FIELDS, "whole.hdf5").read_bytes()
    text, cut = tmp_path / "text.hdf5", tmp_path / "cut.hdf5"
    text.write_text("not a data file")
    cut.write_bytes(whole[: len(whole) // 2])
    for path in (text, cut, tmp_path / "none.hdf5"):
        with pytest.raises(DataError, match=path.name):
            open_dataset(configure(path=str(path)))


def test_damage_inside_a_file_is_a_data_error(write, configure, tmp_path):
    path = tmp_path / "zipped.hdf5"
    with h5py.File(write(FIELDS), "r") as plain, h5py.File(path, "w") as file:
        file.create_dataset("tensor", data=plain["tensor"], compression="gzip", chunks=(1, 9, 32))
        for name in ("x-coordinate", "t-coordinate"):
            file[name] = plain[name][:]
        offset = file["tensor"].id.get_chunk_info(6).byte_offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 40] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(DataError, match=path.name):
        open_dataset(configure(path=str(path)))
