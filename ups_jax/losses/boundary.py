"""Residuals of Dirichlet, Neumann and periodic boundary conditions on the walls of a grid.

A wall is an end of a non-periodic axis. Sides are named by axis: `left` and `right` are the two ends of the first axis,
`bottom` and `top` of the second, `front` and `back` of the third. The outermost grid points are either on the wall
(`nodes`) or half a spacing inside it (`cells`, the centres of cells).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ups_jax.losses.field import Fields
from ups_jax.losses.reduction import Mask, Number, Reduction, at_least_float32, point_mask, reduce_samples, sample_mask

BoundarySides = Literal["all", "left", "right", "bottom", "top", "front", "back"]
BoundaryCondition = Literal["dirichlet", "neumann", "periodic"]
PointLocation = Literal["nodes", "cells"]


class Wall(NamedTuple):
    """One end of an axis of a grid: index 0 or -1 along the axis."""

    axis: int
    end: int


SIDES = {
    "left": Wall(0, 0),
    "right": Wall(0, -1),
    "bottom": Wall(1, 0),
    "top": Wall(1, -1),
    "front": Wall(2, 0),
    "back": Wall(2, -1),
}

# Values, outward slopes or jumps at the `m` points of the walls, and the mask of these points (None if all count).
ValuesAndMask = tuple[Float[Array, "b m c"], Float[Array, "b m"] | None]


def boundary(
    fields: Fields,
    spacing: Sequence[Number],
    periodic: Sequence[bool],
    *,
    value: Number | Sequence[Number] = 0.0,
    condition: BoundaryCondition = "dirichlet",
    sides: BoundarySides = "all",
    location: PointLocation = "nodes",
    reduction: Reduction = "mean",
    mask: Mask = None,
) -> Float[Array, "*b"]:
    """Return the mean squared residual of a boundary condition over the points of the walls and the channels.

    The residual depends on `condition`:

    - `dirichlet`: u - value on the wall. With `nodes`, a corner point counts once. With `cells`, u is extrapolated from
      the three points next to the wall, exactly for a parabola, and a corner counts once for each of its walls.
    - `neumann`: du/dn - value on the wall with the outward normal n, exactly for a parabola through the three points
      next to the wall. A corner counts once for each of its walls.
    - `periodic`: u(first point) - u(last point), for an axis whose grid contains both ends of a period. The grid of an
      axis that is flagged as periodic contains only one end; the residual of this axis is then 0.

    Args:
        fields: Fields u `(b, *s, c)`.
        value: Prescribed value of u or du/dn, in the units of `fields` (per length for `neumann`): one number, or one
            for each channel.
        sides: `all` or the name of one side of the grid.
        location: Whether the outermost points are on the walls or half a spacing inside.
        mask: Samples `(b,)` or points `(b, *s)` that count. Extrapolations also use the values of masked points.

    Raises:
        ValueError: If the condition or the side is unknown, if no chosen side is a wall and the condition is not
            `periodic`, or if an axis has too few points.
    """
    conditions = get_args(BoundaryCondition)
    if condition not in conditions:
        raise ValueError(f"unknown boundary condition {condition!r}; use one of {', '.join(conditions)}")
    walls = find_walls(periodic, sides)
    rows = sample_mask(mask, fields)
    if not walls and condition == "periodic":
        return reduce_samples(jnp.zeros(fields.shape[0]), rows, reduction)
    if not walls:
        raise ValueError(
            f"the condition {condition} needs a wall, but the grid is periodic at side {sides!r}; choose another side"
        )
    x, points = at_least_float32(fields), point_mask(mask, fields)
    if condition == "dirichlet" and location == "nodes":
        observed, weights = _wall_point_values(x, walls, points)
    elif condition == "periodic":
        observed, weights = _end_jumps(x, walls, points)
    else:
        observed, weights = _wall_extrapolations(x, walls, points, _STENCILS[condition, location], condition, spacing)
    target = jnp.zeros(()) if condition == "periodic" else jnp.asarray(value, observed.dtype)
    squares = jnp.square(observed - target.reshape(1, 1, -1)).mean(-1)
    if weights is None:
        return reduce_samples(squares.mean(-1), rows, reduction)
    return reduce_samples((squares * weights).sum(-1) / jnp.maximum(weights.sum(-1), 1e-30), rows, reduction)


def find_walls(periodic: Sequence[bool], sides: str) -> list[Wall]:
    """Return the chosen sides of the grid that are walls, i.e. ends of a non-periodic axis.

    Args:
        sides: `all` or the name of one side.

    Raises:
        ValueError: If the grid has no side of that name.
    """
    if sides == "all":
        return [Wall(axis, end) for axis, wraps in enumerate(periodic) if not wraps for end in (0, -1)]
    names = [name for name, wall in SIDES.items() if wall.axis < len(periodic)]
    if sides not in names:
        raise ValueError(
            f"unknown side {sides!r} of a grid with {len(periodic)} axes; use all or one of {', '.join(names)}"
        )
    wall = SIDES[sides]
    return [] if periodic[wall.axis] else [wall]


def point_location(walls: Sequence[Wall], origin: Sequence[float], spacing: Sequence[float]) -> PointLocation | None:
    """Return whether the grid points next to the walls are nodes or cells; None if their coordinates do not decide.

    A grid whose first coordinate is 0 has points on its walls; if it is half a spacing, the points are the centres of
    cells. Any other coordinate fits both: a domain may begin anywhere.
    """
    kinds: set[PointLocation | None] = set()
    for axis in {wall.axis for wall in walls}:
        first = origin[axis] / spacing[axis]
        is_cell, is_node = (abs(first - location) < _LOCATION_TOLERANCE for location in (0.5, 0.0))
        kinds.add("cells" if is_cell else "nodes" if is_node else None)
    return kinds.pop() if len(kinds) == 1 else None


# Coordinates in float32 are off by up to this part of a spacing.
_LOCATION_TOLERANCE = 0.01

# Weights of the three points next to a wall, from the wall inwards, in the value on the wall or in its outward slope
# times the spacing. Both are exact for parabolas.
_STENCILS = {
    ("dirichlet", "cells"): (15 / 8, -10 / 8, 3 / 8),
    ("neumann", "nodes"): (3 / 2, -2.0, 1 / 2),
    ("neumann", "cells"): (2.0, -3.0, 1.0),
}


def _wall_point_values(
    x: Float[Array, "b *s c"], walls: list[Wall], mask: Float[Array, "b *s"] | None
) -> ValuesAndMask:
    """Return u at the points on the walls, each once, and the mask of these points."""
    on_wall = np.zeros(x.shape[1:-1], bool)
    for axis, end in walls:
        np.moveaxis(on_wall, axis, 0)[end] = True
    indices = np.flatnonzero(on_wall)
    values = x.reshape(x.shape[0], -1, x.shape[-1])[:, indices]
    return values, None if mask is None else mask.reshape(mask.shape[0], -1)[:, indices]


def _wall_extrapolations(
    x: Float[Array, "b *s c"],
    walls: list[Wall],
    mask: Float[Array, "b *s"] | None,
    stencil: tuple[float, float, float],
    condition: BoundaryCondition,
    spacing: Sequence[Number],
) -> ValuesAndMask:
    """Return u or its outward slope du/dn on the walls, from three points next to them, and the mask of the nearest."""

    def extrapolate(axis: int, end: int) -> Float[Array, "b *r c"]:
        if x.shape[axis + 1] < 3:
            raise ValueError(
                f"axis {axis} has {x.shape[axis + 1]} points, but the boundary condition needs three; use a finer grid"
            )
        # From the wall inwards; the outward slope has the same weights at both ends.
        layers = (jnp.take(x, back if end == 0 else -1 - back, axis + 1) for back in range(3))
        value = sum((weight * layer for weight, layer in zip(stencil, layers, strict=True)), jnp.zeros(()))
        return value / spacing[axis] if condition == "neumann" else value

    weights = None if mask is None else [jnp.take(mask, end, axis + 1) for axis, end in walls]
    return _flatten_faces([extrapolate(axis, end) for axis, end in walls], weights)


def _end_jumps(x: Float[Array, "b *s c"], walls: list[Wall], mask: Float[Array, "b *s"] | None) -> ValuesAndMask:
    """Return u(first point) - u(last point) along each axis that has walls, and the mask of these pairs of points."""
    axes = [axis for axis, _ in itertools.groupby(axis for axis, _ in walls)]
    jumps = [jnp.take(x, 0, axis + 1) - jnp.take(x, -1, axis + 1) for axis in axes]
    weights = None if mask is None else [jnp.take(mask, 0, axis + 1) * jnp.take(mask, -1, axis + 1) for axis in axes]
    return _flatten_faces(jumps, weights)


def _flatten_faces(faces: list[Float[Array, "b *_r c"]], weights: list[Float[Array, "b *_r"]] | None) -> ValuesAndMask:
    """Return the values at the points of several faces, and the weights of these points, each on one axis."""
    flat = jnp.concatenate([face.reshape(face.shape[0], -1, face.shape[-1]) for face in faces], axis=1)
    if weights is None:
        return flat, None
    return flat, jnp.concatenate([face.reshape(face.shape[0], -1) for face in weights], axis=1)
