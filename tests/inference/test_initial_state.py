"""The initial states of a rollout: every way to leave axes out, and one clear line for a state that does not fit."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import CONFIGS

from ups_jax.config import Config, load
from ups_jax.core.errors import DataError
from ups_jax.core.task import Coefficient, Statistics, Task
from ups_jax.inference.initial_state import InitialState, read_initial_state

TASK = Task(
    name="any", channels=("u",), axes=("x", "y"), shape=(8, 6), origin=(0.0, 0.0), spacing=(0.1, 0.2),
    periodic=(True, True), dt=0.5, coefficients=(Coefficient(name="nu"),),
    statistics=Statistics(mean=(0.0,), std=(1.0,), delta_std=(1.0,)),
)  # fmt: skip
PAIR = replace(TASK, channels=("u", "v"), statistics=Statistics(mean=(0.0,) * 2, std=(1.0,) * 2, delta_std=(1.0,) * 2))
FIELDS = np.random.default_rng(0).normal(size=(3, 4, 8, 6, 1)).astype(np.float32)


def read(path: Path | str, context: int = 1, task: Task = TASK) -> InitialState:
    return read_initial_state(str(path), task, context, load(CONFIGS / "tiny.yaml"))


@pytest.mark.parametrize(
    ("array", "context", "expected"),
    [
        (FIELDS[0, 0, ..., 0], 1, FIELDS[:1, :1]),
        (FIELDS[0, 0], 1, FIELDS[:1, :1]),
        (FIELDS[:, 0, ..., 0], 1, FIELDS[:, :1]),
        (FIELDS[:, 0], 1, FIELDS[:, :1]),
        (FIELDS, 1, FIELDS[:, :1]),
        (FIELDS[..., 0], 2, FIELDS[:, :2]),
        (FIELDS[0, :2], 2, FIELDS[:1, :2]),
    ],
)  # fmt: skip
def test_axes_may_be_left_out(array: np.ndarray, context: int, expected: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "u0.npy", array.astype(np.float64))
    start = read(tmp_path / "u0.npy", context)
    np.testing.assert_array_equal(start.fields, expected)
    assert start.sample_ids.tolist() == list(range(len(expected)))
    np.testing.assert_allclose(start.coordinates[1], 0.2 * np.arange(6))


def test_an_npz_may_hold_coefficients_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "u0.npz", u0=FIELDS[:, 0], nu=[0.1, 0.2, 0.3])
    np.testing.assert_allclose(read(tmp_path / "u0.npz").coefficients["nu"], [0.1, 0.2, 0.3])
    np.savez(tmp_path / "one.npz", any=FIELDS[:, 0], nu=0.5)
    np.testing.assert_allclose(read(tmp_path / "one.npz").coefficients["nu"], [0.5] * 3)


def hdf5(path: Path, fields: np.ndarray, dt: float = 0.5, spacing: float = 0.1) -> Path:
    with h5py.File(path, "w") as file:
        file["tensor"] = fields[..., 0]
        file["t-coordinate"] = 3.0 + dt * np.arange(fields.shape[1])
        file["x-coordinate"] = spacing * np.arange(fields.shape[2])
        file["y-coordinate"] = 0.2 * np.arange(fields.shape[3])
        file["parameters/nu"] = np.linspace(0.1, 0.3, len(fields))
    return path


def test_of_a_file_the_first_frames_are_taken_as_far_apart_as_the_run_steps(tmp_path: Path) -> None:
    start = read(hdf5(tmp_path / "a.hdf5", FIELDS), 2)
    np.testing.assert_array_equal(start.fields, FIELDS[:, :2])
    assert start.time == 3.0
    np.testing.assert_allclose(start.coefficients["nu"], [0.1, 0.2, 0.3])
    finer = read(hdf5(tmp_path / "b.hdf5", FIELDS, dt=0.25), 2)
    np.testing.assert_array_equal(finer.fields, FIELDS[:, [0, 2]])
    np.testing.assert_array_equal(start.first_samples(2).fields, FIELDS[:2, :2])
    np.testing.assert_allclose(start.first_samples(2).coefficients["nu"], [0.1, 0.2])


Make = Callable[[Path], Path]


def bad_array(values: np.ndarray) -> Make:
    def make(path: Path) -> Path:
        np.save(path.with_suffix(".npy"), values)
        return path.with_suffix(".npy")

    return make


def bad_bytes(suffix: str) -> Make:
    def make(path: Path) -> Path:
        path.with_suffix(suffix).write_bytes(b"text")
        return path.with_suffix(suffix)

    return make


NAN = np.where(np.arange(6) == 2, np.nan, FIELDS[:, 0, ..., 0])


@pytest.mark.parametrize(
    ("make", "context", "task", "named"),
    [
        (bad_array(FIELDS[:, 0, :4]), 1, TASK, r"shape \(3, 4, 6, 1\).*x=8, y=6, channels=1 \(u\)"),
        (bad_array(FIELDS[:, 0]), 1, PAIR, r"channels=2 \(u, v\)"),
        (bad_array(FIELDS[:, 0, ..., 0]), 1, PAIR, "channels=2"),
        (bad_array(FIELDS[None]), 1, TASK, "shape"),
        (bad_array(FIELDS[:, :1]), 2, TASK, r"1 frame.*3 sample.*2"),
        (bad_array(FIELDS[:0, :1]), 1, TASK, r"0 sample"),
        (bad_array(NAN), 1, TASK, "NaN"),
        (bad_array(np.array(["text"])), 1, TASK, "<U4"),
        (bad_bytes(".npy"), 1, TASK, r"u0\.npy"),
        (lambda path: hdf5(path, FIELDS, spacing=0.3), 1, TASK, r"0\.3 and 0\.2.*0\.1 and 0\.2"),
        (lambda path: hdf5(path, FIELDS[:, :, :4]), 1, TASK, "4 x 6.*8 x 6"),
        (lambda path: hdf5(path, FIELDS), 5, TASK, "4 frames.*5"),
        (lambda path: hdf5(path, FIELDS, dt=0.3), 2, TASK, r"0\.3"),
        (lambda path: hdf5(path, FIELDS), 1, PAIR, "1 channels.*2"),
        (lambda path: path, 1, TASK, r"u0\.hdf5"),
        (bad_bytes(".hdf5"), 1, TASK, "HDF5"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(make: Make, context: int, task: Task, named: str, tmp_path: Path) -> None:
    path = make(tmp_path / "u0.hdf5")
    with pytest.raises(DataError, match=named) as raised:
        read(path, context, task)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_arrays_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", u0=FIELDS[:, 0], u1=FIELDS[:, 0])
    with pytest.raises(DataError, match="u0, u1"):
        read(tmp_path / "two.npz")
    np.savez(tmp_path / "nu.npz", u0=FIELDS[:, 0], nu=[0.1, 0.2])
    with pytest.raises(DataError, match=r"nu.*\(2,\)"):
        read(tmp_path / "nu.npz")


def test_a_trajectory_that_the_split_does_not_have_is_told_with_those_it_has(tiny: Config, saved_run: Path) -> None:
    from ups_jax import load_run

    with pytest.raises(DataError, match=r"4.*test:0.*test:3"):
        read_initial_state("test:4", load_run(saved_run).task, 1, tiny)


def test_a_damaged_npz_is_not_left_open(tmp_path: Path) -> None:
    np.savez(tmp_path / "u0.npz", u0=FIELDS[:, 0])
    (tmp_path / "u0.npz").write_bytes((tmp_path / "u0.npz").read_bytes()[:-30])
    opened = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(DataError, match=r"u0\.npz"):
            read(tmp_path / "u0.npz")
    assert sorted(os.listdir("/proc/self/fd")) == opened
