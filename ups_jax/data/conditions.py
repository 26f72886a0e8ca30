"""The PDE coefficients of every trajectory: raw values with a mask of what is known, and their scale in training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int

from ups_jax.config import TaskConfig
from ups_jax.data.sources.base import Source
from ups_jax.data.statistics import coefficient_moments
from ups_jax.errors import DataError
from ups_jax.task import Coefficient, Task


@dataclass(frozen=True, eq=False, kw_only=True)
class Conditions:
    """`values` are in the source's units and 0 where `mask` is 0; columns as in `coefficients`."""

    coefficients: tuple[Coefficient, ...]
    values: Float32[np.ndarray, "n p"]
    mask: Float32[np.ndarray, "n p"]
    notes: tuple[str, ...]

    def scaled(self) -> Float64[np.ndarray, "n p"]:
        """Standardised values on each coefficient's scale, 0 where unknown."""
        result = np.zeros(self.values.shape)
        for column, item in enumerate(self.coefficients):
            known = self.mask[:, column] > 0
            values = self.values[known, column].astype(np.float64)
            result[known, column] = ((np.log10(values) if item.scale == "log10" else values) - item.mean) / item.std
        return result


def read_conditions(wanted: TaskConfig, source: Source, train: Int[np.ndarray, " m"], task: Task | None) -> Conditions:
    """Look up what the task declares (or a trained `task` was conditioned on) and tell what is missing or left over.

    Raises `DataError` for a value that is not finite or not positive on a log10 scale.
    """
    scales = wanted.coefficients if task is None else {item.name: item.scale for item in task.coefficients}
    values = np.zeros((source.trajectories, len(scales)), np.float32)
    mask = np.zeros_like(values)
    coefficients, notes = [], []
    for column, (name, scale) in enumerate(scales.items()):
        found = source.coefficient(name)
        known = np.zeros(source.trajectories, bool) if found is None else ~np.isnan(found)
        if found is not None:
            _check(source.name, name, scale, found[known])
            values[known, column] = found[known]
            mask[known, column] = 1.0
        if not known.all():
            which = "every trajectory" if not known.any() else f"{int((~known).sum())} of {len(known)} trajectories"
            notes.append(
                f"{source.name}: coefficient {name} is unknown for {which} and masked out; store it as dataset "
                f"`parameters/{name}`, as root attribute, or in the file name ({name}0.01)"
            )
        mean, std = coefficient_moments(values[train, column][known[train]], scale)
        coefficients.append(Coefficient(name=name, scale=scale, mean=mean, std=std))
    declared = {name.lower() for name in scales}
    for name in source.found_coefficients():
        if name.lower() not in declared:
            notes.append(
                f"{source.name}: holds a coefficient {name} that the model is not told; if it is one of the equation, "
                f"add data.tasks.{wanted.name}.coefficients={{{name}: linear}} (or log10)"
            )
    kept = tuple(coefficients) if task is None else task.coefficients
    return Conditions(coefficients=kept, values=values, mask=mask, notes=tuple(notes))


def _check(source: str, name: str, scale: str, values: Float64[np.ndarray, " n"]) -> None:
    if not np.isfinite(values).all():
        raise DataError(f"{source}: coefficient {name} is infinite in some trajectory; correct or remove it")
    if scale == "log10" and (values <= 0).any():
        raise DataError(
            f"{source}: coefficient {name} is declared log10 and {values.min():.3g} in trajectory "
            f"{int(values.argmin())}; declare it linear"
        )
