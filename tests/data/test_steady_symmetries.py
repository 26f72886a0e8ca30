"""Declared symmetries of steady tasks: kept by grids that a reflection maps onto themselves, refused on all others."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from scipy.fft import dstn, idstn

from ups_jax.core.errors import DataError
from ups_jax.data import open_dataset
from ups_jax.data.validation import data_problems
from ups_jax.simulate.darcy import solve
from ups_jax.simulate.presets import PRESETS

POINTS = 106
REFLECTIONS = [{"reflect": ["x"]}, {"reflect": ["y"]}, {"swap": ["x", "y"]}]
# Every 15th point of 0..105 is mapped onto itself by a reflection; every 13th (0..104) leaves out the last wall.
MIRRORED, SHIFTED = slice(0, None, 15), slice(0, None, 13)


def poisson(count=250, tilt=1.0, seed=0):
    """Sources of two values, `tilt` times as large at the left as at the right, and -lap u = source on 106^2 points."""
    rng = np.random.default_rng(seed)
    wavenumber = np.fft.fftfreq(POINTS) * POINTS
    decay = 1 / (9 + wavenumber[:, None] ** 2 + wavenumber**2)
    noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(count, POINTS, POINTS))) * decay).real
    source = np.where(noise > 0, 1.0, 4.0) * np.geomspace(np.sqrt(tilt), 1 / np.sqrt(tilt), POINTS)[:, None]
    modes = np.arange(1, POINTS - 1)
    eigenvalues = (2 - 2 * np.cos(np.pi * modes / (POINTS - 1))) * (POINTS - 1) ** 2
    solution = np.zeros_like(source)
    spectrum = dstn(source[:, 1:-1, 1:-1], type=1, axes=(1, 2)) / (eigenvalues[:, None] + eigenvalues)
    solution[:, 1:-1, 1:-1] = idstn(spectrum, type=1, axes=(1, 2))
    return source, solution


@pytest.fixture
def steady(tmp_path, configure):
    """Write a Darcy file and return the configuration of its task."""

    def make(inputs, solutions, symmetries=REFLECTIONS, **task):
        with h5py.File(tmp_path / "steady.hdf5", "w") as file:
            file["nu"], file["tensor"] = inputs.astype(np.float32), solutions[:, None].astype(np.float32)
            for axis, points in zip("xy", inputs.shape[1:], strict=True):
                file[f"{axis}-coordinate"] = np.arange(points) / points
        return configure(kind="steady", path=str(tmp_path / "steady.hdf5"), symmetries=symmetries, **task)

    return make


@pytest.fixture(scope="module")
def even():
    return poisson()


def symmetry_notes(cfg):
    return [note for note in open_dataset(cfg).notes if "symmetr" in note]


def test_a_sampling_that_a_reflection_maps_onto_itself_passes(steady, even):
    assert symmetry_notes(steady(*(values[:, MIRRORED, MIRRORED] for values in even))) == []


@pytest.mark.parametrize("offset, unit", [(0.0, 1.0), (300.0, 1.0), (0.0, 1e-30), (0.0, 1e30)])
def test_one_that_leaves_out_a_wall_is_refused_in_any_unit(steady, even, offset, unit):
    inputs, solutions = (values[:, SHIFTED, SHIFTED] for values in even)
    cfg = steady(unit * inputs, unit * (offset * solutions.std() + solutions))
    with pytest.raises(DataError, match=r"data\.tasks\.waves\.symmetries\.0"):
        open_dataset(cfg)
    # Exchanging the axes maps the points onto each other.
    problems = data_problems(cfg)
    assert len(problems) == 2 and "symmetries.0" in problems[0] and "symmetries.1" in problems[1]
    assert symmetry_notes(steady(inputs, solutions, REFLECTIONS[2:])) == []


@pytest.mark.parametrize("symmetry", [{"negate": ["u"]}, {"reflect": ["x"], "negate": ["u"]}])
def test_a_sign_that_the_solutions_do_not_have_is_refused(steady, even, symmetry):
    with pytest.raises(DataError, match=r"symmetries\.0"):
        open_dataset(steady(*(values[:, MIRRORED, MIRRORED] for values in even), [symmetry]))


def test_a_wind_breaks_a_reflection_though_all_means_are_zero(steady):
    """Sources with mean 0 on a periodic plane, and solutions that lie one point downwind of them."""
    source = np.random.default_rng(0).normal(size=(100, 12, 12))
    solution = sum(0.5**step * np.roll(source, step, 1) for step in range(4))
    assert symmetry_notes(steady(source, solution, REFLECTIONS[1:2], periodic=["x", "y"])) == []
    with pytest.raises(DataError, match=r"symmetries\.0"):
        open_dataset(steady(source, solution, REFLECTIONS[:1], periodic=["x", "y"]))


def test_input_fields_that_prefer_one_side_are_no_reason_to_refuse(steady):
    tilted = [values[:, MIRRORED, MIRRORED] for values in poisson(count=120, tilt=4.0)]
    (note,) = symmetry_notes(steady(*tilted, REFLECTIONS[:1]))
    assert "data.tasks.waves.symmetries.0" in note and "input fields" in note
    # ... unless a law from input fields to solutions tells that the solutions break it.
    with pytest.raises(DataError, match=r"symmetries\.0.*linear law"):
        open_dataset(steady(*tilted, [{"reflect": ["x"], "negate": ["u"]}]))


def test_too_few_solutions_are_not_tested(steady, even):
    few = [values[:20, SHIFTED, SHIFTED] for values in even]
    (note,) = symmetry_notes(steady(*few))
    assert "not tested" in note


@pytest.mark.parametrize("seed", range(3))
def test_the_built_in_flow_passes(steady, seed):
    assert symmetry_notes(steady(*solve("darcy2d", PRESETS["darcy2d"]["tiny"], seed, lambda line: None))) == []
