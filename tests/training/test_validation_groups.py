"""Validation reads large trajectories in groups of one size, and gives the metrics of all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from commands import CONFIGS

from ups_jax import batch_at, simulate
from ups_jax.config import load
from ups_jax.data import open_dataset
from ups_jax.training.build import build_model
from ups_jax.training.stages import stage_spec, validation_groups


def read_rows(trajectories: Any, rows: np.ndarray) -> np.ndarray:
    return trajectories.fields[rows]


@pytest.mark.parametrize("most, size", [(1, 1), (2, 2), (3, 2), (4, 4), (100, 4)])
def test_groups_have_one_size_and_cover_all_trajectories(
    data_root: Path, monkeypatch: pytest.MonkeyPatch, most: int, size: int
) -> None:
    cfg = load(CONFIGS / "tiny.yaml", [f"data.root={data_root}", "evaluation.val_trajectories=4"])
    simulate.generate_missing(cfg)
    dataset = open_dataset(cfg)
    fields = dataset.trajectories("val", 4).fields
    monkeypatch.setattr(validation_groups, "_GROUP_BYTES", most * fields[0].nbytes)
    groups = list(validation_groups.validation_groups(dataset, cfg, read_rows)())
    assert len(fields) == 4 and {len(group) for group in groups} == {size}
    np.testing.assert_array_equal(np.concatenate(groups), fields)


@pytest.mark.parametrize("name, stage", [("tiny.yaml", "operator"), ("tiny_steady.yaml", "steady_prior")])
def test_metrics_do_not_depend_on_the_groups(
    data_root: Path, monkeypatch: pytest.MonkeyPatch, name: str, stage: str
) -> None:
    cfg = load(CONFIGS / name, [f"data.root={data_root}", "evaluation.val_trajectories=4"])
    simulate.generate_missing(cfg)
    dataset, spec = open_dataset(cfg), stage_spec(stage)
    model = build_model(cfg, dataset.task, stage)
    params = spec.init(model, jax.random.key(0), batch_at(dataset, cfg, stage, 0))
    whole = spec.validate(model, dataset, cfg, {})(params)
    monkeypatch.setattr(validation_groups, "_GROUP_BYTES", 1)
    grouped = spec.validate(model, dataset, cfg, {})(params)
    assert grouped.keys() == whole.keys()
    for metric, value in whole.items():
        assert value > 0 and grouped[metric] == pytest.approx(value, rel=1e-5)
