"""Residuals of Dirichlet, Neumann and periodic boundary conditions on the walls of a grid.

A wall is an end of a non-periodic axis. Sides are named by axis: `left` and `right` are the two ends of the first axis,
`bottom` and `top` of the second, `front` and `back` of the third.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ups_jax.losses.field import Fields
from ups_jax.losses.reduction import Mask, Number, Reduction, at_least_float32, point_mask, reduce_samples, sample_mask

BoundarySides = Literal["all", "left", "right", "bottom", "top", "front", "back"]
BoundaryCondition = Literal["dirichlet", "neumann", "periodic"]


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

# Residuals at the `m` points of the walls, and the mask of these points (None if all count).
ResidualsAndMask = tuple[Float[Array, "b m c"], Float[Array, "b m"] | None]


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
    - `periodic`: u(first point) - u(last point), for an axis whose grid contains both ends of a period. The grid of an
      axis that is flagged as periodic contains only one end; the residual of this axis is then 0.

    Args:
        fields: Fields u `(b, *s, c)`.
        value: Prescribed value of u or du/dn, in the units of `fields` (per length for `neumann`).
        sides: `all` or the name of one side of the grid.
        mask: Samples `(b,)` or points `(b, *s)` that count.

    Raises:
        ValueError: If the condition or the side is unknown, or if no chosen side is a wall and the condition is not
            `periodic`.
    """
    if condition not in _RESIDUALS:
        raise ValueError(f"unknown boundary condition {condition!r}; use one of {', '.join(_RESIDUALS)}")
    walls = find_walls(periodic, sides)
    rows = sample_mask(mask, fields)
    if not walls and condition == "periodic":
        return reduce_samples(jnp.zeros(fields.shape[0]), rows, reduction)
    if not walls:
        raise ValueError(
            f"the condition {condition} needs a wall, but the grid is periodic at side {sides!r}; choose another side"
        )
    residual, weights = _RESIDUALS[condition](at_least_float32(fields), walls, spacing, value, point_mask(mask, fields))
    squares = jnp.square(residual).mean(-1)
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


def _dirichlet_residuals(
    x: Float[Array, "b *s c"],
    walls: list[Wall],
    spacing: Sequence[Number],
    value: Number,
    mask: Float[Array, "b *s"] | None,
) -> ResidualsAndMask:
    """Return u - value at the points of the walls, and the mask of these points."""
    on_wall = np.zeros(x.shape[1:-1], bool)
    for axis, end in walls:
        np.moveaxis(on_wall, axis, 0)[end] = True
    indices = np.flatnonzero(on_wall)
    values = x.reshape(x.shape[0], -1, x.shape[-1])[:, indices]
    return values - value, None if mask is None else mask.reshape(mask.shape[0], -1)[:, indices]


def _neumann_residuals(
    x: Float[Array, "b *s c"],
    walls: list[Wall],
    spacing: Sequence[Number],
    value: Number,
    mask: Float[Array, "b *s"] | None,
) -> ResidualsAndMask:
    """Return du/dn - value at the points of the walls, with the outward normal n, and the mask of these points."""

    def slope_residual(axis: int, end: int) -> Float[Array, "b *r c"]:
        if x.shape[axis + 1] < 3:
            raise ValueError(
                f"axis {axis} has {x.shape[axis + 1]} points, but a Neumann condition needs three; use a finer grid"
            )
        # Values from the wall inwards; the outward derivative has this sign at both ends.
        layers = [jnp.take(x, back if end == 0 else -1 - back, axis + 1) for back in range(3)]
        return (3 * layers[0] - 4 * layers[1] + layers[2]) / (2 * spacing[axis]) - value

    weights = None if mask is None else [jnp.take(mask, end, axis + 1) for axis, end in walls]
    return _flatten_faces([slope_residual(axis, end) for axis, end in walls], weights)


def _periodic_residuals(
    x: Float[Array, "b *s c"],
    walls: list[Wall],
    spacing: Sequence[Number],
    value: Number,
    mask: Float[Array, "b *s"] | None,
) -> ResidualsAndMask:
    """Return u(first point) - u(last point) along each axis that has walls, and the mask of these pairs of points."""
    axes = [axis for axis, _ in itertools.groupby(axis for axis, _ in walls)]
    jumps = [jnp.take(x, 0, axis + 1) - jnp.take(x, -1, axis + 1) for axis in axes]
    weights = None if mask is None else [jnp.take(mask, 0, axis + 1) * jnp.take(mask, -1, axis + 1) for axis in axes]
    return _flatten_faces(jumps, weights)


def _flatten_faces(
    faces: list[Float[Array, "b *_r c"]], weights: list[Float[Array, "b *_r"]] | None
) -> ResidualsAndMask:
    """Return the values at the points of several faces, and the weights of these points, each on one axis."""
    flat = jnp.concatenate([face.reshape(face.shape[0], -1, face.shape[-1]) for face in faces], axis=1)
    if weights is None:
        return flat, None
    return flat, jnp.concatenate([face.reshape(face.shape[0], -1) for face in weights], axis=1)


_RESIDUALS: dict[str, Callable[..., ResidualsAndMask]] = {
    "dirichlet": _dirichlet_residuals,
    "neumann": _neumann_residuals,
    "periodic": _periodic_residuals,
}
