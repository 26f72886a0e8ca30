"""Triangle meshes of the unit square with a round hole, and linear finite elements on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse
from jaxtyping import Bool, Float, Int

# How far a point inside is moved from the lattice, and how close to a side it may come, in edges.
_JITTER, _CLEARANCE = 0.25, 0.6


@dataclass(frozen=True, eq=False, kw_only=True)
class Mesh:
    """Points, triangles of their numbers, and which points lie on a side."""

    points: Float[np.ndarray, "p 2"]
    cells: Int[np.ndarray, "m 3"]
    boundary: Bool[np.ndarray, " p"]


@dataclass(frozen=True, eq=False, kw_only=True)
class HeatedPlate:
    """The temperature over time on a mesh, with the diffusivity and the source of heat that led to it."""

    mesh: Mesh
    fields: Float[np.ndarray, "t p"]
    source: Float[np.ndarray, " p"]
    diffusivity: float


def plate(
    spacing: float, generator: np.random.Generator, hole: float = 0.0, centre: tuple[float, float] = (0.5, 0.5)
) -> Mesh:
    """The unit square less a disc of radius `hole`, in triangles of about that edge; the inside is irregular."""
    around = np.linspace(0, 2 * np.pi, max(6, round(2 * np.pi * hole / spacing)) if hole else 0, endpoint=False)
    circle = np.asarray(centre) + hole * np.stack([np.cos(around), np.sin(around)], axis=-1)
    count = round(1 / spacing)
    side = np.arange(count) / count
    zero, one = np.zeros(count), np.ones(count)
    square = [np.stack(pair, -1) for pair in ((side, zero), (one, side), (1 - side, one), (zero, 1 - side))]
    sides = np.concatenate([*square, circle])
    inside = np.stack(np.meshgrid(*2 * [np.arange(spacing / 2, 1, spacing)], indexing="ij"), -1).reshape(-1, 2)
    inside = inside + _JITTER * spacing * generator.uniform(-1, 1, inside.shape)
    gap = np.minimum(inside, 1 - inside).min(axis=1)
    if hole:
        gap = np.minimum(gap, np.linalg.norm(inside - centre, axis=1) - hole)
    points = np.concatenate([sides, inside[gap > _CLEARANCE * spacing]])
    from scipy.spatial import Delaunay

    cells = Delaunay(points).simplices.astype(np.int32)
    middle = points[cells].mean(axis=1)
    kept = np.ones(len(cells), bool) if not hole else np.linalg.norm(middle - centre, axis=1) > hole
    kept &= np.abs(_areas(points, cells)) > 1e-3 * spacing**2
    return Mesh(points=points, cells=cells[kept], boundary=np.arange(len(points)) < len(sides))


def matrices(mesh: Mesh) -> tuple[sparse.csc_matrix, sparse.csc_matrix]:
    """Mass and stiffness of linear elements: integrals of phi_i phi_j and of grad phi_i . grad phi_j."""
    corners = mesh.points[mesh.cells]
    area = np.abs(_areas(mesh.points, mesh.cells))
    # The gradient of the function of a corner is the opposite edge, turned by a right angle, over twice the area.
    opposite = np.roll(corners, -2, axis=1) - np.roll(corners, -1, axis=1)
    stiffness = np.einsum("mid,mjd->mij", opposite, opposite) / (4 * area[:, None, None])
    mass = (np.ones((3, 3)) + np.eye(3)) * area[:, None, None] / 12
    rows, columns = np.repeat(mesh.cells, 3, axis=1).ravel(), np.tile(mesh.cells, 3).ravel()
    size = 2 * (len(mesh.points),)
    both = (sparse.coo_matrix((values.ravel(), (rows, columns)), size).tocsc() for values in (mass, stiffness))
    return next(both), next(both)


def _areas(points: Float[np.ndarray, "p 2"], cells: Int[np.ndarray, "m 3"]) -> Float[np.ndarray, " m"]:
    first, second, third = (points[cells[:, corner]] for corner in range(3))
    (ax, ay), (bx, by) = (second - first).T, (third - first).T
    return 0.5 * (ax * by - ay * bx)
