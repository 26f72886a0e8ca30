"""Triangle meshes of the unit square with a round hole, and linear finite elements on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse
from jaxtyping import Bool, Float, Int

# Largest random shift of an inner lattice point, and its smallest distance from the boundary, in edge lengths.
_JITTER, _CLEARANCE = 0.25, 0.6


@dataclass(frozen=True, eq=False, kw_only=True)
class TriangleMesh:
    """A triangle mesh in the plane.

    Attributes:
        points: Coordinates of the points.
        cells: Indices of the three points of each triangle.
        boundary: Whether each point lies on the boundary.
    """

    points: Float[np.ndarray, "p 2"]
    cells: Int[np.ndarray, "m 3"]
    boundary: Bool[np.ndarray, " p"]


@dataclass(frozen=True, eq=False, kw_only=True)
class HeatTrajectory:
    """A solution of the heat equation on a mesh.

    Attributes:
        fields: Temperature at the points in each frame.
        source: Heat source at the points, constant in time.
        diffusivity: kappa.
    """

    mesh: TriangleMesh
    fields: Float[np.ndarray, "t p"]
    source: Float[np.ndarray, " p"]
    diffusivity: float


def mesh_square_with_hole(
    spacing: float,
    generator: np.random.Generator,
    hole_radius: float = 0.0,
    hole_centre: tuple[float, float] = (0.5, 0.5),
) -> TriangleMesh:
    """Return an irregular mesh of the unit square with a round hole.

    Args:
        spacing: Approximate edge length of the triangles.
        generator: Draws the shifts of the inner points.
        hole_radius: Radius of the hole; 0 for none.
        hole_centre: Centre of the hole.
    """
    circle_points = max(6, round(2 * np.pi * hole_radius / spacing)) if hole_radius else 0
    angles = np.linspace(0, 2 * np.pi, circle_points, endpoint=False)
    circle = np.asarray(hole_centre) + hole_radius * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    count = round(1 / spacing)
    side = np.arange(count) / count
    zero, one = np.zeros(count), np.ones(count)
    square = [np.stack(pair, -1) for pair in ((side, zero), (one, side), (1 - side, one), (zero, 1 - side))]
    boundary = np.concatenate([*square, circle])
    inner = np.stack(np.meshgrid(*2 * [np.arange(spacing / 2, 1, spacing)], indexing="ij"), -1).reshape(-1, 2)
    inner = inner + _JITTER * spacing * generator.uniform(-1, 1, inner.shape)
    distance = np.minimum(inner, 1 - inner).min(axis=1)
    if hole_radius:
        distance = np.minimum(distance, np.linalg.norm(inner - hole_centre, axis=1) - hole_radius)
    points = np.concatenate([boundary, inner[distance > _CLEARANCE * spacing]])
    from scipy.spatial import Delaunay

    # The Delaunay triangulation covers the hole and may have degenerate triangles on the boundary: both are removed.
    cells = Delaunay(points).simplices.astype(np.int32)
    centroids = points[cells].mean(axis=1)
    is_valid = np.ones(len(cells), bool)
    if hole_radius:
        is_valid = np.linalg.norm(centroids - hole_centre, axis=1) > hole_radius
    is_valid &= np.abs(_signed_areas(points, cells)) > 1e-3 * spacing**2
    return TriangleMesh(points=points, cells=cells[is_valid], boundary=np.arange(len(points)) < len(boundary))


def assemble_mass_and_stiffness(mesh: TriangleMesh) -> tuple[sparse.csc_matrix, sparse.csc_matrix]:
    """Return the mass and the stiffness matrix of linear elements.

    Their entries are the integrals of phi_i phi_j and of grad phi_i . grad phi_j over the mesh.
    """
    corners = mesh.points[mesh.cells]
    area = np.abs(_signed_areas(mesh.points, mesh.cells))
    # The gradient of a corner's basis function is the opposite edge, rotated by 90 degrees, over twice the area.
    opposite = np.roll(corners, -2, axis=1) - np.roll(corners, -1, axis=1)
    stiffness = np.einsum("mid,mjd->mij", opposite, opposite) / (4 * area[:, None, None])
    mass = (np.ones((3, 3)) + np.eye(3)) * area[:, None, None] / 12
    rows, columns = np.repeat(mesh.cells, 3, axis=1).ravel(), np.tile(mesh.cells, 3).ravel()
    size = 2 * (len(mesh.points),)
    mass_matrix, stiffness_matrix = (
        sparse.coo_matrix((values.ravel(), (rows, columns)), size).tocsc() for values in (mass, stiffness)
    )
    return mass_matrix, stiffness_matrix


def _signed_areas(points: Float[np.ndarray, "p 2"], cells: Int[np.ndarray, "m 3"]) -> Float[np.ndarray, " m"]:
    """Return the areas of triangles, positive for counter-clockwise order of the corners."""
    first, second, third = (points[cells[:, corner]] for corner in range(3))
    (ax, ay), (bx, by) = (second - first).T, (third - first).T
    return 0.5 * (ax * by - ay * bx)
