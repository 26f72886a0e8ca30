"""Statistics equal NumPy's on the concatenated training split, whatever the chunks."""

from __future__ import annotations

import numpy as np
import pytest
from travelling_waves import DT, SPACING, waves

from ups_jax.core.errors import DataError
from ups_jax.core.task import Task
from ups_jax.data import from_arrays, scan

TWO_CHANNELS = np.stack([waves()[0] + 3, 50 * waves(seed=5)[0]], axis=-1)


def dataset_of(configure, fields, **options):
    cfg = configure(channels=["u", "v"][: fields.shape[-1] if fields.ndim == 4 else 1], **options)
    return from_arrays(cfg, fields, DT, origin=(-1.0,), spacing=(SPACING,))


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("normalize", ["zscore", "rms", "none"])
def test_statistics_are_those_of_the_training_trajectories(configure, monkeypatch, stride, normalize):
    monkeypatch.setattr(scan, "_CHUNK_BYTES", 5 * 9 * 32 * 2 * 4)
    dataset = dataset_of(configure, TWO_CHANNELS, data={"normalize": normalize}, training={"time_stride": stride})
    train = TWO_CHANNELS[dataset.splits.train].astype(np.float64)
    everything = (0, 1, 2)
    expected = {
        "zscore": (train.mean(everything), train.std(everything)),
        "rms": (np.zeros(2), np.sqrt((train**2).mean(everything))),
        "none": (np.zeros(2), np.ones(2)),
    }[normalize]
    delta = train[:, stride:] - train[:, :-stride]
    statistics = dataset.task.statistics
    np.testing.assert_allclose(statistics.mean, expected[0], rtol=1e-12)
    np.testing.assert_allclose(statistics.std, expected[1], rtol=1e-12)
    np.testing.assert_allclose(statistics.scale, train.std(everything), rtol=1e-12)
    np.testing.assert_allclose(statistics.delta_std, np.sqrt((delta**2).mean(everything)), rtol=1e-12)
    norms = np.linalg.norm(delta, axis=2) / np.linalg.norm(train[:, :-stride], axis=2)
    np.testing.assert_allclose(dataset.relative_change, norms.mean(axis=(0, 2)), rtol=1e-12)
    assert dataset.task.dt == pytest.approx(DT * stride)


def test_statistics_without_a_scale_use_their_standard_deviation(configure):
    """Records of older versions have no scale."""
    task = dataset_of(configure, TWO_CHANNELS, data={"normalize": "none"}).task
    values = task.to_dict()
    assert Task.from_dict(values) == task and task.statistics.scale != task.statistics.std
    del values["statistics"]["scale"]
    assert Task.from_dict(values).statistics.scale == task.statistics.std


@pytest.mark.parametrize(
    "channel, message",
    [(np.full((12, 9, 32), 7.0), r"\bv\b"), (np.tile(waves()[0][:, :1], (1, 9, 1)), r"\bv\b.* time")],
)
def test_a_channel_without_variation_is_refused(configure, channel, message):
    with pytest.raises(DataError, match=message):
        dataset_of(configure, np.stack([waves()[0], channel], axis=-1))


def test_coefficients_are_standardised_on_their_scale(configure):
    fields, _ = waves()
    nu = np.geomspace(1e-3, 1, 12)
    cfg = configure(coefficients={"nu": "log10", "beta": "linear"})
    dataset = from_arrays(cfg, fields, DT, {"nu": nu, "beta": np.full(12, 2.0)}, (-1.0,), (SPACING,))
    train = np.log10(nu[dataset.splits.train])
    first, second = dataset.task.coefficients
    assert (
        first.scale == "log10" and first.mean == pytest.approx(train.mean()) and first.std == pytest.approx(train.std())
    )
    # A constant coefficient has no deviation; its size is unit-free as well.
    assert (second.mean, second.std) == (2.0, 2.0)
