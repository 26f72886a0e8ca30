"""The arguments of a trained model, checked: fields, PDE coefficients by name, positions of points.

Shapes and names are always checked, values where they are concrete: a traced array has none yet.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ups_jax.core.errors import DataError
from ups_jax.core.task import Task
from ups_jax.models import Conditions
from ups_jax.models.conditioning import geometry_of
from ups_jax.rollout.steady import refinement

AnyArray = np.ndarray | Array
# PDE coefficients by name, in physical units: one for all samples, or one for each.
Coefficients = Mapping[str, float | np.number | AnyArray]
# The entries of a batch that only sets of points have, by name.
PlaceArrays = Mapping[str, AnyArray]


def array_dtype(*trees: Any) -> type[np.floating]:
    """Return the type to compute in: float64 where JAX has it enabled and an array is of that type, else float32."""
    enabled = jax.dtypes.canonicalize_dtype(np.float64) == np.float64
    wide = enabled and any(getattr(leaf, "dtype", None) == np.float64 for leaf in jax.tree.leaves(trees))
    return np.float64 if wide else np.float32


def has_jax(*trees: Any) -> bool:
    """Return whether a leaf is an array of JAX, traced or not."""
    return any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(trees))


def is_traced(*trees: Any) -> bool:
    """Return whether a leaf is traced, so that its value is not known yet."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def converted(name: str, values: Any, dtype: Any, shapes: Sequence[tuple[int, ...]] | None = None) -> AnyArray:
    """Return values as an array of a type, of NumPy unless they are of JAX.

    Raises:
        DataError: They are no array, the shape is none of `shapes`, or a concrete array holds NaN or Inf.
    """
    if values is None or isinstance(values, Mapping):
        raise DataError(f"{name}: is {'missing' if values is None else 'a mapping'}; give an array")
    array = values.astype(dtype) if isinstance(values, jax.Array) else np.asarray(values, dtype)
    if shapes is not None and array.shape not in shapes:
        raise DataError(
            f"{name} has shape {array.shape}; this run takes {' or '.join(map(str, dict.fromkeys(shapes)))}"
        )
    if not is_traced(array) and not np.isfinite(array).all():
        raise DataError(f"{name} holds NaN or Inf")
    return array


def checked_frames(task: Task, context: int, u: Any, dtype: Any) -> AnyArray:
    """Return the frames that a transient task starts from, (b, context, *s, c); DataError for another shape."""
    fields = converted("u", u, dtype)
    frame = (*task.shape, len(task.channels))
    if task.scattered and fields.ndim >= 3:
        frame = (fields.shape[-2], frame[-1])
    if fields.ndim == len(frame) + 1 and context == 1:
        fields = fields[:, None]
    if fields.shape[1:] != (context, *frame):
        expected = " x ".join(map(str, ("b", *((context,) if context > 1 else ()), *frame)))
        raise DataError(f"u has shape {np.shape(u)}; this run takes {expected} (samples, grid, channels)")
    return fields


def checked_inputs(task: Task, u: Any, input_fields: Any, dtype: Any) -> AnyArray:
    """Return the given fields of a steady task, (b, *s, i): `u` where there are no `input_fields`, which otherwise is a
    state, whose shape alone matters. DataError for another shape."""
    fields = converted("input_fields", u if input_fields is None else input_fields, dtype)
    names = [item.name for item in task.inputs]
    if fields.ndim != len(task.shape) + 2 or fields.shape[-1] != len(names):
        raise DataError(
            f"input_fields have shape {fields.shape}; this run takes (samples, {', '.join(task.axes)}, {len(names)}), "
            f"the last axis being {', '.join(names)}"
        )
    refinement(task, fields.shape[1:-1])
    state = (*fields.shape[:-1], len(task.channels))
    if u is not None and input_fields is not None and np.shape(u) != state:
        raise DataError(f"u has shape {np.shape(u)}; with input_fields of shape {fields.shape} it has {state}")
    return fields


def checked_places(task: Task, places: Any, batch: int, points: int, dtype: Any) -> dict[str, AnyArray]:
    """Return the entries of a batch of `points` points that `places` give, for each row; nothing for a grid.

    Raises:
        DataError: An entry is missing, unknown, or of another shape.
    """
    if not task.scattered:
        if places is not None:
            raise DataError(f"input_fields: task {task.name} is of a grid and has none; leave them out")
        return {}
    shapes = {
        "coords": (points, 0 if task.moving else len(task.axes)),
        "point_mask": (points,),
        "inputs": (points, len(task.inputs)),
    }
    if not isinstance(places, Mapping | None):
        raise DataError(f"input_fields: is an array; give a mapping of {', '.join(shapes)}")
    values = {"point_mask": np.ones(points), **(places or {})}
    for name, shape in shapes.items():
        if 0 in shape:
            values.setdefault(name, np.zeros(shape))
    if values.keys() != shapes.keys():
        unknown, missing = sorted(values.keys() - shapes.keys()), sorted(shapes.keys() - values.keys())
        said = f"{', '.join(unknown)} is none of {', '.join(shapes)}" if unknown else f"has no {', '.join(missing)}"
        raise DataError(f"input_fields: {said}; this run takes {shapes} (or with samples before)")
    result = {}
    for name, shape in shapes.items():
        array = converted(f"input_fields: {name}", values[name], dtype, [shape, (batch, *shape)])
        result[name] = _module(array).broadcast_to(array, (batch, *shape))
    return result


def coefficient_arrays(
    task: Task, params: Coefficients, batch: int, dtype: Any = np.float32
) -> tuple[Float[AnyArray, "b p"], Float[np.ndarray, "b p"]]:
    """Return values and presence; a coefficient that is left out counts as its training mean, with a warning.

    Raises:
        DataError: A name is unknown, or a value has another shape or cannot be.
    """
    names = [coefficient.name for coefficient in task.own_coefficients]
    unknown = set(params) - set(names)
    if unknown:
        raise DataError(
            f"the run knows no coefficient {', '.join(sorted(unknown))}; it has {', '.join(names) or 'none'}"
        )
    columns, mask = [], np.zeros((batch, len(task.coefficients)), np.float32)
    for column, coefficient in enumerate(task.coefficients):
        name = coefficient.name
        values: AnyArray = np.zeros((), dtype)
        if name in params:
            values = converted(f"coefficient {name}", params[name], dtype, [(), (1,), (batch,)])
            if coefficient.scale == "log10" and not is_traced(values) and (np.asarray(values) <= 0).any():
                raise DataError(f"coefficient {name} is {params[name]!r}; give a positive number")
            mask[:, column] = 1.0
        elif name in names:
            warnings.warn(f"coefficient {name} is not given; its training mean is taken", stacklevel=4)
        columns.append(_module(values).broadcast_to(values, (batch,)))
    if not columns:
        return np.zeros((batch, 0), dtype), mask
    return _module(columns).stack(columns, axis=-1), mask


def conditions(
    task: Task, values: AnyArray, mask: np.ndarray, places: PlaceArrays = MappingProxyType({})
) -> Conditions:
    """Return the conditions of a batch at the task's time step; `places` are the entries of a batch of points."""
    dtype = array_dtype(values)
    return Conditions(
        dt=jnp.full(len(values), task.dt, dtype),
        coefficients=jnp.asarray(values, dtype),
        mask=jnp.asarray(mask, dtype),
        geometry=geometry_of(places),
    )


def _module(values: Any) -> Any:
    return jnp if has_jax(values) else np


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


def place_arrays(trajectories: Any) -> Mapping[str, np.ndarray]:
    """Nothing for grids."""
    return trajectories.place_arrays if isinstance(trajectories, Placed) else {}
