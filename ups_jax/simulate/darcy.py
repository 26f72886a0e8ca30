"""Steady Darcy flow, -div(a grad u) = f on the unit square with u = 0 around it: cell-centred finite volumes.

Field i is a function of (seed, i) alone. What is stored are cell averages of a finer solution.
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
    """Permeabilities and the solutions for a unit source, in float32. `report` is told how far it is."""
    shape = (preset.trajectories, preset.points, preset.points)
    permeabilities, solutions = np.empty(shape, np.float32), np.empty(shape, np.float32)
    for index in range(preset.trajectories):
        generator = np.random.default_rng([abs(seed), zlib.crc32(task.encode()), index])
        permeability = np.where(random_field(preset.solved_points, generator) > 0, preset.high, preset.low)
        pressure = pressure_of(permeability, np.ones_like(permeability))
        permeabilities[index] = _cell_averages(permeability, preset.points)
        solutions[index] = _cell_averages(pressure, preset.points)
        if (index + 1) % _REPORT_EVERY == 0 or index + 1 == preset.trajectories:
            report(f"{task}: {index + 1} of {preset.trajectories} trajectories")
    return permeabilities, solutions


def pressure_of(permeability: Float[np.ndarray, "x y"], source: Float[np.ndarray, "x y"]) -> Float[np.ndarray, "x y"]:
    """u at the cell centres, of second order, for a permeability that is constant in each cell.

    The flux through a face is 2 / (1/a + 1/b) times the difference over it, which is exact where a jumps at the face;
    half a cell lies between a boundary face and its centre.
    """
    points = len(permeability)
    index = np.arange(permeability.size).reshape(permeability.shape)
    diagonal = np.zeros(permeability.shape)
    rows, columns, values = [], [], []
    for axis in (0, 1):
        a, here = np.moveaxis(permeability, axis, 0), np.moveaxis(index, axis, 0)
        along = np.moveaxis(diagonal, axis, 0)
        face = 2 / (1 / a[1:] + 1 / a[:-1])
        along[1:] += face
        along[:-1] += face
        along[0] += 2 * a[0]
        along[-1] += 2 * a[-1]
        rows += [here[1:].ravel(), here[:-1].ravel()]
        columns += [here[:-1].ravel(), here[1:].ravel()]
        values += [-face.ravel()] * 2
    entries = (
        np.concatenate([*values, diagonal.ravel()]),
        (np.concatenate([*rows, index.ravel()]), np.concatenate([*columns, index.ravel()])),
    )
    matrix = sparse.csc_matrix(entries, shape=(index.size, index.size))
    # Symmetric and definite: a minimum-degree order without pivoting has a third of the default's fill.
    factor = linalg.splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    return factor.solve(source.ravel() / points**2).reshape(permeability.shape)


def random_field(points: int, generator: np.random.Generator) -> Float[np.ndarray, "x y"]:
    """A draw of N(0, (-Laplace + 9)^-2) with zero normal derivative at the boundary, less its mean (Li et al. 2021).

    The mean is left out as in their generator, so that on average half of the square is positive.
    """
    wavenumbers = np.pi * np.arange(points)
    deviation = 1 / (wavenumbers[:, None] ** 2 + wavenumbers**2 + 9)
    deviation[0, 0] = 0
    return fft.idctn(deviation * generator.normal(size=deviation.shape), norm="ortho") * points


def _cell_averages(field: Float[np.ndarray, "x y"], points: int) -> Float[np.ndarray, "p p"]:
    size = len(field) // points
    return field.reshape(points, size, points, size).mean(axis=(1, 3))
