"""The PDE coefficients of every trajectory: raw values with a mask of what is known, and their scale in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64, Int

from ups_jax.config import TaskConfig
from ups_jax.core.errors import ConfigError, DataError
from ups_jax.core.task import Coefficient, Task
from ups_jax.data.sources.base import Source
from ups_jax.data.statistics import coefficient_moments


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
    return conditions_of_all([(wanted, source, train)], [task])[0]


def conditions_of_all(
    opened: Sequence[tuple[TaskConfig, Source, Int[np.ndarray, " _"]]], tasks: Sequence[Task | None]
) -> list[Conditions]:
    """The same for several tasks that one model is trained on: all have a column for each coefficient of any, by its
    name, and a coefficient's statistics are those of all training trajectories that know it.

    ConfigError where two tasks declare a coefficient on different scales.
    """
    scales = declared_scales([wanted for wanted, _, _ in opened])
    found = [
        _look_up(wanted, source, scales if task is None else {item.name: item.scale for item in task.coefficients})
        for (wanted, source, _), task in zip(opened, tasks, strict=True)
    ]
    result = []
    for own, task in zip(found, tasks, strict=True):
        kept = task.coefficients if task is not None else _fitted(scales, found, [train for _, _, train in opened])
        result.append(Conditions(coefficients=kept, values=own.values, mask=own.mask, notes=own.notes))
    return result


def declared_scales(tasks: Sequence[TaskConfig]) -> dict[str, Literal["linear", "log10"]]:
    """The scale of each coefficient of any task. ConfigError where two tasks have it on different ones."""
    scales: dict[str, Literal["linear", "log10"]] = {}
    for task in tasks:
        for name, scale in task.coefficients.items():
            if scales.setdefault(name, scale) != scale:
                raise ConfigError(
                    f"key `data.tasks.{task.name}.coefficients`: {name} is {scale} here and {scales[name]} in another "
                    "task; one model reads it on one scale, so write the same"
                )
    return scales


@dataclass(frozen=True, eq=False, kw_only=True)
class _Found:
    values: Float32[np.ndarray, "n p"]
    mask: Float32[np.ndarray, "n p"]
    notes: tuple[str, ...]


def _look_up(wanted: TaskConfig, source: Source, scales: Mapping[str, str]) -> _Found:
    values = np.zeros((source.trajectories, len(scales)), np.float32)
    mask = np.zeros_like(values)
    notes = []
    for column, (name, scale) in enumerate(scales.items()):
        found = source.coefficient(name)
        known = np.zeros(source.trajectories, bool) if found is None else ~np.isnan(found)
        if found is not None:
            _check(source.name, name, scale, found[known])
            values[known, column] = found[known]
            mask[known, column] = 1.0
        # What another task declares this one need not have.
        if not known.all() and name in wanted.coefficients:
            which = "every trajectory" if not known.any() else f"{int((~known).sum())} of {len(known)} trajectories"
            notes.append(
                f"{source.name}: coefficient {name} is unknown for {which} and masked out; store it as dataset "
                f"`parameters/{name}`, as root attribute, or in the file name ({name}0.01)"
            )
    declared = {name.lower() for name in scales}
    for name in source.found_coefficients():
        if name.lower() not in declared:
            notes.append(
                f"{source.name}: holds a coefficient {name} that the model is not told; if it is one of the equation, "
                f"add data.tasks.{wanted.name}.coefficients={{{name}: linear}} (or log10)"
            )
    return _Found(values=values, mask=mask, notes=tuple(notes))


def _fitted(
    scales: Mapping[str, str], found: Sequence[_Found], trains: Sequence[Int[np.ndarray, " _"]]
) -> tuple[Coefficient, ...]:
    """Mean and std of each coefficient over the training trajectories of all tasks."""
    fitted = []
    for column, (name, scale) in enumerate(scales.items()):
        known = [
            own.values[train, column][own.mask[train, column] > 0] for own, train in zip(found, trains, strict=True)
        ]
        mean, std = coefficient_moments(np.concatenate(known), scale)
        fitted.append(Coefficient(name=name, scale=scale, mean=mean, std=std))
    return tuple(fitted)


def _check(source: str, name: str, scale: str, values: Float64[np.ndarray, " n"]) -> None:
    if not np.isfinite(values).all():
        raise DataError(f"{source}: coefficient {name} is infinite in some trajectory; correct or remove it")
    if scale == "log10" and (values <= 0).any():
        raise DataError(
            f"{source}: coefficient {name} is declared log10 and {values.min():.3g} in trajectory "
            f"{int(values.argmin())}; declare it linear"
        )
