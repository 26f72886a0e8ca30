"""Residuals of Dirichlet, Neumann and periodic boundary conditions on the walls of a grid.

A wall is an end of a non-periodic axis. Sides are named by axis: `left` and `right` are the two ends of the first axis,
`bottom` and `top` of the second, `front` and `back` of the third.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ups_jax.losses.field import Fields
from ups_jax.losses.reduction import Mask, Number, Reduction, at_least_float32, point_mask, reduce_rows, row_mask

BoundarySides = Literal["all", "left", "right", "bottom", "top", "front", "back"]
BoundaryCondition = Literal["dirichlet", "neumann", "periodic"]
# (axis, index along it) of each side.
SIDES = {"left": (0, 0), "right": (0, -1), "bottom": (1, 0), "top": (1, -1), "front": (2, 0), "back": (2, -1)}

# Residuals at the `m` points of the walls, and the mask of these points (None if all count).
Residuals = tuple[Float[Array, "b m c"], Float[Array, "b m"] | None]


def boundary(
    fields: Fields,
    spacing: Sequence[Number],
    periodic: Sequence[bool],
    *,
    value: Number = 0.0,
    condition: BoundaryCondition = "dirichlet",
    sides: BoundarySides = "all",
    reduction: Reduction = "mean",
    mask: Mask = None,
) -> Float[Array, "*b"]:
    """Return the mean squared residual of a boundary condition over the points of the walls and the channels.

    The residual depends on `condition`:

    - `dirichlet`: u - value. A corner point counts once.
    - `neumann`: du/dn - value with the outward normal n. The one-sided difference is of second order. A corner point
      counts once for each of its normals.
    - `periodic`: u(first point) - u(last point), for an axis whose grid holds both ends of a period. An axis that is
      flagged as periodic holds only one of them; the condition is then always met and the loss is 0.

    Args:
        fields: Fields u `(b, *s, c)`.
        spacing: Distance between grid points along each axis.
        periodic: For each axis, whether it is periodic.
        value: Prescribed value of u or du/dn, in the units of `fields` (per length for `neumann`).
        condition: Kind of boundary condition.
        sides: `all` or the name of one side of the grid.
        reduction: How the samples are combined.
        mask: Samples `(b,)` or points `(b, *s)` that count.

    Raises:
        ValueError: If the condition or the side is unknown, or if no chosen side is a wall and the condition is not
            `periodic`.
    """
    if condition not in _RESIDUALS:
        raise ValueError(f"unknown boundary condition {condition!r}; use one of {', '.join(_RESIDUALS)}")
    walls = find_walls(periodic, sides)
    rows = row_mask(mask, fields)
    if not walls and condition == "periodic":
        return reduce_rows(jnp.zeros(fields.shape[0]), rows, reduction)
    if not walls:
        raise ValueError(f"the grid has no wall at side {sides!r} because it is periodic; {condition} needs a wall")
    residual, weights = _RESIDUALS[condition](at_least_float32(fields), walls, spacing, value, point_mask(mask, fields))
    squares = jnp.square(residual).mean(-1)
    if weights is None:
        return reduce_rows(squares.mean(-1), rows, reduction)
    return reduce_rows((squares * weights).sum(-1) / jnp.maximum(weights.sum(-1), 1e-30), rows, reduction)


def find_walls(periodic: Sequence[bool], sides: str) -> list[tuple[int, int]]:
    """Return the chosen sides that are walls, each as its axis and the index 0 or -1 along that axis.

    Args:
        periodic: For each axis, whether it is periodic.
        sides: `all` or the name of one side.

    Raises:
        ValueError: If the grid has no side of that name.
    """
    if sides == "all":
        return [(axis, end) for axis, wraps in enumerate(periodic) if not wraps for end in (0, -1)]
    names = [name for name, (axis, _) in SIDES.items() if axis < len(periodic)]
    if sides not in names:
        raise ValueError(
            f"unknown side {sides!r}; a grid with {len(periodic)} axes has the sides all, {', '.join(names)}"
        )
    axis, end = SIDES[sides]
    return [] if periodic[axis] else [(axis, end)]


def _dirichlet(
    x: Float[Array, "b *s c"],
    walls: list[tuple[int, int]],
    spacing: Sequence[Number],
    value: Number,
    points: Float[Array, "b *s"] | None,
) -> Residuals:
    """Return u - value at the points of the walls."""
    on_wall = np.zeros(x.shape[1:-1], bool)
    for axis, end in walls:
        np.moveaxis(on_wall, axis, 0)[end] = True
    indices = np.flatnonzero(on_wall)
    values = x.reshape(x.shape[0], -1, x.shape[-1])[:, indices]
    return values - value, None if points is None else points.reshape(points.shape[0], -1)[:, indices]


def _neumann(
    x: Float[Array, "b *s c"],
    walls: list[tuple[int, int]],
    spacing: Sequence[Number],
    value: Number,
    points: Float[Array, "b *s"] | None,
) -> Residuals:
    """Return du/dn - value at the points of the walls, with the outward normal n."""

    def slope_residual(axis: int, end: int) -> Float[Array, "b *r c"]:
        if x.shape[axis + 1] < 3:
            raise ValueError(
                f"a Neumann condition needs at least three points along axis {axis}, not {x.shape[axis + 1]}"
            )
        # Values from the wall inwards; the outward derivative has this sign at both ends.
        layers = [jnp.take(x, back if end == 0 else -1 - back, axis + 1) for back in range(3)]
        return (3 * layers[0] - 4 * layers[1] + layers[2]) / (2 * spacing[axis]) - value

    weights = None if points is None else [jnp.take(points, end, axis + 1) for axis, end in walls]
    return _flatten_faces([slope_residual(axis, end) for axis, end in walls], weights)


def _periodic(
    x: Float[Array, "b *s c"],
    walls: list[tuple[int, int]],
    spacing: Sequence[Number],
    value: Number,
    points: Float[Array, "b *s"] | None,
) -> Residuals:
    """Return u(first point) - u(last point) along each axis that has walls."""
    axes = [axis for axis, _ in itertools.groupby(axis for axis, _ in walls)]
    jumps = [jnp.take(x, 0, axis + 1) - jnp.take(x, -1, axis + 1) for axis in axes]
    weights = (
        None if points is None else [jnp.take(points, 0, axis + 1) * jnp.take(points, -1, axis + 1) for axis in axes]
    )
    return _flatten_faces(jumps, weights)


def _flatten_faces(faces: list[Float[Array, "b *_r c"]], weights: list[Float[Array, "b *_r"]] | None) -> Residuals:
    """Concatenate the points of several faces, and their weights, on one axis."""
    flat = jnp.concatenate([face.reshape(face.shape[0], -1, face.shape[-1]) for face in faces], axis=1)
    if weights is None:
        return flat, None
    return flat, jnp.concatenate([face.reshape(face.shape[0], -1) for face in weights], axis=1)


_RESIDUALS: dict[str, Callable[..., Residuals]] = {"dirichlet": _dirichlet, "neumann": _neumann, "periodic": _periodic}
