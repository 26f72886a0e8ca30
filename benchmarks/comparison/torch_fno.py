"""The FNO of the `neuraloperator` package as shipped, trained the plain way: what a user of the package would do.

The normalised next frame or solution itself is the target, the loss its relative L2 error, AdamW with warm-up and
cosine; no parameter average, no loss on gradients, no conservation. Files, split, windows, augmentation,
normalisation and coefficients are the library's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from neuralop.models import FNO

from comparison.row import Row
from comparison.tasks import TASKS
from comparison.training import MEASURED_SECONDS, Trained
from ups_jax.config import Config
from ups_jax.core.task import Task
from ups_jax.data import Dataset, training_batches
from ups_jax.data.batch import Batch
from ups_jax.models.grid import cell_average, cell_centers, interpolate_to_grid
from ups_jax.rollout.steady import refinement_factors
from ups_jax.training.run_length import measure_seconds_per_step, steps_within

_WEIGHT_DECAY = 1e-4


def build_fno(task: Task, sizes: dict[str, int]) -> FNO:
    """The package's model with its defaults; `modes` counts wavenumbers from 0 up, as in `comparison.fno`."""
    return FNO(
        n_modes=(2 * sizes["modes"] - 1,) * len(task.shape),
        in_channels=len(task.inputs or task.channels) + len(task.coefficients),
        out_channels=len(task.channels),
        hidden_channels=sizes["width"],
        n_layers=sizes["depth"],
    )


def train(row: Row, sizes: dict[str, int], dataset: Dataset) -> Trained:
    """The package's FNO within the budget."""
    torch.set_num_threads(1)
    cfg, stage = row.config(), TASKS[row.task].stage
    settings = getattr(cfg.stages, stage)
    task = dataset.task
    pair = {"transient": _step_pair, "steady": _solution_pair}[task.kind]

    def fresh(total: int) -> tuple[FNO, Any]:
        torch.manual_seed(cfg.seed)
        model = build_fno(task, sizes)
        optimizer = torch.optim.AdamW(model.parameters(), lr=settings.optimizer.lr, weight_decay=_WEIGHT_DECAY)
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: _rate(n, total, settings.scheduler.warmup))

        def step(batch: Batch) -> None:
            inputs, target = pair(batch, task)
            pred = model(with_coefficients(inputs, batch.cond, batch.cond_mask, task))
            loss = _relative_l2(pred, target).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()

        return model, step

    begin = time.process_time()
    _, step = fresh(1000)
    with training_batches(dataset, cfg, stage) as batches:
        step(next(batches))
    first_step = time.process_time() - begin
    steps = row.steps or steps_within(row.budget, _seconds_per_step(step, dataset, cfg, stage))
    model, step = fresh(steps)
    with training_batches(dataset, cfg, stage) as batches:
        begin = time.process_time()
        for _ in range(steps):
            step(next(batches))
        cpu_seconds = time.process_time() - begin
    run = {"transient": TorchSimulator, "steady": TorchSolver}[task.kind]
    return Trained(
        run=run(model.eval(), task),
        parameters=sum(part.numel() * (2 if part.is_complex() else 1) for part in model.parameters()),
        steps=steps,
        cpu_seconds=cpu_seconds,
        compile_seconds=first_step,
    )


def _seconds_per_step(step: Callable[[Any], None], dataset: Dataset, cfg: Config, stage: str) -> float:
    with training_batches(dataset, cfg, stage) as batches:
        return measure_seconds_per_step(
            lambda state, batch: (state, step(batch)),
            None,
            batches,
            clock=time.process_time,
            max_seconds=MEASURED_SECONDS,
        )


def _step_pair(batch: Batch, task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    frames = _normalized(batch.fields, task)
    return frames[:, -2], frames[:, -1]


def _solution_pair(batch: Batch, task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    return _normalized_inputs(batch.inputs, task), _normalized(batch.fields, task)[:, 0]


@dataclass(frozen=True)
class TorchSimulator:
    """Rolls the model out in physical units, for `ups_jax.evaluation.evaluate`."""

    model: FNO
    task: Task

    def rollout_arrays(self, u0: np.ndarray, steps: int, cond: np.ndarray, cond_mask: np.ndarray) -> np.ndarray:
        """The `steps` frames after the context `u0`."""
        frame = _normalized(np.asarray(u0)[:, -1:], self.task)[:, 0]
        frames = []
        with torch.no_grad():
            for _ in range(steps):
                frame = self.model(with_coefficients(frame, cond, cond_mask, self.task))
                frames.append(frame.movedim(1, -1).numpy())
        mean, std = _moments(self.task)
        return np.stack(frames, axis=1) * std + mean

    def reconstruct(self, fields: np.ndarray, cond: np.ndarray, cond_mask: np.ndarray) -> np.ndarray:
        """There is no codec: the fields themselves."""
        return np.asarray(fields)


@dataclass(frozen=True)
class TorchSolver:
    """Solves in physical units; on a finer grid than that of `task` as `ups_jax.rollout.steady.solve` does."""

    model: FNO
    task: Task

    def on_grid_of(self, task: Task) -> TorchSolver:
        """Return a solver with this model that solves on the grid of `task` itself."""
        return TorchSolver(self.model, task)

    def rollout_arrays(self, inputs: np.ndarray, steps: int, cond: np.ndarray, cond_mask: np.ndarray) -> np.ndarray:
        """Return the solutions at the points of the given fields, at `steps` times."""
        return np.repeat(self._solutions(inputs, cond, cond_mask)[:, None], steps, axis=1)

    def _solutions(self, inputs: np.ndarray, cond: np.ndarray, cond_mask: np.ndarray) -> np.ndarray:
        factors = refinement_factors(self.task, inputs.shape[1:-1])
        coarse = np.asarray(cell_average(jnp.asarray(inputs), factors))
        with torch.no_grad():
            channels = with_coefficients(_normalized_inputs(coarse, self.task), cond, cond_mask, self.task)
            solution = self.model(channels).movedim(1, -1).numpy()
        mean, std = _moments(self.task)
        solution = solution * std + mean
        if set(factors) == {1}:
            return solution
        lines = cell_centers(self.task.shape, self.task.origin, self.task.spacing, factors)
        geometry = (self.task.origin, self.task.spacing, self.task.periodic)
        return np.asarray(interpolate_to_grid(jnp.asarray(solution), lines, *geometry))


def _normalized(fields: np.ndarray, task: Task) -> torch.Tensor:
    """Frames in model units, channels second to last as torch wants them: (b, t, c, *s)."""
    mean, std = _moments(task)
    values = (fields - mean) / std
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, 2)))


def _normalized_inputs(inputs: np.ndarray, task: Task) -> torch.Tensor:
    mean, std = (np.asarray([getattr(item, name) for item in task.inputs], np.float32) for name in ("mean", "std"))
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis((inputs - mean) / std, -1, 1), np.float32))


def _moments(task: Task) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(task.statistics.mean, np.float32), np.asarray(task.statistics.std, np.float32)


def with_coefficients(frame: torch.Tensor, cond: np.ndarray, mask: np.ndarray, task: Task) -> torch.Tensor:
    columns = [frame]
    for index, coefficient in enumerate(task.coefficients):
        values = np.log10(cond[:, index]) if coefficient.scale == "log10" else cond[:, index]
        values = np.where(mask[:, index] > 0, (values - coefficient.mean) / coefficient.std, 0.0).astype(np.float32)
        column = torch.from_numpy(values).reshape(-1, *(1,) * (frame.ndim - 1))
        columns.append(column.expand(-1, 1, *frame.shape[2:]))
    return torch.cat(columns, dim=1)


def _relative_l2(pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (pred - target).flatten(1).norm(dim=1) / target.flatten(1).norm(dim=1)


def _rate(step: int, total: int, warmup_share: float) -> float:
    warmup = round(warmup_share * total)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))
