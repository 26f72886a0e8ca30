"""Metrics of ensembles: independent formulas in numpy, calibrated Gaussians, and what a wrong ensemble scores."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from ups_jax.metrics import ensemble as em
from ups_jax.metrics import field as metrics

# Compiled once a shape, as they are within an evaluation.
fair_crps = jax.jit(em.fair_crps)
empirical_crps = jax.jit(em.empirical_crps)
spread_skill = jax.jit(em.spread_skill)
coverage = jax.jit(em.coverage, static_argnums=2)
spectrum_error = jax.jit(metrics.spectrum_error)


@functools.lru_cache(maxsize=5)
def gaussians(members: int, points: int, *, spread: float = 1.0, bias: float = 0.0, seed: int = 0, channels: int = 1):
    """Members and truth around a common centre that moves by 5, so that only differences count."""
    rng = np.random.default_rng(seed)
    shape = (1, 2, points, channels)
    centre = 5 * rng.normal(size=shape)
    truth = centre + rng.normal(size=shape)
    drawn = centre + bias + spread * rng.normal(size=(members, *shape))
    return drawn.astype(np.float32), truth.astype(np.float32)


def crps_by_pairs(members: np.ndarray, truth: np.ndarray, *, fair: bool) -> np.ndarray:
    """Every pair by itself, in float64."""
    count = len(members)
    members, truth = members.astype(np.float64), truth.astype(np.float64)
    pairs = np.abs(members[:, None] - members[None]).sum((0, 1))
    weight = 2 * count * (count - 1) if fair else 2 * count**2
    score = np.abs(members - truth).mean(0) - (pairs / weight if weight else 0.0)
    return score.mean(tuple(range(2, truth.ndim)))


@settings(deadline=None, max_examples=15)
@given(st.sampled_from([1, 2, 3, 7]), st.integers(0, 1000), st.sampled_from([0.0, 300.0]))
def test_crps_is_the_sum_over_all_pairs(members: int, seed: int, offset: float) -> None:
    rng = np.random.default_rng(seed)
    drawn = (rng.normal(size=(members, 2, 2, 6, 2)) + offset).astype(np.float32)
    truth = (rng.normal(size=(2, 2, 6, 2)) + offset).astype(np.float32)
    fair, empirical = fair_crps(drawn, truth), empirical_crps(drawn, truth)
    np.testing.assert_allclose(fair, crps_by_pairs(drawn, truth, fair=True), atol=2e-5)
    np.testing.assert_allclose(empirical, crps_by_pairs(drawn, truth, fair=False), atol=2e-5)
    assert (np.asarray(empirical) >= np.asarray(fair) - 1e-6).all() and (np.asarray(empirical) >= -1e-6).all()


def test_crps_of_one_member_or_of_equal_ones_is_the_mean_absolute_error() -> None:
    drawn, truth = gaussians(1, 50)
    expected = np.abs(drawn[0] - truth).mean((2, 3))
    for crps in (fair_crps, empirical_crps):
        np.testing.assert_allclose(crps(drawn, truth), expected, rtol=1e-5)
        np.testing.assert_allclose(crps(np.repeat(drawn, 4, 0), truth), expected, rtol=1e-5)


@pytest.mark.parametrize("members", [2, 5, 20])
def test_fair_crps_of_calibrated_gaussians_is_the_closed_form_for_any_number_of_members(members: int) -> None:
    """E|X - Y| - E|X - X'| / 2 with both differences N(0, 2): 1 / sqrt(pi)."""
    drawn, truth = gaussians(members, 40_000)
    assert fair_crps(drawn, truth).mean() == pytest.approx(1 / np.sqrt(np.pi), abs=0.01)
    assert empirical_crps(drawn, truth).mean() == pytest.approx((1 + 1 / members) / np.sqrt(np.pi), abs=0.01)


def test_crps_prefers_the_truths_own_distribution() -> None:
    scores = {spread: float(fair_crps(*gaussians(20, 2_000, spread=spread)).mean()) for spread in (0.3, 1.0, 3.0)}
    assert min(scores, key=lambda spread: scores[spread]) == 1.0
    assert fair_crps(*gaussians(20, 2_000, bias=1.0)).mean() > scores[1.0] + 0.1


@pytest.mark.parametrize("members", [2, 4, 16])
@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0])
def test_spread_skill_is_one_for_a_calibrated_ensemble_of_any_size(members: int, spread: float) -> None:
    """In general sqrt((M+1)/M) s / sqrt(1 + s^2 / M), for members with s times the truth's deviation."""
    ratio = spread_skill(*gaussians(members, 30_000, spread=spread))
    expected = np.sqrt((members + 1) / members) * spread / np.sqrt(1 + spread**2 / members)
    assert ratio == pytest.approx(expected, rel=0.02)
    assert (expected == pytest.approx(1.0)) == (spread == 1.0)


def test_spread_skill_takes_channels_by_themselves() -> None:
    drawn, truth = gaussians(8, 20_000, channels=2)
    factors = np.array([1.0, 1e3], np.float32)
    assert spread_skill(drawn * factors, truth * factors) == pytest.approx(float(spread_skill(drawn, truth)), 1e-3)


@pytest.mark.parametrize("members", [2, 4, 5, 19, 32])
@pytest.mark.parametrize("level", [0.5, 0.9])
def test_coverage_of_a_calibrated_ensemble_of_any_size_is_the_level(members: int, level: float) -> None:
    drawn, truth = gaussians(members, 30_000, seed=members)
    assert coverage(drawn, truth, level).mean() == pytest.approx(level, abs=0.01)


@pytest.mark.parametrize(("members", "level"), [(19, 0.9), (3, 0.5), (7, 0.5), (24, 0.6)])
def test_coverage_counts_between_order_statistics_where_the_level_falls_on_them(members: int, level: float) -> None:
    drawn, truth = gaussians(members, 500, seed=3)
    ordered = np.sort(drawn, 0)
    rank = round((1 - level) / 2 * (members + 1))
    inside = (truth >= ordered[rank - 1]) & (truth <= ordered[members - rank])
    np.testing.assert_allclose(coverage(drawn, truth, level), inside.mean((2, 3)), atol=1e-6)
    assert 0 < inside.mean() < 1


def test_coverage_between_two_ranks_is_a_mixture_of_both_and_beyond_all_members_of_everything() -> None:
    drawn, truth = gaussians(4, 400, seed=4)
    rank = (drawn < truth).sum(0)
    between = {0: np.ones(truth.shape), 1: (rank > 0) & (rank < 4), 2: rank == 2}
    # h = 0.25 * 5 = 1.25 and 0.05 * 5 = 0.25.
    for level, low, weight in ((0.5, 1, 0.25), (0.9, 0, 0.25)):
        expected = (1 - weight) * between[low] + weight * between[low + 1]
        np.testing.assert_allclose(coverage(drawn, truth, level), expected.mean((2, 3)), atol=1e-6)
    apart = drawn + 100
    np.testing.assert_allclose(coverage(apart, truth, 0.9), 0.75, atol=1e-6)


def test_coverage_tells_too_sure_from_too_wide_and_no_member_hides_what_is_not_finite() -> None:
    narrow, wide = (float(coverage(*gaussians(20, 5_000, spread=spread), 0.9).mean()) for spread in (0.3, 3.0))
    assert narrow < 0.5 and wide > 0.99
    drawn, truth = gaussians(4, 10)
    drawn = drawn.copy()
    drawn[2, 0, 1, 3] = np.nan
    values = np.asarray(coverage(drawn, truth, 0.9))
    assert np.isfinite(values[0, 0]) and np.isnan(values[0, 1])


def test_order_of_members_does_not_matter() -> None:
    drawn, truth = gaussians(6, 30)
    one, other = (em.ensemble_table(members, truth, 0.1) for members in (drawn, drawn[::-1]))
    for name, values in one.items():
        np.testing.assert_allclose(values, other[name], rtol=1e-4, atol=1e-6)


def test_two_members_are_the_least_for_spread_and_coverage() -> None:
    drawn, truth = gaussians(1, 10)
    for call in (lambda: spread_skill(drawn, truth), lambda: coverage(drawn, truth, 0.5)):
        with pytest.raises(ValueError, match="1"):
            call()
    with pytest.raises((ValueError, TypeCheckError)):
        fair_crps(drawn, truth[:, :1])


def waves(phases: np.ndarray) -> np.ndarray:
    """One wave on 32 points, shifted by a phase that grows with time: `(b, t, x, 1)`."""
    x = 2 * np.pi * np.arange(32) / 32
    return np.sin(x[None, None] + phases[..., None])[..., None].astype(np.float32)


def test_decorrelation_time_is_the_mean_over_members_of_a_rollouts_own() -> None:
    steps = np.arange(1, 9)
    truth = waves(np.zeros((1, 8)))
    # Two waves of one phase correlate by the cosine of their difference: it is below 0.8 from 0.6435 on.
    drawn = np.stack([waves(speed * steps[None]) for speed in (0.1, 0.4)])
    times = [float(metrics.correlation_time(np.cos(speed * steps)[None], 0.5)[0]) for speed in (0.1, 0.4)]
    assert times[0] == pytest.approx(0.5 * 6.43, abs=0.02) and times[1] == pytest.approx(0.5 * 1.6, abs=0.1)
    assert em.decorrelation_time(drawn, truth, 0.5)[0] == pytest.approx(np.mean(times), rel=1e-4)


def test_the_summary_has_the_contracts_names_and_does_not_depend_on_chunks() -> None:
    rng = np.random.default_rng(1)
    drawn, truth = (rng.normal(size=shape).astype(np.float32) for shape in ((5, 4, 3, 20, 1), (4, 3, 20, 1)))
    whole = em.ensemble_summary(em.ensemble_table(drawn, truth, 0.1))
    assert list(whole) == ["crps", "spread_skill", "coverage_50", "coverage_90", "decorrelation_time"]
    parts = [em.ensemble_table(drawn[:, rows], truth[rows], 0.1) for rows in (slice(0, 1), slice(1, 4))]
    joined = em.ensemble_summary({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    assert joined == pytest.approx(whole, rel=1e-5)
    assert whole["spread_skill"] == pytest.approx(float(spread_skill(drawn, truth)), rel=1e-5)
    assert whole["crps"] == pytest.approx(float(fair_crps(drawn, truth).mean()), rel=1e-5)


def numpy_spectrum_errors(pred: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Of one frame `(x, y)`, shell by shell."""
    energies = []
    for field in (pred, truth):
        power = 0.5 * np.abs(np.fft.fft2(field) / field.size) ** 2
        waves = [np.fft.fftfreq(size) * size for size in field.shape]
        shell = np.rint(np.hypot(waves[0][:, None], waves[1][None])).astype(int)
        energies.append(np.array([power[shell == k].sum() for k in range(shell.max() + 1)]))
    ours, theirs = energies
    bands = {"low": slice(0, 4), "mid": slice(4, 12), "high": slice(12, None)}
    return {
        f"spectrum_error_{name}": np.abs(ours[band] - theirs[band]).sum() / theirs[band].sum()
        for name, band in bands.items()
    }


def test_spectrum_error_of_each_band_is_numpys() -> None:
    rng = np.random.default_rng(2)
    pred, truth = rng.normal(size=(2, 32, 40))
    errors = spectrum_error(*(field[None, None, ..., None].astype(np.float32) for field in (pred, truth)))
    assert {name: float(value[0, 0]) for name, value in errors.items()} == pytest.approx(
        numpy_spectrum_errors(pred, truth), rel=1e-4
    )


def test_spectrum_error_ignores_phases_and_sees_what_is_missing() -> None:
    x = 2 * np.pi * np.arange(64) / 64
    wave = {k: np.sin(k * x) for k in (2, 8, 20)}
    truth = sum(wave.values())[None, None, :, None].astype(np.float32)
    shifted = spectrum_error(np.roll(truth, 5, 2), truth)
    assert max(float(value[0, 0]) for value in shifted.values()) < 1e-5
    smooth = (wave[2] + 2 * wave[8])[None, None, :, None].astype(np.float32)
    errors = {name: float(value[0, 0]) for name, value in spectrum_error(smooth, truth).items()}
    assert errors == pytest.approx(
        {"spectrum_error_low": 0.0, "spectrum_error_mid": 3.0, "spectrum_error_high": 1.0}, abs=1e-4
    )
    coarse = spectrum_error(truth[:, :, ::4], truth[:, :, ::4])
    assert float(coarse["spectrum_error_high"][0, 0]) == 0.0
