"""Heat on triangles against a series, particles against another integrator, and the files that both are written in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from ups_jax import simulate
from ups_jax.core.errors import DataError
from ups_jax.data.sources import open_file
from ups_jax.data.sources.base import read_trajectories
from ups_jax.simulate import heat, taylor_green
from ups_jax.simulate.presets import PRESETS
from ups_jax.simulate.triangles import assemble_mass_and_stiffness, mesh_square_with_hole

TINY = PRESETS["heat_mesh"]["tiny"]
SWARM = PRESETS["particles"]["tiny"]


def test_mass_and_stiffness_integrate_a_linear_field_exactly() -> None:
    mesh = mesh_square_with_hole(0.1, np.random.default_rng(0), hole_radius=0.2)
    mass, stiffness = assemble_mass_and_stiffness(mesh)
    x, y = mesh.points.T
    corners = mesh.points[mesh.cells]
    sides = corners[:, 1:] - corners[:, :1]
    area = 0.5 * np.abs(np.linalg.det(sides)).sum()
    # The polygon inside a circle is a little smaller than the disc.
    assert 1 - np.pi * 0.2**2 < area < 1.02 * (1 - np.pi * 0.2**2)
    np.testing.assert_allclose(mass.sum(), area, rtol=1e-12)
    field = 2 * x - 3 * y
    np.testing.assert_allclose(field @ stiffness @ field, 13 * area, rtol=1e-12)
    np.testing.assert_allclose(stiffness @ np.ones(len(x)), 0, atol=1e-12)
    to_hole = np.abs(np.linalg.norm(mesh.points - 0.5, axis=1) - 0.2)
    gap = np.minimum(to_hole, np.minimum(mesh.points, 1 - mesh.points).min(1))
    assert np.array_equal(gap < 1e-9, mesh.boundary)
    assert set(np.unique(mesh.cells)) == set(range(len(x)))


@pytest.mark.parametrize("spacing", [0.1, 0.05])
def test_heat_decays_as_its_first_mode_does_and_rests_at_the_steady_solution(spacing: float) -> None:
    mesh = mesh_square_with_hole(spacing, np.random.default_rng(1))
    x, y = mesh.points.T
    mode, rate = np.sin(np.pi * x) * np.sin(np.pi * y), 2 * np.pi**2 * 0.05
    frames = heat.integrate(mesh, mode, np.zeros_like(mode), 0.05, dt=0.1, steps=10, substeps=4)
    truth = np.exp(-rate * 0.1 * np.arange(11))[:, None] * mode
    error = np.abs(frames - truth).max() / np.abs(truth).max()
    # Linear elements: a quarter of the error at half the edge.
    assert error < 5 * spacing**2
    settled = heat.integrate(mesh, mode, mode, 0.05, dt=5.0, steps=8, substeps=20)[-1]
    assert np.abs(settled - mode / rate).max() < 5 * spacing**2 * np.abs(mode / rate).max()
    assert np.array_equal(settled[mesh.boundary], np.zeros(mesh.boundary.sum()))


def test_particles_follow_the_flow() -> None:
    flow = taylor_green.TaylorGreenFlow(
        amplitude=1.2, viscosity=0.03, phase=np.array([0.4, 1.0]), mean_velocity=np.array([0.3, -0.2])
    )
    start = np.random.default_rng(0).uniform(0, 2 * np.pi, (5, 2))
    ours = taylor_green.advect_particles(flow, start, 0.1, 20, 4)
    theirs = solve_ivp(
        lambda t, y: flow.velocity(y.reshape(-1, 2), t).ravel(), (0, 2), start.ravel(), rtol=1e-10, atol=1e-12
    )
    np.testing.assert_allclose(ours[-1].ravel(), theirs.y[:, -1], atol=1e-5)


def test_the_flow_solves_its_equation() -> None:
    """du/dt + (u . grad) u - nu laplace u is a gradient (of minus the pressure): its curl is 0."""
    flow = taylor_green.TaylorGreenFlow(
        amplitude=0.8, viscosity=0.2, phase=np.array([0.4, 1.0]), mean_velocity=np.array([0.3, -0.2])
    )
    line = 2 * np.pi * np.arange(16) / 16
    places = np.stack(np.meshgrid(line, line, indexing="ij"), -1)

    def velocity(time: float) -> np.ndarray:
        return flow.velocity(places.reshape(-1, 2), time).reshape(16, 16, 2)

    waves = 1j * np.fft.fftfreq(16, 1 / 16)

    def slope(values: np.ndarray, axis: int) -> np.ndarray:
        shape = [1] * values.ndim
        shape[axis] = 16
        return np.fft.ifft(np.fft.fft(values, axis=axis) * waves.reshape(shape), axis=axis).real

    u = velocity(0.7)
    assert np.abs(slope(u[..., 0], 0) + slope(u[..., 1], 1)).max() < 1e-12
    change = (velocity(0.7 + 1e-4) - velocity(0.7 - 1e-4)) / 2e-4
    carried = u[..., :1] * slope(u, 0) + u[..., 1:] * slope(u, 1)
    left = change + carried - 0.2 * (slope(slope(u, 0), 0) + slope(slope(u, 1), 1))
    assert np.abs(slope(left[..., 1], 0) - slope(left[..., 0], 1)).max() < 1e-6


@pytest.mark.parametrize(
    ("task", "preset", "channels"),
    [("heat_mesh", "tiny", ("u",)), ("heat_mesh", "tiny_varied", ("u",)), ("particles", "tiny", ("x", "y", "u", "v"))],
)
def test_files_repeat(tmp_path: Path, task: str, preset: str, channels: tuple[str, ...]) -> None:
    path, few = tmp_path / "all.hdf5", tmp_path / "few.hdf5"
    assert simulate.generate(task, preset, path, seed=3)
    assert not simulate.generate(task, preset, path, seed=3)
    with pytest.raises(DataError, match=r"seed.*3.*4"):
        simulate.generate(task, preset, path, seed=4)
    simulate.generate(task, preset, few, seed=3, trajectories=3)
    source, short = (open_file(file, "transient", channels) for file in (path, few))
    points = short.grid.shape[0]
    ids = np.arange(3)
    assert np.array_equal(read_trajectories(source, ids)[:, :, :points], read_trajectories(short, ids))
    assert np.array_equal(source.points(ids).coords[:, :points], short.points(ids).coords)
    assert source.trajectories == PRESETS[task][preset].trajectories
    low, high = PRESETS[task][preset].low, PRESETS[task][preset].high
    values = source.coefficient(source.coefficient_names()[0])
    assert ((low <= values) & (values <= high)).all() and values.std() > 0


def test_stored_fields_belong_to_their_mesh(tmp_path: Path) -> None:
    preset = replace(TINY, trajectories=3, meshes="each")
    plates = heat.solve(preset, 0, lambda _: None)
    assert len({len(item.mesh.points) for item in plates}) > 1
    simulate.generate("heat_mesh", "tiny_varied", tmp_path / "heat.hdf5", trajectories=3)
    with h5py.File(tmp_path / "heat.hdf5") as file:
        for row, item in enumerate(plates):
            size = len(item.mesh.points)
            assert file["mask"][row].sum() == size and np.array_equal(file["points"][row, :size], item.mesh.points)
            assert np.array_equal(file["fields/u"][row, :, :size], item.fields.astype(np.float32))
            assert np.array_equal(file["inputs/boundary"][row, :size] > 0, item.mesh.boundary)
            cells = file["cells"][row]
            assert np.array_equal(cells[(cells >= 0).all(1)], item.mesh.cells)


def test_velocities_are_those_at_the_positions(tmp_path: Path) -> None:
    positions, velocities, _ = taylor_green.solve(replace(SWARM, trajectories=2), 0, lambda _: None)
    # Central differences of the positions, to second order in the time between frames.
    slope = (positions[:, 2:] - positions[:, :-2]) / (2 * SWARM.dt)
    assert np.abs(slope - velocities[:, 1:-1]).max() < 0.05 * np.abs(velocities).max()
