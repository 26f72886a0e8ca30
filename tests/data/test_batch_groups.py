"""Small batches are read many as one, and are what each is by itself: of every kind of data, on every host, up to one
that cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import CONFIGS

from ups_jax import simulate
from ups_jax.config import Config, load
from ups_jax.core.errors import DataError
from ups_jax.data import Dataset, Mixture, batch_at, batches, from_arrays, open_dataset, training_batches
from ups_jax.data.latent_cache.cache import LatentCache, LatentWindows
from ups_jax.data.latent_cache.manifest import LatentKey, LatentManifest
from ups_jax.data.latent_cache.writer import write_latents

Opened = tuple[Dataset | Mixture, Config, str]


def _planes(waves: Dataset, data_root: Path, tmp_path: Path) -> Opened:
    """Vectors on a square, which every symmetry of it maps."""
    fields = np.random.default_rng(0).normal(size=(20, 5, 8, 8, 2)).astype(np.float32)
    symmetries = "[{reflect: [x], negate: [c0]}, {reflect: [y], negate: [c1]}, {swap: [x, y], swap_channels: [c0, c1]}]"
    about = [
        "data.tasks.0.channels=[c0, c1]",
        f"data.tasks.0.symmetries={symmetries}",
        "data.tasks.0.periodic=[x, y]",
        "data.tasks.0.coefficients={}",
    ]
    cfg = load(CONFIGS / "tiny.yaml", [*about, "data.tasks.0.conserved=[]"])
    return from_arrays(cfg, fields, 0.1, {}, (0.0, 0.0), (0.1, 0.1)), cfg, "operator"


def _steady(waves: Dataset, data_root: Path, tmp_path: Path) -> Opened:
    """Given fields beside the solutions."""
    symmetries = "data.tasks.0.symmetries=[{reflect: [x]}, {swap: [x, y]}]"
    cfg = load(CONFIGS / "tiny_steady.yaml", [f"data.root={data_root}", symmetries])
    simulate.generate_missing(cfg)
    return open_dataset(cfg), cfg, "steady_prior"


def _points(waves: Dataset, data_root: Path, tmp_path: Path) -> Opened:
    """Coordinates and masks beside the fields."""
    cfg = load(CONFIGS / "heat_mesh.yaml", [f"data.root={data_root}", "data.tasks.0.preset=tiny"])
    simulate.generate_missing(cfg)
    return open_dataset(cfg), cfg, "operator"


def _latents(waves: Dataset, data_root: Path, tmp_path: Path) -> Opened:
    """Latents in place of fields."""
    key = LatentKey(weights="w", encoder={}, normaliser={}, data="d", dtype="float32")
    plan = LatentManifest(key=key, task="waves", trajectories=20, frames=9, first=0, tokens=(16,), width=5, carried=2,
                    shard_trajectories=8)  # fmt: skip
    values = np.random.default_rng(0).normal(size=(20, *plan.trajectory_shape)).astype(np.float32)
    write_latents(tmp_path / "latents", plan, lambda ids: values[ids])
    latents = LatentWindows(cache=LatentCache(tmp_path / "latents", 2.0**20), context=1, pushforward=0)
    cfg = load(CONFIGS / "tiny.yaml", ["data.tasks.0.symmetries=[]", "data.tasks.0.coefficients={beta: linear}"])
    return replace(waves, latents=latents), cfg, "operator"


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("opened", [_planes, _steady, _points, _latents])
def test_a_batch_of_a_group_is_the_batch_by_itself(
    opened: Callable[..., Opened], threads: int, waves: Dataset, data_root: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(batches, "MAX_GROUPED_BATCHES", 3)
    data, cfg, stage = opened(waves, data_root, tmp_path)
    cfg = replace(cfg, data=replace(cfg.data, loader=replace(cfg.data.loader, threads=threads)))
    for host in ((0, 1), (1, 2)):
        with training_batches(data, cfg, stage, 2, *host) as stream:
            for n, actual in enumerate(islice(stream, 10), 2):
                expected = batch_at(data, cfg, stage, n, *host)
                assert actual.arrays.keys() == expected.arrays.keys()
                for name, values in expected.arrays.items():
                    np.testing.assert_array_equal(actual.arrays[name], values, err_msg=f"{name} of batch {n}")


def test_what_cannot_be_read_is_told_when_it_is_asked_for(
    waves: Dataset, tiny: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = batches.read_rows

    def failing(dataset: Dataset, plan: Any, n: int, count: int, *host: int) -> dict[str, np.ndarray]:
        if n <= 5 < n + count:
            raise DataError("batch 5 is damaged")
        return read(dataset, plan, n, count, *host)

    monkeypatch.setattr(batches, "read_rows", failing)
    with training_batches(waves, tiny, "operator") as stream:
        whole = [next(stream) for _ in range(5)]
        with pytest.raises(DataError, match="batch 5 is damaged"):
            next(stream)
    assert [list(batch.trajectory_id) for batch in whole] == [
        list(batch_at(waves, tiny, "operator", n).trajectory_id) for n in range(5)
    ]


def test_a_stream_that_was_left_gives_no_more(waves: Dataset, tiny: Config) -> None:
    with training_batches(waves, tiny, "operator") as stream:
        next(stream)
    assert next(stream, None) is None


def test_groups_are_of_small_batches_alone(waves: Dataset, tiny: Config) -> None:
    planned = batches.StageBatches.from_config(waves, tiny, "operator", 1)
    one = batch_at(waves, tiny, "operator", 0).nbytes
    sizes = [planned.group_size(0, 1, most) for most in (40 * one, 7 * one, one, one - 1)]
    assert sizes == [32, 7, 1, 1]
