"""What holds on the walls of a grid: Dirichlet, Neumann and periodic conditions. An axis that wraps has no walls.

Sides are named as a drawing has them: left and right are the ends of the first axis, bottom and top of the second,
front and back of the third.
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
SIDES = {"left": (0, 0), "right": (0, -1), "bottom": (1, 0), "top": (1, -1), "front": (2, 0), "back": (2, -1)}

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
    """mean of the squared residual of a condition over the points of the walls and the channels.

    `dirichlet`: u - value; a corner counts once. `neumann`: du/dn - value along the outward normal, by the one-sided
    difference of second order, which is exact for parabolas; at a corner it holds for each of the normals. `periodic`:
    u at the first less u at the last point of an axis whose grid holds both ends of a period; where the axis is
    flagged as periodic the grid leaves one of them out, the condition holds of itself, and the term is 0.

    ValueError for an unknown condition or side, and where the sides lie on no wall (but for `periodic`).
    """
    if condition not in _RESIDUALS:
        raise ValueError(f"boundary condition {condition!r} is none of {', '.join(_RESIDUALS)}")
    walls = find_walls(periodic, sides)
    rows = row_mask(mask, fields)
    if not walls and condition == "periodic":
        return reduce_rows(jnp.zeros(fields.shape[0]), rows, reduction)
    if not walls:
        raise ValueError(f"no wall at {sides}: the axes are periodic; a {condition} condition needs one")
    residual, weights = _RESIDUALS[condition](at_least_float32(fields), walls, spacing, value, point_mask(mask, fields))
    squares = jnp.square(residual).mean(-1)
    if weights is None:
        return reduce_rows(squares.mean(-1), rows, reduction)
    return reduce_rows((squares * weights).sum(-1) / jnp.maximum(weights.sum(-1), 1e-30), rows, reduction)


def find_walls(periodic: Sequence[bool], sides: str) -> list[tuple[int, int]]:
    """(axis, 0 or -1) of the chosen sides that are walls; ValueError for a side that the grid has not."""
    if sides == "all":
        return [(axis, end) for axis, wraps in enumerate(periodic) if not wraps for end in (0, -1)]
    known = [name for name, (axis, _) in SIDES.items() if axis < len(periodic)]
    if sides not in known:
        raise ValueError(f"side {sides!r} is none of all, {', '.join(known)} of a grid with {len(periodic)} axes")
    axis, end = SIDES[sides]
    return [] if periodic[axis] else [(axis, end)]


def _dirichlet(
    x: Float[Array, "b *s c"],
    walls: list[tuple[int, int]],
    spacing: Sequence[Number],
    value: Number,
    points: Float[Array, "b *s"] | None,
) -> Residuals:
    on_wall = np.zeros(x.shape[1:-1], bool)
    for axis, end in walls:
        np.moveaxis(on_wall, axis, 0)[end] = True
    where = np.flatnonzero(on_wall)
    flat = x.reshape(x.shape[0], -1, x.shape[-1])[:, where]
    return flat - value, None if points is None else points.reshape(points.shape[0], -1)[:, where]


def _neumann(
    x: Float[Array, "b *s c"],
    walls: list[tuple[int, int]],
    spacing: Sequence[Number],
    value: Number,
    points: Float[Array, "b *s"] | None,
) -> Residuals:
    def slope(axis: int, end: int) -> Float[Array, "b *r c"]:
        if x.shape[axis + 1] < 3:
            raise ValueError(f"a neumann condition needs three points along axis {axis}, not {x.shape[axis + 1]}")
        # From the wall inwards; the outward derivative has this sign at both ends.
        near = [jnp.take(x, back if end == 0 else -1 - back, axis + 1) for back in range(3)]
        return (3 * near[0] - 4 * near[1] + near[2]) / (2 * spacing[axis]) - value

    weights = None if points is None else [jnp.take(points, end, axis + 1) for axis, end in walls]
    return _joined([slope(axis, end) for axis, end in walls], weights)


def _periodic(
    x: Float[Array, "b *s c"],
    walls: list[tuple[int, int]],
    spacing: Sequence[Number],
    value: Number,
    points: Float[Array, "b *s"] | None,
) -> Residuals:
    axes = [axis for axis, _ in itertools.groupby(axis for axis, _ in walls)]
    jumps = [jnp.take(x, 0, axis + 1) - jnp.take(x, -1, axis + 1) for axis in axes]
    weights = (
        None if points is None else [jnp.take(points, 0, axis + 1) * jnp.take(points, -1, axis + 1) for axis in axes]
    )
    return _joined(jumps, weights)


def _joined(faces: list[Float[Array, "b *_r c"]], weights: list[Float[Array, "b *_r"]] | None) -> Residuals:
    """The points of several faces one after the other."""
    flat = jnp.concatenate([face.reshape(face.shape[0], -1, face.shape[-1]) for face in faces], axis=1)
    if weights is None:
        return flat, None
    return flat, jnp.concatenate([face.reshape(face.shape[0], -1) for face in weights], axis=1)


_RESIDUALS: dict[str, Callable[..., Residuals]] = {"dirichlet": _dirichlet, "neumann": _neumann, "periodic": _periodic}
