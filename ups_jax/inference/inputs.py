"""Validation of the arguments of a trained model: fields, PDE coefficients and arrays of point clouds.

Shapes and names are always checked. Values are checked only in concrete arrays, since a traced array has none.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType, ModuleType
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ups_jax.core.errors import DataError
from ups_jax.core.task import Task
from ups_jax.models import Conditions
from ups_jax.models.conditioning import geometry_of
from ups_jax.rollout.steady import refinement_factors

AnyArray = np.ndarray | Array
# PDE coefficients by name, in physical units: one number for all samples, or an array (b,).
Coefficients = Mapping[str, float | np.number | AnyArray]
# Arrays that a batch of point clouds has beside its fields: `coords`, `point_mask` and `inputs`.
PointArrays = Mapping[str, AnyArray]


def array_dtype(*trees: Any) -> type[np.floating]:
    """Return float64 if a leaf of the trees is float64 and JAX has float64 enabled, otherwise float32."""
    x64_enabled = jax.dtypes.canonicalize_dtype(np.float64) == np.float64
    has_float64 = x64_enabled and any(getattr(leaf, "dtype", None) == np.float64 for leaf in jax.tree.leaves(trees))
    return np.float64 if has_float64 else np.float32


def has_jax(*trees: Any) -> bool:
    """Return whether a leaf of the trees is a JAX array, traced or concrete."""
    return any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(trees))


def is_traced(*trees: Any) -> bool:
    """Return whether a leaf of the trees is a tracer, which has no concrete value."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def checked_array(name: str, values: Any, dtype: Any, shapes: Sequence[tuple[int, ...]] | None = None) -> AnyArray:
    """Check `values` and return them with the type `dtype`: JAX arrays as JAX arrays, all others as NumPy arrays.

    Args:
        name: Name of the argument for error messages.
        values: The array, or anything that `np.asarray` accepts.
        shapes: Allowed shapes; None allows every shape.

    Raises:
        DataError: The values are None or a mapping, have a shape that is not allowed, or contain NaN or Inf.
    """
    if values is None or isinstance(values, Mapping):
        raise DataError(f"{name} must be an array, but is {'missing' if values is None else 'a mapping'}")
    array = values.astype(dtype) if isinstance(values, jax.Array) else np.asarray(values, dtype)
    if shapes is not None and array.shape not in shapes:
        raise DataError(
            f"{name} has shape {array.shape}; this run expects {' or '.join(map(str, dict.fromkeys(shapes)))}"
        )
    if not is_traced(array) and not np.isfinite(array).all():
        raise DataError(f"{name} contains NaN or Inf")
    return array


def checked_frames(task: Task, context: int, u: Any, dtype: Any) -> AnyArray:
    """Check the context frames of a transient task and return them as an array (b, context, *grid, c).

    Args:
        context: Number of frames that the model takes as input.
        u: Frames (b, context, *grid, c), or (b, *grid, c) if the context is one frame.

    Raises:
        DataError: `u` has another shape, or contains NaN or Inf.
    """
    fields = checked_array("u", u, dtype)
    frame = (*task.shape, len(task.channels))
    if task.scattered and fields.ndim >= 3:
        frame = (fields.shape[-2], frame[-1])
    if fields.ndim == len(frame) + 1 and context == 1:
        fields = fields[:, None]
    if fields.shape[1:] != (context, *frame):
        expected = " x ".join(map(str, ("b", *((context,) if context > 1 else ()), *frame)))
        raise DataError(f"u has shape {np.shape(u)}; this run expects {expected} (samples, grid, channels)")
    return fields


def checked_input_fields(task: Task, u: Any, input_fields: Any, dtype: Any) -> AnyArray:
    """Check the input fields of a steady task, such as a permeability, and return them as an array (b, *grid, i).

    Args:
        u: The input fields if `input_fields` is None; otherwise None, or a state, of which only the shape is checked.

    Raises:
        DataError: A shape does not fit the task, or the input fields contain NaN or Inf.
    """
    fields = checked_array("input_fields", u if input_fields is None else input_fields, dtype)
    names = [item.name for item in task.inputs]
    if fields.ndim != len(task.shape) + 2 or fields.shape[-1] != len(names):
        raise DataError(
            f"input_fields has shape {fields.shape}; this run expects (samples, {', '.join(task.axes)}, {len(names)}) "
            f"with {', '.join(names)} along the last axis"
        )
    refinement_factors(task, fields.shape[1:-1])
    state = (*fields.shape[:-1], len(task.channels))
    if u is not None and input_fields is not None and np.shape(u) != state:
        raise DataError(
            f"u has shape {np.shape(u)}, but input_fields of shape {fields.shape} require {state}; leave out `u`"
        )
    return fields


def checked_point_arrays(task: Task, point_arrays: Any, batch: int, points: int, dtype: Any) -> dict[str, AnyArray]:
    """Check the point-cloud arrays of a batch; return them by name with a batch axis, or an empty dictionary on a grid.

    Args:
        point_arrays: Mapping with `coords` (points, axes), `point_mask` (points,) and `inputs` (points, i), each
            optionally with a leading batch axis. `point_mask` and arrays of size 0 may be missing.
        batch: Number of samples.
        points: Number of points of each sample.

    Raises:
        DataError: An array is missing, unknown or has another shape, or the task is on a grid and arrays are given.
    """
    if not task.scattered:
        if point_arrays is not None:
            raise DataError(f"input_fields: task {task.name} is on a grid and has no input fields; omit this argument")
        return {}
    shapes = {
        "coords": (points, 0 if task.moving else len(task.axes)),
        "point_mask": (points,),
        "inputs": (points, len(task.inputs)),
    }
    if not isinstance(point_arrays, Mapping | None):
        raise DataError(f"input_fields must be a mapping with the keys {', '.join(shapes)}, but is an array")
    values = {"point_mask": np.ones(points), **(point_arrays or {})}
    for name, shape in shapes.items():
        if 0 in shape:
            values.setdefault(name, np.zeros(shape))
    if values.keys() != shapes.keys():
        unknown, missing = sorted(values.keys() - shapes.keys()), sorted(shapes.keys() - values.keys())
        problem = f"unknown key {', '.join(unknown)}" if unknown else f"missing key {', '.join(missing)}"
        raise DataError(f"input_fields: {problem}; this run expects {shapes} (optionally with a leading batch axis)")
    result = {}
    for name, shape in shapes.items():
        array = checked_array(f"input_fields: {name}", values[name], dtype, [shape, (batch, *shape)])
        result[name] = _array_module(array).broadcast_to(array, (batch, *shape))
    return result


def coefficient_arrays(
    task: Task, params: Coefficients, batch: int, dtype: Any = np.float32
) -> tuple[Float[AnyArray, "b p"], Float[np.ndarray, "b p"]]:
    """Return the coefficients of a batch as an array and a mask that is 1 where a coefficient was given.

    A missing coefficient causes a warning; the model then uses its mean over the training data.

    Args:
        params: Coefficients by name, in physical units: one number for all samples, or an array (b,).
        batch: Number of samples.

    Returns:
        Values (b, p) and mask (b, p), in the order of `task.coefficients`.

    Raises:
        DataError: A name is unknown, or a value has another shape, is not finite, or is not positive although the
            coefficient has a logarithmic scale.
    """
    names = [coefficient.name for coefficient in task.equation_coefficients]
    unknown = set(params) - set(names)
    if unknown:
        raise DataError(
            f"unknown coefficient {', '.join(sorted(unknown))}; this run has {', '.join(names) or 'no coefficients'}"
        )
    columns, mask = [], np.zeros((batch, len(task.coefficients)), np.float32)
    for column, coefficient in enumerate(task.coefficients):
        name = coefficient.name
        values: AnyArray = np.zeros((), dtype)
        if name in params:
            values = checked_array(f"coefficient {name}", params[name], dtype, [(), (1,), (batch,)])
            if coefficient.scale == "log10" and not is_traced(values) and (np.asarray(values) <= 0).any():
                raise DataError(f"coefficient {name} must be positive, but is {params[name]!r}")
            mask[:, column] = 1.0
        elif name in names:
            warnings.warn(f"coefficient {name} is not given; its training mean is used", stacklevel=4)
        columns.append(_array_module(values).broadcast_to(values, (batch,)))
    if not columns:
        return np.zeros((batch, 0), dtype), mask
    return _array_module(columns).stack(columns, axis=-1), mask


def make_conditions(
    task: Task, values: AnyArray, mask: np.ndarray, point_arrays: PointArrays = MappingProxyType({})
) -> Conditions:
    """Return the conditions of the model for a batch: time step, coefficients and, for point clouds, the points.

    Args:
        values: Coefficients (b, p) in physical units.
        mask: Array (b, p) that is 1 where a coefficient is given.
        point_arrays: Arrays of a batch of point clouds; empty for a grid.
    """
    dtype = array_dtype(values)
    return Conditions(
        dt=jnp.full(len(values), task.dt, dtype),
        coefficients=jnp.asarray(values, dtype),
        mask=jnp.asarray(mask, dtype),
        geometry=geometry_of(point_arrays),
    )


def _array_module(values: Any) -> ModuleType:
    """Return `jax.numpy` if a value is a JAX array, otherwise `numpy`."""
    return jnp if has_jax(values) else np


@runtime_checkable
class HasPointArrays(Protocol):
    """Trajectories or samples with a mapping `point_arrays`, which is empty on a grid."""

    @property
    def point_arrays(self) -> dict[str, np.ndarray]: ...


def select_condition_arrays(trajectories: Any, rows: slice | np.ndarray) -> tuple[Any, ...]:
    """Return the arguments that follow `steps` in `rollout_arrays`, for some trajectories of a split.

    These are the coefficients, their mask and, for point clouds only, the point-cloud arrays.
    """
    point_arrays = get_point_arrays(trajectories)
    coefficients = (trajectories.cond[rows], trajectories.cond_mask[rows])
    return (
        (*coefficients, {name: values[rows] for name, values in point_arrays.items()}) if point_arrays else coefficients
    )


def select_point_mask(trajectories: Any, rows: slice | np.ndarray) -> Float[np.ndarray, "b p"] | None:
    """Return an array that is 0 at padded points of some trajectories and 1 at all others, or None for a grid."""
    point_arrays = get_point_arrays(trajectories)
    return point_arrays["point_mask"][rows] if point_arrays else None


def get_point_arrays(trajectories: Any) -> Mapping[str, np.ndarray]:
    """Return the point-cloud arrays of all trajectories by name, or an empty mapping for a grid."""
    return trajectories.point_arrays if isinstance(trajectories, HasPointArrays) else {}
