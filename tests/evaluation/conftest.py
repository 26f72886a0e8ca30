"""Evaluations of synthetic predictors in one and two dimensions: waves that the prediction lags behind."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from ups_jax.config import EvaluationConfig
from ups_jax.core.task import Coefficient, Statistics, Task
from ups_jax.evaluation.evaluate import evaluate_predictor


def advance(u0, steps, speed, damping):
    """Frames 1..steps of u_t + c u_x = nu u_xx in Fourier space, along the first axis of `(b, *s, c)`."""
    modes = np.fft.rfftfreq(u0.shape[1], 1 / u0.shape[1]).reshape(-1, *[1] * (u0.ndim - 2))
    transform = np.fft.rfft(u0, axis=1)
    frames = [transform * np.exp(-k * (2j * np.pi * speed * modes + damping * modes**2)) for k in range(1, steps + 1)]
    return np.stack([np.fft.irfft(frame, u0.shape[1], axis=1) for frame in frames], 1).astype(np.float32)


def synthetic_evaluation(shape, frames=9, count=4, channels=("u",), broken=False, name="toy<1>"):
    """Travelling random waves; the predictor is 3 % too slow and a little too damped."""
    dims = len(shape)
    ones = (1.0,) * len(channels)
    task = Task(
        name=name, channels=channels, axes=("x", "y", "z")[:dims], shape=shape, origin=(0.0,) * dims,
        spacing=tuple(1 / size for size in shape), periodic=(True,) * dims, dt=0.05,
        coefficients=(Coefficient(name="nu"),), statistics=Statistics(mean=ones, std=ones, delta_std=ones),
    )  # fmt: skip
    generator = np.random.default_rng(0)
    x = np.meshgrid(*[np.arange(size) / size for size in shape], indexing="ij")
    first = np.zeros((count, *shape, len(channels)), np.float32)
    for k in range(1, 6):
        for row in range(count):
            phase = generator.uniform(0, 2 * np.pi, len(channels))
            first[row] += np.sin(2 * np.pi * k * sum(x)[..., None] + phase) / k**1.5

    class Slow:
        def rollout_arrays(self, u0, steps, cond, cond_mask):
            pred = advance(u0[:, -1], steps, 0.0194, 0.0012)
            if broken:
                pred[cond[:, 0] < 0.011, -1] = np.nan
            return pred

        def reconstruct(self, fields, cond, cond_mask):
            return fields * np.float32(0.999)

    trajectories = SimpleNamespace(
        fields=np.concatenate([first[:, None], advance(first, frames - 1, 0.02, 0.001)], 1),
        cond=np.linspace(0.01, 0.1, count, dtype=np.float32)[:, None],
        cond_mask=np.ones((count, 1), np.float32),
        time=0.05 * np.arange(frames),
        ids=np.arange(40, 40 + count),
    )
    predictor, config = Slow(), EvaluationConfig(batch_size=4, bootstrap=20)
    variants = {"latent": lambda *arguments: 1.01 * predictor.rollout_arrays(*arguments)}
    return evaluate_predictor(predictor, trajectories, task, config, context=1, seed=0, variants=variants)


def training_records(steps=400):
    """Lines of a metrics file: a falling noisy loss, a cosine rate, a validation every 50 steps."""
    generator = np.random.default_rng(0)
    records = []
    for step in range(10, steps + 1, 5):
        record = {"stage": "operator", "step": step, "epoch": step / 100, "lr": 1e-3 * np.cos(step / steps * 1.5)}
        record["loss"] = float(np.exp(-step / 120 + 0.3 * generator.normal()) + 0.01)
        if step % 50 == 0:
            record |= {"validation/one_step": 0.2 * np.exp(-step / 150), "validation/rollout": np.exp(-step / 150)}
        records.append(record)
    return records


@pytest.fixture(scope="session")
def evaluation_1d():
    return synthetic_evaluation((32,))


@pytest.fixture(scope="session")
def evaluation_2d():
    return synthetic_evaluation((16, 12), frames=3, count=3, channels=("u", "v/w"))


@pytest.fixture(scope="session")
def broken_evaluation():
    return synthetic_evaluation((32,), broken=True)


@pytest.fixture
def records():
    return training_records()
