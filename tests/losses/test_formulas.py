"""Every loss against the same formula in numpy: a value a sample, its derivative, masks and reductions."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ups_jax import losses

SPACING, PERIODIC = (0.3, 0.7), (True, False)
SHAPE = (3, 6, 5, 2)
RNG = np.random.default_rng(7)
PRED, TARGET, DIRECTION = RNG.normal(size=(3, *SHAPE))
# Some of the points of each sample, never all of a sample.
POINTS = RNG.random(SHAPE[:-1]) < 0.75
MATRIX = RNG.normal(size=(2, 2))


def _mean(values: np.ndarray, points: np.ndarray) -> float:
    """Over the points (*s) that count and the channels."""
    return float(values[points].mean())


def _ends(axis: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Pairs of neighbouring points along an axis of the grid."""
    pairs = []
    for point in itertools.product(range(SHAPE[1]), range(SHAPE[2])):
        other = list(point)
        other[axis] += 1
        if other[axis] == SHAPE[1 + axis]:
            if not PERIODIC[axis]:
                continue
            other[axis] = 0
        pairs.append((point, tuple(other)))
    return pairs


def _slopes(field: np.ndarray, points: np.ndarray, axis: int) -> np.ndarray:
    kept = [(a, b) for a, b in _ends(axis) if points[a] and points[b]]
    return np.array([(field[b] - field[a]) / SPACING[axis] for a, b in kept])


def _h1(pred: np.ndarray, target: np.ndarray, points: np.ndarray) -> float:
    wrong, size = (sum((_slopes(x, points, axis) ** 2).mean() for axis in (0, 1)) for x in (pred - target, target))
    return np.sqrt(wrong / (size + 1e-8))


def _smoothness(pred: np.ndarray, target: np.ndarray, points: np.ndarray) -> float:
    return sum(np.abs(_slopes(pred, points, axis)).mean() for axis in (0, 1))


def _divergence(pred: np.ndarray, target: np.ndarray, points: np.ndarray) -> float:
    """Along x the trigonometric differentiation matrix (Trefethen 2000, chapter 3), along y central differences."""
    count = SHAPE[1]
    step = 2 * np.pi / count
    gap = np.subtract.outer(np.arange(count), np.arange(count))
    with np.errstate(divide="ignore"):
        matrix = np.where(gap == 0, 0.0, 0.5 * (-1.0) ** gap / np.tan(gap * step / 2))
    along_x = step / SPACING[0] * matrix @ pred[..., 0]
    along_y = (pred[:, 2:, 1] - pred[:, :-2, 1]) / (2 * SPACING[1])
    return float(np.abs(along_x[:, 1:-1] + along_y)[points[:, 1:-1]].mean())


def _conservation(pred: np.ndarray, target: np.ndarray, points: np.ndarray) -> float:
    change = np.abs(pred[points].sum(0) - target[points].sum(0)) / points.sum()
    return float((change / (np.sqrt((target[points] ** 2).mean(0)) + 1e-8)).mean())


def _dirichlet(pred: np.ndarray, target: np.ndarray, points: np.ndarray) -> float:
    wall = np.zeros_like(points)
    wall[:, [0, -1]] = True
    return _mean((pred - 0.4) ** 2, wall & points)


def _neumann(pred: np.ndarray, target: np.ndarray, points: np.ndarray) -> float:
    bottom = (3 * pred[:, 0] - 4 * pred[:, 1] + pred[:, 2]) / (2 * SPACING[1])
    top = (3 * pred[:, -1] - 4 * pred[:, -2] + pred[:, -3]) / (2 * SPACING[1])
    residual = np.concatenate([bottom[points[:, 0]], top[points[:, -1]]]) - 0.4
    return float((residual**2).mean())


def _periodic(pred: np.ndarray, target: np.ndarray, points: np.ndarray) -> float:
    return float(((pred[:, 0] - pred[:, -1])[points[:, 0] & points[:, -1]] ** 2).mean())


def _diversity(pred: np.ndarray, target: np.ndarray, points: np.ndarray) -> float:
    tokens = pred[points]
    cosines = [abs(a @ b) / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in itertools.permutations(list(tokens), 2)]
    return float(np.mean(cosines))


def _band(pred: np.ndarray, target: np.ndarray, points: np.ndarray) -> float:
    wave = np.meshgrid(*(np.fft.fftfreq(size, 1 / size) for size in SHAPE[1:-1]), indexing="ij")
    inside = np.isin(np.rint(np.sqrt(wave[0] ** 2 + wave[1] ** 2)), (1, 2))
    wrong, true = (np.abs(np.fft.fftn(x, axes=(0, 1), norm="forward"))[inside] ** 2 for x in (pred - target, target))
    return np.sqrt(wrong.sum() / (true.sum() + 2e-8))


def _energy(pred: np.ndarray, target: np.ndarray, points: np.ndarray) -> float:
    count = SHAPE[1]
    transform = np.exp(-2j * np.pi * np.outer(np.arange(count // 2 + 1), np.arange(count)) / count)
    ours, theirs = ((np.abs(np.tensordot(transform, x, 1)) ** 2).mean() for x in (pred, target))
    return abs(ours - theirs) / (theirs + 1e-8)


def _tokens(x: Any) -> Any:
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _flat(mask: Any) -> Any:
    return mask.reshape(mask.shape[0], -1) if mask is not None and mask.ndim > 1 else mask


def _decode(z: Any) -> Any:
    return z @ jnp.asarray(MATRIX, jnp.float32)


def _boundary(condition: str) -> Callable[..., Any]:
    return lambda p, t, **options: losses.boundary(p, SPACING, PERIODIC, value=0.4, condition=condition, **options)


# Name: the loss of (prediction, target), and a sample's value in numpy.
Loss = tuple[Callable[..., Any], Callable[[np.ndarray, np.ndarray, np.ndarray], float]]
LOSSES: dict[str, Loss] = {
    "nrmse": (losses.nrmse, lambda p, t, points: np.sqrt(_mean((p - t) ** 2, points) / (_mean(t**2, points) + 1e-8))),
    "relative_mse": (
        losses.relative_mse,
        lambda p, t, points: _mean((p - t) ** 2, points) / (_mean(t**2, points) + 1e-8),
    ),
    "h1": (lambda p, t, **options: losses.h1(p, t, SPACING, PERIODIC, **options), _h1),
    "forward": (losses.mse, lambda p, t, points: _mean((p - t) ** 2, points)),
    "rollout": (losses.rollout_mse, lambda p, t, points: _mean((p - t) ** 2, points)),
    "spectral_energy": (lambda p, t, **options: losses.spectral_energy(p, t, 1, **options), _energy),
    "spectral_band": (lambda p, t, **options: losses.spectral_band(p, t, 1, 2, **options), _band),
    "divergence": (lambda p, t, **options: losses.divergence(p, SPACING, PERIODIC, **options), _divergence),
    "conservation": (losses.conservation, _conservation),
    "dirichlet": (_boundary("dirichlet"), _dirichlet),
    "neumann": (_boundary("neumann"), _neumann),
    "periodic": (_boundary("periodic"), _periodic),
    "positivity": (
        lambda p, t, **options: losses.positivity(p, **options),
        lambda p, t, points: _mean(np.where(p < 0, -p, 0), points),
    ),
    "smoothness": (lambda p, t, **options: losses.smoothness(p, SPACING, PERIODIC, **options), _smoothness),
    "latent_norm": (
        lambda p, t, mask=None, **options: losses.latent_norm(_tokens(p), mask=_flat(mask), **options),
        lambda p, t, points: float(np.abs(np.linalg.norm(p[points], axis=-1) - 1).mean()),
    ),
    "latent_diversity": (
        lambda p, t, mask=None, **options: losses.latent_diversity(_tokens(p), mask=_flat(mask), **options),
        _diversity,
    ),
    "inverse_encoding": (
        lambda p, t, **options: losses.inverse_encoding(
            lambda z: _decode(z).reshape(t.shape), _tokens(p), t, **options
        ),
        lambda p, t, points: _mean((p @ MATRIX - t) ** 2, points),
    ),
    "inverse_decoding": (
        lambda p, t, mask=None, **options: losses.inverse_decoding(
            lambda u: 0.5 * u, _decode, _tokens(p), mask=_flat(mask), **options
        ),
        lambda p, t, points: _mean((0.5 * p @ MATRIX - p) ** 2, points),
    ),
}
# Losses whose `mean` is one ratio of the whole batch, and those of spectra, which are of whole grids.
POOLED = ("nrmse", "spectral_energy")
WHOLE = ("spectral_energy", "spectral_band")
# Losses that compare with a target of the same shape.
ERRORS = ("nrmse", "relative_mse", "h1", "forward", "rollout", "spectral_energy", "spectral_band", "conservation")
EVERYWHERE = np.ones(SHAPE[1:-1], bool)


def single(x: np.ndarray) -> jax.Array:
    return jnp.asarray(x, jnp.float32)


def expected(name: str, pred: np.ndarray, points: np.ndarray | None = None) -> np.ndarray:
    reference = LOSSES[name][1]
    kept = itertools.repeat(EVERYWHERE) if points is None else points
    return np.array([reference(*sample) for sample in zip(pred, TARGET, kept, strict=False)])


ROWS = np.array([True, False, True])
EMPTY = POINTS & np.array([True, True, False])[:, None, None]


@functools.cache
def measured(name: str) -> dict[str, np.ndarray]:
    """All that is asked of a loss, in one compilation."""
    loss, target = LOSSES[name][0], single(TARGET)

    def values(pred: jax.Array, spoiled: jax.Array) -> dict[str, jax.Array]:
        results = {reduction: loss(pred, target, reduction=reduction) for reduction in ("none", "sum", "mean")}
        results["default"] = loss(pred, target)
        results["rows"] = loss(spoiled, target, mask=jnp.asarray(ROWS), reduction="none")
        results["mean of rows"] = loss(spoiled, target, mask=jnp.asarray(ROWS))
        if name not in WHOLE:
            results["points"] = loss(pred, target, mask=jnp.asarray(POINTS), reduction="none")
            results["empty"] = loss(pred, target, mask=jnp.asarray(EMPTY), reduction="none")
        results["gradient"] = jax.grad(lambda pred: loss(pred, target, reduction="sum"))(pred)
        results["at the target"] = loss(target, target)
        results["gradient at the target"] = jax.grad(lambda pred: loss(pred, target))(target)
        return results

    return jax.device_get(jax.jit(values)(single(PRED), single(PRED).at[1].set(1e3)))


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_its_formula_under_each_reduction(name: str) -> None:
    results, by_sample = measured(name), expected(name, PRED)
    np.testing.assert_allclose(results["none"], by_sample, rtol=1e-5)
    np.testing.assert_allclose(results["sum"], by_sample.sum(), rtol=1e-5)
    np.testing.assert_array_equal(results["default"], results["mean"])
    if name not in POOLED:
        np.testing.assert_allclose(results["mean"], by_sample.mean(), rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_a_mask_leaves_out_samples_and_points(name: str) -> None:
    results, by_sample = measured(name), expected(name, PRED)
    # A sample that is left out gives nothing, whatever it holds.
    np.testing.assert_allclose(results["rows"], by_sample * ROWS, rtol=1e-5)
    if name not in POOLED:
        np.testing.assert_allclose(results["mean of rows"], by_sample[ROWS].mean(), rtol=1e-5)
    if name not in WHOLE:
        masked = expected(name, PRED, POINTS)
        assert np.all(np.abs(masked - by_sample) > 1e-4)
        np.testing.assert_allclose(results["points"], masked, rtol=1e-5)
        # Nothing left to score is nothing, not a division by zero.
        np.testing.assert_allclose(results["empty"], masked * [1, 1, 0], rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_a_mask_of_another_shape_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="mask"):
        LOSSES[name][0](single(PRED), single(TARGET), mask=jnp.ones((3, 4)))
    if name in WHOLE:
        with pytest.raises(ValueError, match="mask"):
            LOSSES[name][0](single(PRED), single(TARGET), mask=jnp.asarray(POINTS))


@pytest.mark.parametrize("name", LOSSES)
def test_the_derivative_of_a_loss_is_that_of_its_formula(name: str) -> None:
    small = 1e-6
    slope = (expected(name, PRED + small * DIRECTION) - expected(name, PRED - small * DIRECTION)).sum() / (2 * small)
    if name == "inverse_decoding":
        # Its tokens are held fixed where they are the target.
        again, moved = 0.5 * PRED @ MATRIX - PRED, 0.5 * DIRECTION @ MATRIX
        slope = (2 * again * moved).mean((1, 2, 3)).sum()
    derivative = (np.asarray(measured(name)["gradient"], np.float64) * DIRECTION).sum()
    np.testing.assert_allclose(derivative, slope, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ERRORS)
def test_an_exact_prediction_has_no_loss_and_no_gradient(name: str) -> None:
    assert measured(name)["at the target"] == 0
    np.testing.assert_array_equal(measured(name)["gradient at the target"], 0)


@pytest.mark.parametrize("name", ERRORS)
def test_shapes_that_would_only_broadcast_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="shape"):
        LOSSES[name][0](single(PRED[:, :1]), single(TARGET))


def test_the_ratio_of_a_batch_is_of_all_its_samples_together() -> None:
    pred, target = single(PRED), single(TARGET)
    ratio = np.sqrt(((PRED - TARGET) ** 2).mean() / ((TARGET**2).mean() + 1e-8))
    np.testing.assert_allclose(losses.nrmse(pred, target), ratio, rtol=1e-5)
    masked = np.sqrt(((PRED - TARGET) ** 2)[POINTS].mean() / ((TARGET**2)[POINTS].mean() + 1e-8))
    np.testing.assert_allclose(losses.nrmse(pred, target, mask=jnp.asarray(POINTS)), masked, rtol=1e-5)
    floor = np.sqrt(((PRED - TARGET) ** 2).mean() / ((TARGET**2).mean() + 0.5))
    np.testing.assert_allclose(losses.nrmse(pred, target, 0.5), floor, rtol=1e-5)
    rows = np.sqrt(((PRED - TARGET) ** 2)[ROWS].mean() / ((TARGET**2)[ROWS].mean() + 1e-8))
    np.testing.assert_allclose(losses.nrmse(pred, target, mask=jnp.asarray(ROWS)), rows, rtol=1e-5)
    ours, theirs = ((np.abs(np.fft.rfft(x, axis=2)) ** 2).mean() for x in (PRED, TARGET))
    np.testing.assert_allclose(losses.spectral_energy(pred, target, 2), abs(ours - theirs) / theirs, rtol=1e-5)


def test_an_unknown_reduction_is_refused_at_the_call() -> None:
    with pytest.raises(Exception, match="reduction"):
        losses.mse(single(PRED), single(TARGET), reduction="median")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["nrmse", "forward", "spectral_energy", "conservation", "latent_norm"])
def test_losses_of_bfloat16_are_computed_in_float32(name: str) -> None:
    pred, target = single(PRED).astype(jnp.bfloat16), single(TARGET).astype(jnp.bfloat16)
    value = LOSSES[name][0](pred, target, reduction="none")
    assert value.dtype == jnp.float32
    exact = LOSSES[name][0](pred.astype(jnp.float32), target.astype(jnp.float32), reduction="none")
    np.testing.assert_array_equal(value, exact)
