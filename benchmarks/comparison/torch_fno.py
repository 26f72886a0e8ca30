"""The FNO of the `neuraloperator` package as shipped, trained the plain way: what a user of the package would do.

The normalised next frame itself is the target, the loss its relative L2 error, AdamW with warm-up and cosine; no
parameter average, no loss on gradients, no conservation. Files, split, windows, augmentation, normalisation and
coefficients are the library's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from neuralop.models import FNO

from comparison.row import Row
from comparison.training import Trained, planned, seconds_per_step
from ups_jax.data import Dataset, training_batches
from ups_jax.task import Task

_WEIGHT_DECAY = 1e-4


def build_fno(task: Task, sizes: dict[str, int]) -> FNO:
    """The package's model with its defaults; `modes` counts wavenumbers from 0 up, as in `comparison.fno`."""
    return FNO(
        n_modes=(2 * sizes["modes"] - 1,) * len(task.shape),
        in_channels=len(task.channels) + len(task.coefficients),
        out_channels=len(task.channels),
        hidden_channels=sizes["width"],
        n_layers=sizes["depth"],
    )


def train(row: Row, sizes: dict[str, int], dataset: Dataset) -> Trained:
    """The package's FNO within the budget."""
    torch.set_num_threads(1)
    cfg = row.config()
    stage = cfg.stages.operator
    task = dataset.task

    def fresh(total: int) -> tuple[FNO, Any]:
        torch.manual_seed(cfg.seed)
        model = build_fno(task, sizes)
        optimizer = torch.optim.AdamW(model.parameters(), lr=stage.optimizer.lr, weight_decay=_WEIGHT_DECAY)
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: _rate(n, total, stage.scheduler.warmup))

        def step(batch: dict[str, np.ndarray]) -> None:
            frames = _normalized(batch["fields"], task)
            pred = model(_with_coefficients(frames[:, -2], batch["cond"], batch["cond_mask"], task))
            loss = _relative_l2(pred, frames[:, -1]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()

        return model, step

    begin = time.process_time()
    _, step = fresh(1000)
    with training_batches(dataset, cfg, "operator") as batches:
        step(next(batches))
    first_step = time.process_time() - begin
    timed = training_batches(dataset, cfg, "operator")
    steps = row.steps or planned(row.budget, seconds_per_step(partial(_advance, step), timed))
    model, step = fresh(steps)
    with training_batches(dataset, cfg, "operator") as batches:
        begin = time.process_time()
        _advance(step, batches, steps)
        cpu_seconds = time.process_time() - begin
    return Trained(
        predictor=TorchPredictor(model.eval(), task),
        parameters=sum(part.numel() * (2 if part.is_complex() else 1) for part in model.parameters()),
        steps=steps,
        cpu_seconds=cpu_seconds,
        compile_seconds=first_step,
    )


def _advance(
    step: Callable[[dict[str, np.ndarray]], None], stream: Iterator[dict[str, np.ndarray]], steps: int
) -> None:
    for _ in range(steps):
        step(next(stream))


@dataclass(frozen=True)
class TorchPredictor:
    """Rolls the model out in physical units, for `ups_jax.evaluation.evaluate`."""

    model: FNO
    task: Task

    def rollout(self, u0: np.ndarray, steps: int, cond: np.ndarray, cond_mask: np.ndarray) -> np.ndarray:
        """The `steps` frames after the context `u0`."""
        frame = _normalized(np.asarray(u0)[:, -1:], self.task)[:, 0]
        frames = []
        with torch.no_grad():
            for _ in range(steps):
                frame = self.model(_with_coefficients(frame, cond, cond_mask, self.task))
                frames.append(frame.movedim(1, -1).numpy())
        mean, std = _moments(self.task)
        return np.stack(frames, axis=1) * std + mean

    def reconstruct(self, fields: np.ndarray, cond: np.ndarray, cond_mask: np.ndarray) -> np.ndarray:
        """There is no codec: the fields themselves."""
        return np.asarray(fields)


def _normalized(fields: np.ndarray, task: Task) -> torch.Tensor:
    """Frames in model units, channels second to last as torch wants them: (b, t, c, *s)."""
    mean, std = _moments(task)
    values = (fields - mean) / std
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, 2)))


def _moments(task: Task) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(task.statistics.mean, np.float32), np.asarray(task.statistics.std, np.float32)


def _with_coefficients(frame: torch.Tensor, cond: np.ndarray, mask: np.ndarray, task: Task) -> torch.Tensor:
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
