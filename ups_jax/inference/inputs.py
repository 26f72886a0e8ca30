"""PDE coefficients that a user gives by name, as the arrays that a model is conditioned on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32

from ups_jax.core.errors import DataError
from ups_jax.core.task import Task
from ups_jax.models import Conditions
from ups_jax.models.conditioning import geometry_of


def coefficient_arrays(
    task: Task, params: Mapping[str, Any], batch: int
) -> tuple[Float32[np.ndarray, "b p"], Float32[np.ndarray, "b p"]]:
    """Values and presence; one that is left out counts as its training mean, with a warning.

    DataError for a name that the task does not know or a value that cannot be.
    """
    names = [coefficient.name for coefficient in task.own_coefficients]
    unknown = set(params) - set(names)
    if unknown:
        raise DataError(
            f"the run knows no coefficient {', '.join(sorted(unknown))}; it has {', '.join(names) or 'none'}"
        )
    values, mask = np.zeros((2, batch, len(task.coefficients)), np.float32)
    for column, coefficient in enumerate(task.coefficients):
        if coefficient.name in task.foreign:
            continue
        if coefficient.name not in params:
            warnings.warn(f"coefficient {coefficient.name} is not given; its training mean is taken", stacklevel=3)
        else:
            values[:, column], mask[:, column] = params[coefficient.name], 1.0
            given = values[:, column]
            if not np.isfinite(given).all() or (coefficient.scale == "log10" and (given <= 0).any()):
                kind = "a positive number" if coefficient.scale == "log10" else "a finite number"
                raise DataError(f"coefficient {coefficient.name} is {params[coefficient.name]!r}; give {kind}")
    return values, mask


def conditions(
    task: Task, values: np.ndarray, mask: np.ndarray, places: Mapping[str, np.ndarray] = MappingProxyType({})
) -> Conditions:
    """The conditions of a batch at the task's time step; `places` are a set of points' entries of a batch."""
    return Conditions(
        dt=jnp.full(len(values), task.dt, jnp.float32),
        coefficients=jnp.asarray(values, jnp.float32),
        mask=jnp.asarray(mask, jnp.float32),
        geometry=geometry_of(places),
    )


# The entries of a batch that only sets of points have, by name.
PlaceArrays = Mapping[str, np.ndarray]


@runtime_checkable
class Placed(Protocol):
    """Trajectories of a set of points."""

    @property
    def place_arrays(self) -> dict[str, np.ndarray]: ...


def given(trajectories: Any, rows: Any) -> tuple[Any, ...]:
    """Coefficients and their presence of some rows; of sets of points their places as well."""
    places = place_arrays(trajectories)
    own = (trajectories.cond[rows], trajectories.cond_mask[rows])
    return (*own, {name: values[rows] for name, values in places.items()}) if places else own


def points_of(trajectories: Any, rows: Any) -> Float[np.ndarray, "b p"] | None:
    """Which points of some rows are there; None of grids, all of whose points count."""
    places = place_arrays(trajectories)
    return places["point_mask"][rows] if places else None


def place_arrays(trajectories: Any) -> PlaceArrays:
    """Nothing for grids."""
    return trajectories.place_arrays if isinstance(trajectories, Placed) else {}


def checked_places(task: Task, places: PlaceArrays | None, batch: int, points: int) -> dict[str, np.ndarray]:
    """The entries of a batch of `points` points that a user's `places` give, each row's own; nothing for a grid.

    DataError for what is missing, unknown or of another shape.
    """
    if not task.scattered:
        if places is not None:
            raise DataError(f"places: are of points, and task {task.name} is of a grid; leave them out")
        return {}
    wanted = {
        "coords": (points, 0 if task.moving else len(task.axes)),
        "point_mask": (points,),
        "inputs": (points, len(task.inputs)),
    }
    found = dict(places or {})
    for name in found.keys() - wanted.keys():
        raise DataError(f"places: {name} is none of {', '.join(wanted)}")
    found.setdefault("point_mask", np.ones(points, np.float32))
    if task.moving:
        found.setdefault("coords", np.zeros((points, 0), np.float32))
    if not task.inputs:
        found.setdefault("inputs", np.zeros((points, 0), np.float32))
    result = {}
    for name, shape in wanted.items():
        if name not in found:
            raise DataError(f"places: has no {name}; this run takes {name} of shape {shape} (or with samples before)")
        values = np.asarray(found[name], np.float32)
        if values.shape not in (shape, (batch, *shape)):
            raise DataError(f"places: {name} has shape {values.shape}; this run takes {shape} or {(batch, *shape)}")
        if not np.isfinite(values).all():
            raise DataError(f"places: {name} holds NaN or Inf")
        result[name] = np.broadcast_to(values, (batch, *shape))
    return result
