"""PDE coefficients that a user gives by name, as the arrays that a model is conditioned on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from ups_jax.errors import DataError
from ups_jax.models import Conditions
from ups_jax.models.latent_state import geometry_of
from ups_jax.task import Task


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
