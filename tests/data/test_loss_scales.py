"""The scales of a task are the means, over the training set, of the denominators that the loss terms have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import CONFIGS
from rich.console import Console

from ups_jax import losses
from ups_jax.config import load
from ups_jax.data import Dataset, as_mixture, batch_at, from_arrays, loss_scales
from ups_jax.losses.spectral import BANDS
from ups_jax.models import normalize
from ups_jax.runs.api import save
from ups_jax.runs.directory import RunDirectory
from ups_jax.trainer.preflight import preflight
from ups_jax.training.build import build, init_state

# A term of the prediction 0 under this floor is the root of denominator over floor.
FLOOR = 1e6


def dataset(normalize: str = "zscore", unit: float = 1.0, length: float = 1.0) -> Dataset:
    """Random fields of two channels with offsets, between walls along y."""
    fields = 3 + np.random.default_rng(2).normal(size=(12, 5, 8, 6, 2)) * (1.0, 4.0)
    task = "{name: any, channels: [a, b], periodic: [x], kind: transient, path: null}"
    cfg = load(CONFIGS / "tiny.yaml", [f"data.tasks=[{task}]", f"data.normalize={normalize}"])
    values = (fields * unit).astype(np.float32)
    return from_arrays(cfg, values, 0.1, None, (0.0, 0.0), (0.5 * length, 0.25 * length))


@pytest.mark.parametrize("normalisation", ["zscore", "rms", "none"])
def test_scales_are_the_mean_denominators_of_the_training_set(normalisation: str) -> None:
    data = dataset(normalisation)
    task, scales = data.task, data.task.loss_scales
    assert scales is not None
    frames = jnp.asarray(data.trajectories("train").fields.reshape(-1, 8, 6, 2))
    target = normalize(frames, task.statistics)
    zero, options = 0 * target, {"floor": FLOOR, "reduction": "none"}
    square = losses.relative_mse(zero, target, **options) * FLOOR
    np.testing.assert_allclose(scales.square, square.mean(), rtol=1e-4)
    gradient = losses.h1(zero, target, task.spacing, task.periodic, **options) ** 2 * FLOOR
    np.testing.assert_allclose(scales.gradient, gradient.mean(), rtol=1e-4)
    for energy, (first, last) in zip(scales.bands, list(BANDS.values())[:2], strict=False):
        band = losses.spectral_band(zero, target, first, last, **options) ** 2 * FLOOR
        np.testing.assert_allclose(energy, band.mean(), rtol=1e-4)
    # Together the bands have all the energy, by Parseval's theorem.
    np.testing.assert_allclose(sum(scales.bands), scales.square, rtol=1e-4)
    exact = np.asarray(frames, np.float64).reshape(-1, 2)
    statistics = task.statistics
    for values, expected in ((scales.mean, exact.mean(0) - statistics.mean), (scales.std, exact.std(0))):
        np.testing.assert_allclose(values, expected / statistics.std, rtol=1e-5, atol=1e-6)


def test_a_sample_of_one_frame_a_trajectory_has_frames_of_all_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scales, "_BYTES", 0)
    fields = np.random.default_rng(0).normal(size=(30, 10, 64)).astype(np.float32)
    # A state of rest, as before an impulse.
    fields[:, 0] = 0
    cfg = load(CONFIGS / "tiny.yaml", ["data.tasks=[{name: any, periodic: [x]}]"])
    scales = from_arrays(cfg, fields, 0.1, spacing=(1 / 64,)).task.loss_scales
    assert scales is not None
    # Of independent values with the deviation s, a difference has the mean square 2 s^2.
    np.testing.assert_allclose(scales.gradient, 2 * 64**2 * scales.square, rtol=0.3)


def test_scales_do_not_depend_on_units() -> None:
    reference, scaled = dataset().task.loss_scales, dataset(unit=1e20, length=1e-30).task.loss_scales
    assert reference is not None and scaled is not None
    for name in ("mean", "std", "square", "gradient", "bands"):
        np.testing.assert_allclose(getattr(scaled, name), getattr(reference, name), rtol=1e-5, atol=1e-9)


def test_a_resumed_run_keeps_the_scales_that_it_was_recorded_with(waves: Dataset, tmp_path: Path) -> None:
    cfg = load(CONFIGS / "tiny.yaml", ["operator.spectral.depth=1", "operator.spectral.hidden_dim=8"])
    former = replace(waves, task=replace(waves.task, loss_scales=None))
    model, tx = build(cfg, former)
    state = init_state(model, tx, batch_at(former, cfg, "operator", 0), jax.random.key(0))
    save(tmp_path / "run", state, cfg, former)
    for name, tasks in (("run", (former.task,)), ("other", (waves.task,))):
        checked = preflight(
            cfg, "operator", RunDirectory(tmp_path / name), data=as_mixture(waves), console=Console(quiet=True)
        )
        assert checked.data.tasks == checked.model.tasks == tasks
    assert waves.task.loss_scales is not None
