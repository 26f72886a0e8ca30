"""Steady Darcy flow, -div(a grad u) = f on the unit square with u = 0 on the boundary, by cell-centred finite volumes.

Solution i depends on the task, the seed and i only. It is solved on a finer grid and averaged over the stored cells.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Float32
from scipy import fft, sparse
from scipy.sparse import linalg

from ups_jax.simulate.presets import DarcyPreset

_REPORT_EVERY = 32


def solve(
    task: str, preset: DarcyPreset, seed: int, report: Callable[[str], None]
) -> tuple[Float32[np.ndarray, "n x y"], Float32[np.ndarray, "n x y"]]:
    """Return random permeabilities, and the pressure for each of them and the source f = 1.

    Args:
        task: Name of the task, which enters the random seed.
        report: Receives progress lines.
    """
    shape = (preset.trajectories, preset.points, preset.points)
    permeabilities, solutions = np.empty(shape, np.float32), np.empty(shape, np.float32)
    for index in range(preset.trajectories):
        generator = np.random.default_rng([abs(seed), zlib.crc32(task.encode()), index])
        permeability = np.where(random_field(preset.solved_points, generator) > 0, preset.high, preset.low)
        pressure = solve_pressure(permeability, np.ones_like(permeability))
        permeabilities[index] = _coarsen(permeability, preset.points)
        solutions[index] = _coarsen(pressure, preset.points)
        if (index + 1) % _REPORT_EVERY == 0 or index + 1 == preset.trajectories:
            report(f"{task}: {index + 1} of {preset.trajectories} trajectories")
    return permeabilities, solutions


def solve_pressure(
    permeability: Float[np.ndarray, "x y"], source: Float[np.ndarray, "x y"]
) -> Float[np.ndarray, "x y"]:
    """Return the pressure u at the cell centres, with second-order accuracy.

    The flux through a face between cells of permeability a and b is 2 / (1/a + 1/b) times the difference of u, which
    is exact if the permeability jumps at the face. Boundary faces are half a cell from the nearest centre.

    Args:
        permeability: a, constant in each cell.
        source: f at the cell centres.
    """
    points = len(permeability)
    numbers = np.arange(permeability.size).reshape(permeability.shape)
    diagonal = np.zeros(permeability.shape)
    rows, columns, values = [], [], []
    for axis in (0, 1):
        # Views with `axis` first: the updates of `axis_diagonal` go to `diagonal`.
        a, axis_numbers = np.moveaxis(permeability, axis, 0), np.moveaxis(numbers, axis, 0)
        axis_diagonal = np.moveaxis(diagonal, axis, 0)
        face = 2 / (1 / a[1:] + 1 / a[:-1])
        axis_diagonal[1:] += face
        axis_diagonal[:-1] += face
        axis_diagonal[0] += 2 * a[0]
        axis_diagonal[-1] += 2 * a[-1]
        rows += [axis_numbers[1:].ravel(), axis_numbers[:-1].ravel()]
        columns += [axis_numbers[:-1].ravel(), axis_numbers[1:].ravel()]
        values += [-face.ravel()] * 2
    entries = (
        np.concatenate([*values, diagonal.ravel()]),
        (np.concatenate([*rows, numbers.ravel()]), np.concatenate([*columns, numbers.ravel()])),
    )
    matrix = sparse.csc_matrix(entries, shape=(numbers.size, numbers.size))
    # Symmetric and definite: a minimum-degree ordering without pivoting has a third of the default's fill-in.
    factor = linalg.splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    return factor.solve(source.ravel() / points**2).reshape(permeability.shape)


def random_field(points: int, generator: np.random.Generator) -> Float[np.ndarray, "x y"]:
    """Return a sample of N(0, (-Laplace + 9)^-2) at `points` cell centres along each axis, shifted to mean 0.

    The normal derivative is 0 at the boundary. The shifted field is positive on half of the domain, on average.

    References:
        Li et al. 2021, Fourier neural operator, whose data generator also removes the mean.
    """
    wavenumbers = np.pi * np.arange(points)
    deviation = 1 / (wavenumbers[:, None] ** 2 + wavenumbers**2 + 9)
    deviation[0, 0] = 0
    return fft.idctn(deviation * generator.normal(size=deviation.shape), norm="ortho") * points


def _coarsen(field: Float[np.ndarray, "x y"], cells: int) -> Float[np.ndarray, "p p"]:
    """Return the averages of a field over the cells of a coarser grid, with `cells` cells along each axis."""
    size = len(field) // cells
    return field.reshape(cells, size, cells, size).mean(axis=(1, 3))
