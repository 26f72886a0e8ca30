"""A trained run of a steady task: physical given fields in, physical solutions out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ups_jax.config import Config
from ups_jax.errors import DataError
from ups_jax.evaluation.coefficients import coefficient_arrays, conditions
from ups_jax.models import SteadySimulator
from ups_jax.steady import refinement, solve
from ups_jax.task import Task
from ups_jax.training.build import build_model
from ups_jax.training.weights import Weights


@dataclass(frozen=True)
class SteadyRun:
    """Model, averaged parameters and task of a run's best checkpoint. Functions are compiled once a shape."""

    path: Path
    stage: str
    trained: Weights

    @property
    def config(self) -> Config:
        return self.trained.config

    @property
    def task(self) -> Task:
        """The task on the grid that was trained on."""
        return self.trained.task

    @property
    def weights(self) -> Any:
        return self.trained.params

    @property
    def step(self) -> int:
        return self.trained.step

    @property
    def fingerprint(self) -> str:
        """That of the data that it was trained on."""
        return self.trained.fingerprint

    @property
    def digest(self) -> str:
        """That of the checkpoint's files."""
        return self.trained.digest

    def solve(
        self,
        inputs: Float[np.ndarray, "b *grid i"],
        params: Mapping[str, float | np.floating | Float[np.ndarray, " b"]] | None = None,
    ) -> Float[np.ndarray, "b *grid c"]:
        """The solutions for given fields `(b, *grid, inputs)`, in physical units, at the points of the given fields.

        The grid is the trained one, or cuts its cells into whole parts. `params` gives PDE coefficients by name, one
        for all or one a sample; one that is left out counts as its training mean, with a warning. DataError where
        shapes or names are not the run's.
        """
        fields = np.asarray(inputs, np.float32)
        names = [item.name for item in self.task.inputs]
        if fields.ndim != len(self.task.shape) + 2 or fields.shape[-1] != len(names):
            raise DataError(
                f"inputs have shape {np.shape(inputs)}; this run takes (samples, {', '.join(self.task.axes)}, "
                f"{len(names)}), the last axis being {', '.join(names)}"
            )
        refinement(self.task, fields.shape[1:-1])
        if not np.isfinite(fields).all():
            raise DataError("inputs hold NaN or Inf")
        return self.solve_arrays(fields, *coefficient_arrays(self.task, params or {}, len(fields)))

    def solve_arrays(
        self,
        inputs: Float[np.ndarray, "b *grid i"],
        cond: Float[np.ndarray, "b p"],
        cond_mask: Float[np.ndarray, "b p"],
    ) -> Float[np.ndarray, "b *grid c"]:
        """The same with coefficients as arrays, as the evaluation wants it."""
        return np.asarray(self._compiled(self.weights, jnp.asarray(inputs), conditions(self.task, cond, cond_mask)))

    @cached_property
    def model(self) -> SteadySimulator:
        return build_model(self.config, self.task, self.stage)

    @cached_property
    def _compiled(self) -> Any:
        return jax.jit(partial(solve, self.model))
