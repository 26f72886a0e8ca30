"""Metrics in any unit: a factor of 10^k in fields, lengths of time and scales changes no relative number."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
import pytest

from ups_jax import metrics
from ups_jax.core.task import Statistics, Task

POWERS = range(-30, 31)
# Inputs are rounded to float32 after the multiplication, so equal numbers differ by some of its round-off.
RTOL = 1e-5
SCALE = np.array([1.0, 2.0], np.float32)


def correlated_fields() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prediction, truth and five members in float64, on 32 points; every band of wavenumbers has energy."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(2, 3, 32, 2)) + 0.5
    pred, members = truth + 0.3 * rng.normal(size=truth.shape), truth + 0.3 * rng.normal(size=(5, *truth.shape))
    return pred, truth, members


PRED, TRUTH, MEMBERS = correlated_fields()
MASK = np.repeat([[1.0] * 20 + [0.0] * 12], 2, 0).astype(np.float32)


def in_unit(values: np.ndarray, factor: np.ndarray | float) -> np.ndarray:
    return (values * factor).astype(np.float32)


def assert_unit_free(function: Callable[..., dict], factors: Callable[[float], np.ndarray], absolute: bool) -> None:
    """Compare a function of (pred, truth, members, scale) in the unit 10^k with itself in the unit 1."""
    compiled = jax.jit(function)

    def values(power: int) -> dict[str, np.ndarray]:
        factor = factors(10.0**power)
        result = compiled(*(in_unit(field, factor) for field in (PRED, TRUTH, MEMBERS, SCALE)))
        unit = 10.0**power if absolute else 1.0
        return {name: np.asarray(value, np.float64) / unit for name, value in result.items()}

    expected = values(0)
    assert all(np.isfinite(value).all() for value in expected.values())
    assert any(np.abs(value).min() > 1e-3 for value in expected.values())
    for power in POWERS:
        for name, value in values(power).items():
            np.testing.assert_allclose(value, expected[name], rtol=RTOL, err_msg=f"{name} in a unit of 1e{power}")


RELATIVE: dict[str, Callable[..., dict]] = {
    "nrmse": lambda p, t, m, s: {"": metrics.nrmse(p, t, s), "own": metrics.nrmse(p, t)},
    "nrmse of points": lambda p, t, m, s: {"": metrics.nrmse(p, t, s, MASK), "own": metrics.nrmse(p, t, None, MASK)},
    "channel_nrmse": lambda p, t, m, s: {"": metrics.channel_nrmse(p, t, s)},
    "vrmse": lambda p, t, m, s: {"": metrics.vrmse(p, t, s), "own": metrics.vrmse(p, t)},
    "vrmse of points": lambda p, t, m, s: {"": metrics.vrmse(p, t, s, MASK), "own": metrics.vrmse(p, t, None, MASK)},
    "correlation": lambda p, t, m, s: {"": metrics.correlation(p, t), "points": metrics.correlation(p, t, MASK)},
    "spectrum_error": lambda p, t, m, s: metrics.spectrum_error(p, t, s),
    "spectrum_error, own scale": lambda p, t, m, s: metrics.spectrum_error(p, t),
    "spread_skill": lambda p, t, m, s: {"": metrics.spread_skill(m, t)},
    "coverage": lambda p, t, m, s: {"50": metrics.coverage(m, t, 0.5), "90": metrics.coverage(m, t, 0.9)},
    "decorrelation_time": lambda p, t, m, s: {"": metrics.decorrelation_time(m, t, 0.1, 0.97)},
    # Divided by the size of the fields, as an evaluation does, because float32 cannot represent its squares.
    "energy_spectrum": lambda p, t, m, s: {"": metrics.energy_spectrum(t / s.reshape(1, 1, 1, 2))},
}  # fmt: skip
ABSOLUTE: dict[str, Callable[..., dict]] = {
    "rmse": lambda p, t, m, s: {"": metrics.rmse(p, t), "points": metrics.rmse(p, t, MASK)},
    "mae": lambda p, t, m, s: {"": metrics.mae(p, t), "points": metrics.mae(p, t, MASK)},
    "max_error": lambda p, t, m, s: {"": metrics.max_error(p, t), "points": metrics.max_error(p, t, MASK)},
    "conservation_rmse": lambda p, t, m, s: {"": metrics.conservation_rmse(p, t)},
    "conservation_rmse of v": lambda p, t, m, s: {"": metrics.conservation_rmse(p, t, (1,))},
    "boundary_rmse": lambda p, t, m, s: {"": metrics.boundary_rmse(p, t)},
    "fourier_rmse": lambda p, t, m, s: metrics.fourier_rmse(p, t),
    "fair_crps": lambda p, t, m, s: {"": metrics.fair_crps(m, t)},
    "empirical_crps": lambda p, t, m, s: {"": metrics.empirical_crps(m, t)},
    "spread_and_skill": lambda p, t, m, s: dict(zip("ab", metrics.spread_and_skill(m, t), strict=True)),
}  # fmt: skip
# Of tables of numbers without a unit, or tested below.
OTHERS = {"all_metrics", "rollout_metrics", "summary", "correlation_time", "ensemble_table", "ensemble_summary"}


def test_every_function_of_the_package_is_tested_here():
    names = {name.partition(" of ")[0].partition(",")[0] for name in (*RELATIVE, *ABSOLUTE)} | OTHERS
    assert names == {name for name in metrics.__all__ if not name.isupper()}


@pytest.mark.parametrize("name", RELATIVE)
def test_relative_metrics_do_not_depend_on_the_unit(name):
    assert_unit_free(RELATIVE[name], lambda unit: np.full(2, unit), absolute=False)


@pytest.mark.parametrize("name", RELATIVE)
def test_relative_metrics_do_not_depend_on_the_unit_of_one_channel(name):
    assert_unit_free(RELATIVE[name], lambda unit: np.array([unit, 1.0]), absolute=False)


@pytest.mark.parametrize("name", ABSOLUTE)
def test_absolute_metrics_have_the_unit_of_the_fields(name):
    assert_unit_free(ABSOLUTE[name], lambda unit: np.full(2, unit), absolute=True)


@pytest.mark.parametrize("power", POWERS[::5])
def test_correlation_times_have_the_unit_of_the_time_step(power):
    correlations = np.array([[0.99, 0.9, 0.3], [0.7, 0.6, 0.5]], np.float32)
    expected = np.asarray(metrics.correlation_time(correlations, 1.0), np.float64)
    np.testing.assert_allclose(metrics.correlation_time(correlations, 10.0**power) / 10.0**power, expected, rtol=RTOL)


@pytest.mark.parametrize("power", [-30, -9, 20, 30])
def test_the_tables_of_an_evaluation_have_the_stated_units(power):
    """The tables take scale and time step from the task, and `UNITS` says how each entry changes."""

    def summaries(unit: float) -> dict[str, float]:
        statistics = Statistics(mean=(0.0,) * 2, std=(unit,) * 2, delta_std=(unit,) * 2)
        task = Task(
            name="toy", channels=("u", "v"), axes=("x",), shape=(32,), origin=(0.0,), spacing=(1.0,), periodic=(True,),
            dt=unit, statistics=statistics,
        )  # fmt: skip
        pred, truth, members = (in_unit(field, unit) for field in (PRED, TRUTH, MEMBERS))
        further = dict(metrics.rollout_metrics(pred, truth, task))
        further["nrmse_by_channel"] = further.pop("channel_nrmse")
        further["correlation_time"] = metrics.correlation_time(further.pop("correlation"), task.dt, 0.97)
        table = metrics.ensemble_table(members, truth, task.dt)
        values = metrics.summary(metrics.all_metrics(pred, truth, task) | further) | metrics.ensemble_summary(table)
        factors = {"1": 1.0, "field": unit, "time": unit}
        return {name: value / factors[metrics.UNITS[name]] for name, value in values.items()}

    expected = summaries(1.0)
    assert all(np.isfinite(list(expected.values()))) and expected["spread_skill"] > 0.1
    assert summaries(10.0**power) == pytest.approx(expected, rel=RTOL)


@pytest.mark.parametrize("offset", [300.0, 101325.0])
def test_an_offset_does_not_hide_the_waves(offset):
    """Tolerance: the fields are rounded to float32, of which 101325 leaves three digits of a deviation of 1."""
    rng = np.random.default_rng(1)
    truth = rng.normal(size=(1, 2, 2000, 1))
    pred = truth + 0.5 * rng.normal(size=truth.shape)
    shifted = [(field + offset).astype(np.float32) for field in (pred, truth)]
    plain = [field.astype(np.float32) for field in (pred, truth)]
    for metric in (metrics.vrmse, metrics.correlation):
        np.testing.assert_allclose(metric(*shifted), metric(*plain), rtol=1e-3)
    members = np.stack([pred, truth - 0.5 * rng.normal(size=truth.shape)])
    ratio, expected = (
        float(metrics.spread_skill((members + value).astype(np.float32), (truth + value).astype(np.float32)))
        for value in (offset, 0.0)
    )
    assert ratio == pytest.approx(expected, rel=1e-3)


def test_a_decayed_field_is_correlated_with_itself():
    decay = 10.0 ** -np.arange(0, 36, 5.0)
    field = (decay[None, :, None, None] * TRUTH[:1, :1]).astype(np.float32)
    np.testing.assert_allclose(metrics.correlation(field, field), 1.0, rtol=1e-5)


def test_a_constant_field_has_no_correlation():
    constant = np.full_like(TRUTH, 0.1, np.float32)
    assert np.all(np.asarray(metrics.correlation(constant, TRUTH.astype(np.float32))) == 0.0)


def test_an_ensemble_without_error_or_spread_has_a_finite_ratio():
    truth = TRUTH.astype(np.float32)
    symmetric = np.stack([truth + 1, truth - 1])
    for members, expected in ((symmetric, 1e6), (np.stack([truth, truth]), 0.0)):
        assert metrics.spread_skill(members, truth) == pytest.approx(expected, rel=1e-3)
        assert metrics.ensemble_summary(metrics.ensemble_table(members, truth, 1.0))["spread_skill"] == pytest.approx(
            expected, rel=1e-3
        )
