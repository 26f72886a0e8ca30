"""The Darcy solver against manufactured solutions, and what a field of the data set is."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from ups_jax.simulate import PRESETS, darcy

TINY = PRESETS["darcy2d"]["tiny"]


def centres(points):
    x = (np.arange(points) + 0.5) / points
    return x[:, None], x[None, :]


def smooth(points):
    """a = 1 + x y / 2 and u = sin(pi x) sin(2 pi y)."""
    x, y = centres(points)
    a = 1 + x * y / 2
    sx, cx, sy, cy = np.sin(np.pi * x), np.cos(np.pi * x), np.sin(2 * np.pi * y), np.cos(2 * np.pi * y)
    source = 5 * np.pi**2 * a * sx * sy - np.pi * y / 2 * cx * sy - np.pi * x * sx * cy
    return a, source, sx * sy


def layered(points):
    """a jumps from 3 to 12 at x = 1/2; u = g(x) sin(pi y) with the flux a g' = 1 - 20 x / 7 without a jump."""
    x, y = centres(points)
    a = np.where(x < 0.5, 3.0, 12.0) + 0 * y
    h, middle, slope = x - 10 / 7 * x**2, 0.5 - 10 / 28, 20 / 7
    g = np.where(x < 0.5, h / 3, middle / 3 + (h - middle) / 12)
    return a, (slope + np.pi**2 * a * g) * np.sin(np.pi * y), g * np.sin(np.pi * y)


@pytest.mark.parametrize("case", [smooth, layered])
@pytest.mark.parametrize("turned", [False, True])
def test_the_solver_is_of_second_order(case, turned):
    errors = []
    for points in (16, 32, 64):
        a, source, exact = (values.T if turned else values for values in case(points))
        errors.append(np.abs(darcy.solve_pressure(a, source) - exact).max() / np.abs(exact).max())
    assert errors[-1] < 1.5e-3
    assert all(3.5 < coarse / fine < 4.5 for coarse, fine in itertools.pairwise(errors))


def test_the_random_field_has_the_covariance_of_its_name():
    """Its coefficient in sqrt(2) cos(pi x) has the deviation 1 / (pi² + 9), its mean none."""
    draws = np.stack([darcy.random_field(16, np.random.default_rng(seed)) for seed in range(2000)])
    x, y = centres(16)
    for basis, eigenvalue in (
        (np.sqrt(2) * np.cos(np.pi * x) + 0 * y, np.pi**2),
        (2 * np.cos(np.pi * x) * np.cos(2 * np.pi * y), 5 * np.pi**2),
    ):
        assert (draws * basis).mean(axis=(1, 2)).std() == pytest.approx(1 / (eigenvalue + 9), rel=0.06)
    assert np.abs(draws.mean(axis=(1, 2))).max() < 1e-12


def test_permeability_is_one_of_two_values_each_on_half_of_the_square():
    preset = replace(TINY, trajectories=64, points=32)
    permeabilities, solutions = darcy.solve("darcy2d", preset, 0, lambda line: None)
    assert set(np.unique(permeabilities)) == {3.0, 12.0}
    assert (permeabilities == 12).mean() == pytest.approx(0.5, abs=0.08)
    # Between those of the two constant permeabilities, by the maximum principle for a unit source.
    highest = darcy.solve_pressure(np.ones((32, 32)), np.ones((32, 32))).max()
    assert (solutions > 0).all() and (solutions.max(axis=(1, 2)) < 1.2 * highest / 3).all()


def test_two_resolutions_hold_averages_of_the_same_fields():
    few = replace(TINY, trajectories=3)
    coarse, fine = (darcy.solve("darcy2d", replace(few, points=points), 0, lambda line: None) for points in (8, 16))
    for small, large in zip(coarse, fine, strict=True):
        np.testing.assert_allclose(large.reshape(3, 8, 2, 8, 2).mean(axis=(2, 4)), small, rtol=1e-6)
    default, finer = PRESETS["darcy2d"]["default"], PRESETS["darcy2d"]["fine"]
    assert replace(default, points=finer.points) == finer


def test_a_field_depends_on_seed_and_number_only():
    few, many, other = (
        darcy.solve("darcy2d", replace(TINY, trajectories=count), seed, lambda line: None)
        for count, seed in ((2, 0), (4, 0), (2, 1))
    )
    for left, right in zip(few, many, strict=True):
        np.testing.assert_array_equal(left, right[:2])
    assert not np.array_equal(few[0], other[0])
    assert len(np.unique(many[1][:, 0, 0])) == 4
