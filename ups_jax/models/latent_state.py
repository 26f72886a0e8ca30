"""The latent state of a simulation and the conditions it runs under, as pytrees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Where the points of a set lie, physical, with D = 0 where they move (their coordinates are channels then); 1 for
    those that are there; and the given fields at them, in their own units."""

    coords: Float[Array, "b p d"]
    mask: Float[Array, "b p"]
    given: Float[Array, "b p i"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Per sample: physical time step and PDE coefficients in physical units, mask 1 where a coefficient is known. Of a
    set of points its geometry as well."""

    dt: Float[Array, " b"]
    coefficients: Float[Array, "b p"]
    mask: Float[Array, "b p"]
    geometry: Geometry | None = None

    @property
    def points(self) -> Float[Array, "b p"] | None:
        """The mask of the points of a set; None of a grid, all of whose points count."""
        return None if self.geometry is None else self.geometry.mask


def conditions_of(batch: Mapping[str, Array | np.ndarray]) -> Conditions:
    """The conditions of a batch's rows."""
    dt, coefficients, mask = (jnp.asarray(batch[name]) for name in ("dt", "cond", "cond_mask"))
    return Conditions(dt=dt, coefficients=coefficients, mask=mask, geometry=geometry_of(batch))


def geometry_of(batch: Mapping[str, Array | np.ndarray]) -> Geometry | None:
    """The geometry of a batch of points, None of one of grids."""
    if "point_mask" not in batch:
        return None
    coords, mask, given = (jnp.asarray(batch[name]) for name in ("coords", "point_mask", "inputs"))
    return Geometry(coords=coords, mask=mask, given=given)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LatentState:
    """Tokens `z` at physical time `t`. A token is its patch of the newest frame followed by learned features."""

    z: Float[Array, "b n d"]
    t: Float[Array, " b"]
    cond: Conditions
