"""Metrics of fields: closed forms of sines, Parseval, invariances, degenerate targets."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from ups_jax.core.task import Statistics, Task
from ups_jax.metrics import field as metrics

CONTRACT = [
    "nrmse", "rmse", "max_error", "vrmse", "conservation_rmse", "boundary_rmse",
    "fourier_rmse_low", "fourier_rmse_mid", "fourier_rmse_high",
]  # fmt: skip


def task_of(shape=(32,), channels=1, conserved=(), std=1.0) -> Task:
    dims, zeros, stds = len(shape), (0.0,) * channels, (std,) * channels
    return Task(
        name="toy", channels=tuple("uvw"[:channels]), axes=tuple("xyz"[:dims]), shape=shape, origin=(0.0,) * dims,
        spacing=(1.0,) * dims, periodic=(True,) * dims, dt=0.1, conserved=conserved,
        statistics=Statistics(mean=zeros, std=stds, delta_std=stds),
    )  # fmt: skip


def wave(k: int, size: int = 64, amplitude: float = 1.0) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * k * np.arange(size) / size))[None, None, :, None].astype(np.float32)


def random_pair(shape, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.normal(size=shape).astype(np.float32) for _ in range(2)]


def test_scaled_sine_has_the_closed_form_errors():
    target, pred = wave(3), wave(3, amplitude=1.1)
    assert metrics.nrmse(pred, target)[0, 0] == pytest.approx(0.1, rel=1e-5)
    assert metrics.rmse(pred, target)[0, 0] == pytest.approx(0.1 / np.sqrt(2), rel=1e-5)
    assert metrics.vrmse(pred, target, 1.0)[0, 0] == pytest.approx(0.1 * np.sqrt(63 / 64), rel=1e-5)
    assert metrics.correlation(pred, target)[0, 0] == pytest.approx(1.0, rel=1e-5)


def test_vrmse_ignores_the_targets_mean_and_nrmse_does_not():
    target, pred = wave(3), wave(3, amplitude=1.1)
    assert metrics.vrmse(pred + 5, target + 5)[0, 0] == pytest.approx(0.1 * np.sqrt(63 / 64), rel=1e-4)
    assert metrics.nrmse(pred + 5, target + 5)[0, 0] == pytest.approx(0.1 / np.sqrt(2) / np.sqrt(25.5), rel=1e-4)


def test_the_spatial_mean_scores_a_vrmse_of_almost_one():
    _, target = random_pair((2, 3, 40, 2))
    pred = np.broadcast_to(target.mean(2, keepdims=True), target.shape)
    np.testing.assert_allclose(metrics.vrmse(pred, target), np.sqrt(39 / 40), rtol=1e-5)


@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_vrmse_is_that_of_the_well(size):
    """sqrt(mse / (var + 1e-7)) per channel, with the variance over n - 1 points, for a training deviation of 1."""
    pred, target = (size * field for field in random_pair((2, 3, 8, 9, 2)))
    mse, variance = np.square(pred - target).mean((2, 3)), target.var((2, 3), ddof=1)
    expected = np.sqrt(mse / (variance + 1e-7)).mean(-1)
    np.testing.assert_allclose(metrics.vrmse(pred, target, 1.0), expected, rtol=1e-5)
    # In another unit, the training deviation has it too, and the epsilon follows.
    np.testing.assert_allclose(metrics.vrmse(100 * pred, 100 * target, 100.0), expected, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_relative_metrics_do_not_depend_on_units(scale):
    pred, target = random_pair((2, 3, 16, 16, 2))
    factors = np.array([1.0, scale], np.float32)
    for metric in (metrics.nrmse, metrics.vrmse, metrics.correlation):
        np.testing.assert_allclose(metric(pred * factors, target * factors), metric(pred, target), rtol=1e-4, atol=1e-6)


def test_correlation_is_a_numpy_corrcoef_and_zero_for_a_constant():
    pred, target = random_pair((1, 2, 30, 1))
    expected = [np.corrcoef(pred[0, t, :, 0], target[0, t, :, 0])[0, 1] for t in range(2)]
    np.testing.assert_allclose(metrics.correlation(pred, target)[0], expected, atol=1e-5)
    assert metrics.correlation(np.ones_like(pred), target)[0, 0] == 0.0


@pytest.mark.parametrize(
    ("correlations", "time"),
    [
        ([0.95, 0.9, 0.85, 0.8], 8.0),  # never below: the whole horizon of four frames, 2 apart
        ([0.9, 0.7, 0.9, 0.1], 3.0),  # half-way between the first two frames, and what comes later does not matter
        ([0.6, 0.9, 0.9, 0.9], 1.0),  # from 1 at the given frame down to 0.6: half-way as well
        ([1.0, 1.0, -1.0, -1.0], 4.2),
        ([0.9, 0.9, np.nan, np.nan], 4.0),  # blown up after the second frame
        ([np.nan, np.nan, np.nan, np.nan], 0.0),
    ],
)
def test_correlation_time_is_where_the_line_between_frames_falls_below(correlations, time):
    values = np.array([correlations, [1.0] * 4], np.float32)
    np.testing.assert_allclose(metrics.correlation_time(values, 2.0), [time, 8.0], rtol=1e-5)


def test_waves_of_two_speeds_decorrelate_when_their_phases_are_far_enough_apart():
    x, times = np.arange(64) / 64, 0.01 * np.arange(1, 101)
    truth, pred = (np.sin(2 * np.pi * (x - speed * times[:, None]))[None, ..., None] for speed in (1.0, 1.5))
    # Their correlation is cos(2 pi 0.5 t).
    time = metrics.correlation_time(metrics.correlation(pred, truth), 0.01)
    np.testing.assert_allclose(time, np.arccos(0.8) / np.pi, rtol=1e-3)


@pytest.mark.parametrize("kind", ["nrmse", "vrmse"])
def test_a_zero_target_gives_a_large_finite_number_and_zero_for_an_exact_prediction(kind):
    metric, zero = getattr(metrics, kind), np.zeros((1, 1, 8, 1), np.float32)
    assert metric(zero, zero)[0, 0] == 0.0
    floor = {"nrmse": metrics.RELATIVE_FLOOR, "vrmse": np.sqrt(metrics.VARIANCE_EPSILON)}[kind]
    assert metric(zero + 1, zero, 0.5)[0, 0] == pytest.approx(2.0 / floor)
    assert np.isfinite(metric(zero + 1, zero)[0, 0])


def test_all_metrics_takes_its_floor_from_the_task():
    zero = np.zeros((1, 1, 32, 1), np.float32)
    values = metrics.all_metrics(zero + 1, zero, task_of(std=100.0))
    assert values["nrmse"][0, 0] == pytest.approx(1 / (100 * metrics.RELATIVE_FLOOR), rel=1e-5)


@pytest.mark.parametrize(("k", "band"), [(0, "low"), (3, "low"), (4, "mid"), (11, "mid"), (12, "high"), (31, "high")])
def test_an_error_of_one_wavenumber_is_in_its_band_alone(k, band):
    error = wave(k) if k else np.full((1, 1, 64, 1), 0.5, np.float32)
    values = metrics.fourier_rmse(wave(2) + error, wave(2))
    size = float(metrics.rmse(error, 0 * error)[0, 0])
    for name in ("low", "mid", "high"):
        assert values[f"fourier_rmse_{name}"][0, 0] == pytest.approx(size if name == band else 0.0, abs=2e-6)


def pdebench_fourier_rmse(error: np.ndarray, length: float) -> dict[str, float]:
    """PDEBench's fRMSE of one sample on one axis: the mean over a band of |F_k| / N times the length of the domain."""
    size = len(error)
    shells = np.abs(np.fft.fft(error))[: size // 2] / size * length
    return {"low": shells[:4].mean(), "mid": shells[4:12].mean(), "high": shells[12:].mean()}


@pytest.mark.parametrize(
    ("band", "wavenumbers"), [("low", range(1, 4)), ("mid", range(4, 12)), ("high", range(12, 32))]
)
def test_fourier_rmse_differs_from_pdebench_by_the_stated_sum(band, wavenumbers):
    """With equal amplitudes, the root of a sum over +k and -k is sqrt(2 m) times the mean over the m wavenumbers."""
    length, count = 3.0, len(wavenumbers)
    error = sum(wave(k) for k in wavenumbers)
    ours = metrics.fourier_rmse(wave(2) + error, wave(2))
    theirs = pdebench_fourier_rmse(error[0, 0, :, 0], length)
    # PDEBench's low band has wavenumber 0 as well, which is 0 here.
    theirs["low"] *= 4 / 3
    assert ours[f"fourier_rmse_{band}"][0, 0] == pytest.approx(np.sqrt(2 * count) * theirs[band] / length, rel=1e-4)
    others = {"low", "mid", "high"} - {band}
    for name in others:
        assert ours[f"fourier_rmse_{name}"][0, 0] < 1e-5 and theirs[name] < 1e-5


def test_a_band_of_round_off_is_measured_against_the_total_energy():
    target = wave(2) + 1e-7 * wave(20)
    errors = metrics.spectrum_error(target + 1e-3 * wave(20), target, 1.0)
    # Energy 1e-6 / 4 of the error over the floor of 1e-6 / 4.
    assert errors["spectrum_error_high"][0, 0] == pytest.approx(1.0, rel=1e-3)
    # The mean of the field is no energy of its waves.
    with_offset = metrics.spectrum_error(target + 300 + 1e-1 * wave(20), target + 300, 1.0)
    assert with_offset["spectrum_error_high"][0, 0] == pytest.approx(1e4, rel=0.2)


def test_channels_of_the_spectrum_error_have_equal_weight():
    pred, target = random_pair((1, 2, 32, 2))
    both = metrics.spectrum_error(pred, target, (1.0, 1.0))
    single = [metrics.spectrum_error(pred[..., [c]], target[..., [c]], 1.0) for c in range(2)]
    for name, values in both.items():
        np.testing.assert_allclose(values, np.mean([item[name] for item in single], 0), rtol=1e-5)


def test_nrmse_by_channel_averages_to_nrmse():
    pred, target = random_pair((2, 3, 16, 2))
    by_channel = metrics.channel_nrmse(pred, target)
    expected = np.sqrt(np.square(pred - target).mean(2)) / np.sqrt(np.square(target).mean(2))
    np.testing.assert_allclose(by_channel, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics.nrmse(pred, target), expected.mean(-1), rtol=1e-5)


@pytest.mark.parametrize("shape", [(64,), (31, 30), (8, 10, 9)])
def test_bands_and_spectrum_obey_parseval(shape):
    pred, target = random_pair((2, 2, *shape, 2))
    bands = metrics.fourier_rmse(pred, target)
    total = sum(jnp.square(band) for band in bands.values())
    np.testing.assert_allclose(total, jnp.square(metrics.rmse(pred, target)), rtol=1e-4)
    energy = 0.5 * np.square(target).sum(-1).mean(tuple(range(2, 2 + len(shape))))
    np.testing.assert_allclose(metrics.energy_spectrum(target).sum(-1), energy, rtol=1e-4)


def test_an_oblique_wave_lies_in_the_shell_of_its_radius():
    x, y = np.meshgrid(np.arange(32) / 32, np.arange(32) / 32, indexing="ij")
    field = np.cos(2 * np.pi * (3 * x + 4 * y)).astype(np.float32)[None, None, ..., None]
    spectrum = np.asarray(metrics.energy_spectrum(field))[0, 0]
    assert spectrum[5] == pytest.approx(0.25, rel=1e-4)
    assert np.delete(spectrum, 5).max() < 1e-9


def test_conservation_sees_a_drift_of_the_conserved_channel_only():
    pred, target = random_pair((2, 3, 16, 2))
    pred = target + (pred - pred.mean(2, keepdims=True)) + np.array([0.25, 7.0], np.float32)
    np.testing.assert_allclose(metrics.conservation_rmse(pred, target, (0,)), 0.25, rtol=1e-4)
    np.testing.assert_allclose(metrics.conservation_rmse(pred, target), np.sqrt((0.25**2 + 49) / 2), rtol=1e-4)


def test_boundary_error_is_of_the_outermost_points_of_every_axis():
    target = np.zeros((1, 1, 6, 5, 1), np.float32)
    pred = target.copy()
    pred[0, 0, 1:-1, 1:-1] = 9.0
    assert metrics.boundary_rmse(pred, target)[0, 0] == 0.0
    for point, count in (((0, 2), 1), ((5, 2), 1), ((3, 0), 1), ((3, 4), 1), ((5, 4), 2)):
        pred = target.copy()
        pred[0, 0, *point] = 2.0
        assert metrics.boundary_rmse(pred, target)[0, 0] == pytest.approx(np.sqrt(4.0 * count / 22))


@pytest.mark.parametrize("shape", [(16,), (8, 6)])
def test_all_metrics_has_the_contracts_keys_per_trajectory_and_time(shape):
    pred, target = random_pair((3, 4, *shape, 2))
    values = metrics.all_metrics(pred, target, task_of(shape, 2, conserved=(1,)))
    assert list(values) == CONTRACT
    assert {value.shape for value in values.values()} == {(3, 4)}
    np.testing.assert_allclose(values["max_error"], np.abs(pred - target).reshape(3, 4, -1).max(-1), rtol=1e-6)
    np.testing.assert_allclose(
        values["conservation_rmse"], metrics.conservation_rmse(pred, target, (1,)), rtol=1e-5, atol=1e-7
    )
    exact = metrics.all_metrics(target, target, task_of(shape, 2))
    assert all(np.all(np.asarray(value) == 0) for value in exact.values())


def test_summary_is_the_mean_and_for_max_error_the_maximum():
    table = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert metrics.summary({"rmse": table, "max_error": table}) == {"rmse": 2.5, "max_error": 5.0}
    table[0, 0] = np.nan
    assert all(np.isnan(value) for value in metrics.summary({"rmse": table, "max_error": table}).values())


def test_shapes_that_would_broadcast_are_refused():
    # The shape annotations, checked in tests alone, catch it before the function's own check does.
    with pytest.raises((ValueError, TypeCheckError)):
        metrics.rmse(np.zeros((2, 1, 8, 1), np.float32), np.zeros((2, 3, 8, 1), np.float32))
