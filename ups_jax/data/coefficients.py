"""PDE coefficients of all trajectories: raw values, a mask of the available ones, and their scaling statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, Float64, Int

from ups_jax.config import TaskConfig
from ups_jax.core.errors import ConfigError, DataError
from ups_jax.core.task import Coefficient, Task
from ups_jax.data.sources.base import Source, match_name
from ups_jax.data.statistics import coefficient_mean_and_std


@dataclass(frozen=True, eq=False, kw_only=True)
class Conditions:
    """The PDE coefficients that condition a model, for every trajectory of a source.

    Attributes:
        coefficients: Name, scale, mean and standard deviation of the coefficient in each column.
        values: Value of each coefficient in the source's units, 0 where `mask` is 0.
        mask: 1 where the source has a value, otherwise 0.
        notes: Messages for the user about missing and unused coefficients.
    """

    coefficients: tuple[Coefficient, ...]
    values: Float32[np.ndarray, "n p"]
    mask: Float32[np.ndarray, "n p"]
    notes: tuple[str, ...]

    def scaled(self) -> Float64[np.ndarray, "n p"]:
        """Return the values on each coefficient's scale (linear or log10), standardised; 0 where there is no value."""
        result = np.zeros(self.values.shape)
        for column, item in enumerate(self.coefficients):
            rows = self.mask[:, column] > 0
            values = self.values[rows, column].astype(np.float64)
            result[rows, column] = ((np.log10(values) if item.scale == "log10" else values) - item.mean) / item.std
        return result


def read_conditions(
    task_cfg: TaskConfig, source: Source, train_ids: Int[np.ndarray, " m"], trained_task: Task | None
) -> Conditions:
    """Read the coefficients of one task from its source.

    Args:
        train_ids: Ids of the training trajectories, from which the statistics are computed.
        trained_task: Task of a trained model, whose coefficients and statistics replace those that `task_cfg` and the
            data define; None for a new model.

    Raises:
        DataError: A value is infinite, outside the range of float32, or not positive on a log10 scale.
    """
    return read_all_conditions([task_cfg], [source], [train_ids], [trained_task])[0]


def read_all_conditions(
    task_cfgs: Sequence[TaskConfig],
    sources: Sequence[Source],
    train_ids: Sequence[Int[np.ndarray, " _"]],
    trained_tasks: Sequence[Task | None],
) -> list[Conditions]:
    """Read the coefficients of several tasks that one model is trained on; arguments as in `read_conditions`.

    The result of each task has a column for every coefficient that any task declares. The statistics of a coefficient
    are over the training trajectories with a value for it, in all tasks.

    Raises:
        ConfigError: Two tasks declare a coefficient on different scales.
        DataError: A value is infinite, outside the range of float32, or not positive on a log10 scale.
    """
    scales = coefficient_scales(task_cfgs)
    columns = [
        _read_columns(
            task_cfg,
            source,
            scales if trained_task is None else {item.name: item.scale for item in trained_task.coefficients},
        )
        for task_cfg, source, trained_task in zip(task_cfgs, sources, trained_tasks, strict=True)
    ]
    result = []
    for task_columns, trained_task in zip(columns, trained_tasks, strict=True):
        if trained_task is not None:
            coefficients = trained_task.coefficients
        else:
            coefficients = _coefficients_with_statistics(scales, columns, train_ids)
        result.append(
            Conditions(
                coefficients=coefficients, values=task_columns.values, mask=task_columns.mask, notes=task_columns.notes
            )
        )
    return result


def coefficient_scales(task_cfgs: Sequence[TaskConfig]) -> dict[str, Literal["linear", "log10"]]:
    """Return the scale of each declared coefficient; raise `ConfigError` if two tasks declare different scales."""
    scales: dict[str, Literal["linear", "log10"]] = {}
    for task_cfg in task_cfgs:
        for name, scale in task_cfg.coefficients.items():
            if scales.setdefault(name, scale) != scale:
                raise ConfigError(
                    f"key `data.tasks.{task_cfg.name}.coefficients`: the scale of {name} is {scale}, but another task "
                    f"declares {scales[name]}; declare the same scale in all tasks"
                )
    return scales


@dataclass(frozen=True, eq=False, kw_only=True)
class _Columns:
    """Values, mask and notes of one task's coefficients, before the statistics over all tasks are known."""

    values: Float32[np.ndarray, "n p"]
    mask: Float32[np.ndarray, "n p"]
    notes: tuple[str, ...]


def _read_columns(task_cfg: TaskConfig, source: Source, scales: Mapping[str, str]) -> _Columns:
    """Read the coefficients in `scales` from a source. Notes list missing values and coefficients that are not read."""
    values = np.zeros((source.trajectories, len(scales)), np.float32)
    mask = np.zeros_like(values)
    notes = []
    for column, (name, scale) in enumerate(scales.items()):
        coefficient = source.coefficient(name)
        available = np.zeros(source.trajectories, bool) if coefficient is None else ~np.isnan(coefficient)
        if coefficient is not None:
            _check_values(source.name, name, scale, coefficient)
            values[available, column] = coefficient[available]
            mask[available, column] = 1.0
        # A coefficient that only other tasks declare may be missing here.
        if not available.all() and name in task_cfg.coefficients:
            missing = int((~available).sum())
            which = f"{missing} of {len(available)} trajectories" if available.any() else "every trajectory"
            notes.append(
                f"{source.name}: coefficient {name} is missing for {which} and is masked out there; store it as "
                f"dataset `parameters/{name}`, as root attribute, or in the file name ({name}0.01)"
            )
    names = source.coefficient_names()
    declared = {match_name(source.name, name, names) for name in scales}
    for name in names:
        if name not in declared:
            notes.append(
                f"{source.name}: the file has a coefficient {name} that the model does not receive; if the equation "
                f"contains it, add data.tasks.{task_cfg.name}.coefficients={{{name}: linear}} (or log10)"
            )
    return _Columns(values=values, mask=mask, notes=tuple(notes))


def _coefficients_with_statistics(
    scales: Mapping[str, str], columns: Sequence[_Columns], train_ids: Sequence[Int[np.ndarray, " _"]]
) -> tuple[Coefficient, ...]:
    """Return the coefficients with their mean and standard deviation over the training trajectories of all tasks."""
    coefficients = []
    for column, (name, scale) in enumerate(scales.items()):
        values = [
            item.values[ids, column][item.mask[ids, column] > 0] for item, ids in zip(columns, train_ids, strict=True)
        ]
        mean, std = coefficient_mean_and_std(np.concatenate(values), scale)
        coefficients.append(Coefficient(name=name, scale=scale, mean=mean, std=std))
    return tuple(coefficients)


def _check_values(source_name: str, name: str, scale: str, values: Float[np.ndarray, " n"]) -> None:
    """Raise `DataError` if a value of a coefficient is not a number in the range of float32, or of its scale.

    Args:
        name: Name of the coefficient.
        scale: Its scale; `log10` requires positive values.
        values: Values of all trajectories, NaN where there is none.
    """
    limits = np.finfo(np.float32)
    magnitude = np.abs(values)
    # Models compute in float32.
    out_of_range = (magnitude > limits.max) | ((magnitude > 0) & (magnitude < limits.tiny))
    range_text = f"which is outside the range of float32 ({limits.tiny:.2g} to {limits.max:.2g})"
    for is_bad, before, after in (
        (np.isinf(values), "", "which is infinite; correct the file"),
        (out_of_range, "", f"{range_text}; give the coefficient in another unit"),
        ((values <= 0) & (scale == "log10"), "the scale log10, but ", "which is not positive; set its scale to linear"),
    ):
        if is_bad.any():
            trajectory = int(is_bad.argmax())
            raise DataError(
                f"{source_name}: coefficient {name} has {before}the value {values[trajectory]:.3g} in trajectory "
                f"{trajectory}, {after}"
            )
