"""A run on data of another resolution: exact where the field is resolved, and told which way it went."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import jax.numpy as jnp
import numpy as np
import pytest
from commands import CONFIGS

from ups_jax.config import Config, EvaluationConfig, load
from ups_jax.core.errors import DataError
from ups_jax.core.task import Statistics, Task
from ups_jax.data import open_dataset
from ups_jax.evaluation.evaluate import Predictor, evaluate_predictor
from ups_jax.inference.resolution import (
    FinerPredictor,
    grid_coordinates,
    interpolate_fields,
    predictor_for_grid,
    refines,
    split_mismatch_note,
)
from ups_jax.inference.trained_model import TrainedModel
from ups_jax.simulate import files, presets

SPEED, DT, STEPS = 0.3, 0.05, 5


def task_on(*shape: int, centred: bool = False, extent: float = 2.0) -> Task:
    spacing = tuple(extent / points for points in shape)
    axes = len(shape)
    return Task(
        name="waves", channels=("u",), axes=("x", "y")[:axes], shape=shape, spacing=spacing, periodic=(True,) * axes,
        origin=tuple(-1 + step / 2 * centred for step in spacing), dt=DT,
        statistics=Statistics(mean=(0.0,), std=(1.0,), delta_std=(1.0,)),
    )  # fmt: skip


def waves(task: Task, times: np.ndarray) -> np.ndarray:
    """Two trajectories `(2, t, *s, 1)` of low modes that move along the first axis."""
    x, *others = np.meshgrid(*grid_coordinates(task), indexing="ij")
    phase = np.pi * (x - SPEED * times.reshape(-1, *[1] * x.ndim)) + sum(2 * np.pi * y for y in others)
    return np.stack([np.sin(phase) + 0.3 * np.cos(3 * phase + k) for k in (0, 1)])[..., None].astype(np.float32)


class Shift(TrainedModel):
    """Moves a field on its grid by SPEED * DT a step, in Fourier space: exact for what the grid resolves."""

    task, config = None, None

    def __init__(self, task: Task, config: Config | None = None) -> None:
        vars(self).update(task=task, config=config)

    def on_grid_of(self, task):
        return Shift(task, self.config)

    def rollout_arrays(self, u0, steps, cond, cond_mask):
        assert u0.shape[2:-1] == self.task.shape
        k = 2 * np.pi * np.fft.fftfreq(u0.shape[2], self.task.spacing[0]).reshape(-1, *[1] * (u0.ndim - 3))
        spectrum = np.fft.fft(u0[:, -1], axis=1)
        times = DT * np.arange(1, steps + 1)
        frames = [np.fft.ifft(spectrum * np.exp(-1j * k * SPEED * t), axis=1).real for t in times]
        return np.stack(frames, 1).astype(np.float32)

    latent_rollout = rollout_arrays

    def reconstruct(self, fields, cond, cond_mask):
        return fields


def finer(trained: Task, task: Task) -> FinerPredictor:
    return FinerPredictor(Shift(trained), task)


@pytest.mark.parametrize(
    ("trained", "task"),
    [
        (task_on(16), task_on(32)),
        (task_on(16, 20), task_on(32, 40)),
        (task_on(16, centred=True), task_on(48, centred=True)),
    ],
)
def test_a_predictor_that_is_exact_on_its_grid_is_exact_on_twice_the_points(trained: Task, task: Task) -> None:
    predictor = finer(trained, task)
    assert isinstance(predictor, Predictor)
    fields = waves(task, DT * np.arange(STEPS + 1))
    trajectories = SimpleNamespace(
        fields=fields, cond=np.zeros((2, 0), np.float32), cond_mask=np.zeros((2, 0), np.float32),
        time=DT * np.arange(STEPS + 1), ids=np.arange(2),
    )  # fmt: skip
    evaluation = evaluate_predictor(
        predictor, trajectories, task, EvaluationConfig(bootstrap=5), context=1, seed=0,
        variants={"latent": predictor.latent_rollout},
    )  # fmt: skip
    for section in ("one_step", "rollout"):
        assert (
            evaluation.metrics[section]["nrmse"] < 5e-6 < 0.01 < evaluation.baselines["persistence"][section]["nrmse"]
        )
        assert evaluation.baselines["codec"][section]["nrmse"] < 5e-6
    assert evaluation.variants["latent"]["rollout"]["nrmse"] < 5e-6
    assert evaluation.examples[0].prediction.shape[1:-1] == task.shape


def test_what_the_trained_grid_cannot_hold_is_the_codecs_error() -> None:
    trained, task = task_on(16), task_on(32)
    x = grid_coordinates(task)[0]
    fields = (np.sin(np.pi * x) + 0.1 * np.sin(10 * np.pi * x)).astype(np.float32)[None, None, :, None]
    # Mode 10 of 16 points is seen as mode 6, of the other sign.
    alias = (np.sin(np.pi * x) - 0.1 * np.sin(6 * np.pi * x)).astype(np.float32)[None, None, :, None]
    none = np.zeros((1, 0), np.float32)
    np.testing.assert_allclose(finer(trained, task).reconstruct(fields, none, none), alias, atol=3e-6)


def test_the_given_frames_are_taken_at_the_trained_points() -> None:
    trained, task = task_on(16, 12), task_on(32, 24)
    noise = np.random.default_rng(0).normal(size=(2, 3, 32, 24, 1)).astype(np.float32)
    np.testing.assert_array_equal(interpolate_fields(jnp.asarray(noise), task, trained), noise[:, :, ::2, ::2])


def test_only_the_same_extent_on_a_multiple_of_the_points_refines() -> None:
    trained = task_on(16, 12)
    assert refines(task_on(32, 24), trained) and refines(task_on(48, 12), trained)
    assert refines(task_on(32, 24, centred=True), task_on(16, 12, centred=True))
    for other in (task_on(16, 12), task_on(24, 24), task_on(8, 6), task_on(32, 24, extent=4.0)):
        assert not refines(other, trained)
    assert not refines(replace(task_on(32, 24), origin=(1.0, -1.0)), trained)


def test_another_time_step_is_refused_on_a_finer_grid_as_well() -> None:
    trained, task = task_on(16), task_on(32)
    assert predictor_for_grid(Shift(trained), task)[1] == "restricted"
    with pytest.raises(DataError, match=r"0\.1.*0\.05"):
        predictor_for_grid(Shift(trained), replace(task, dt=0.1))


@pytest.mark.parametrize(("extent", "way"), [(2.0, "own"), (2.0005, "own"), (2.01, "native"), (4.0, "native")])
def test_as_many_points_are_the_trained_grid_only_with_its_spacing(extent: float, way: str) -> None:
    assert predictor_for_grid(Shift(task_on(16, 12)), task_on(16, 12, extent=extent))[1] == way


def store(root: Path, preset: str, count: int, seed: int = 0) -> Config:
    """Standing waves of random phase in the file of a preset of `burgers1d`, and its configuration."""
    chosen = replace(presets.get_preset("burgers1d", preset), trajectories=count)
    task = task_on(chosen.points)
    phase = 2 * np.pi * np.random.default_rng(seed).uniform(size=(count, 1, 1))
    fields = np.sin(np.pi * grid_coordinates(task)[0] + phase).repeat(chosen.steps + 1, 1)
    origin = files.Provenance(task="burgers1d", preset=preset, seed=0, trajectories=count)
    datasets = files.spectral_datasets(chosen, fields, np.full(count, 0.03))
    files.write_file(root / f"burgers1d_{preset}.hdf5", origin, datasets, "periodic")
    return load(CONFIGS / "tiny.yaml", [f"data.root={root}", f"data.tasks.0.preset={preset}"])


def test_finer_data_of_other_trajectories_than_the_runs_own_is_noticed(tmp_path: Path) -> None:
    cfg = store(tmp_path, "tiny", 20)
    run = Shift(task_on(64), replace(cfg, data=replace(cfg.data, root="elsewhere")))

    def rescale(preset: str, unit: float) -> None:
        with h5py.File(tmp_path / f"burgers1d_{preset}.hdf5", "a") as file:
            file["tensor"][:] = file["tensor"][:] * np.float32(unit)

    def note(count: int, seed: int, unit: float = 1.0) -> str | None:
        fine = store(tmp_path, "tiny_double", count, seed)
        rescale("tiny_double", unit)
        return split_mismatch_note(run, fine, open_dataset(fine, task_on(64)), "test")

    assert note(20, seed=0) is None
    for count, seed in ((30, 0), (20, 1)):
        assert "the run may have been trained on some" in note(count, seed)
    # Units in which the squares of the field leave the range of float32.
    for unit in (1e-30, 1e30):
        store(tmp_path, "tiny", 20)
        rescale("tiny", unit)
        assert note(20, 0, unit) is None and "may have been trained" in note(20, 1, unit)
    (tmp_path / "burgers1d_tiny.hdf5").unlink()
    assert "cannot be compared" in note(20, seed=0)
