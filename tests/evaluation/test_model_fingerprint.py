"""The fingerprint of a trained model: what it is, not which values its parameters have."""

from __future__ import annotations

from dataclasses import replace

import jax
import pytest
from point_tasks import still_task

from ups_jax import batch_at, build, init_state
from ups_jax.config import Config
from ups_jax.data import Dataset
from ups_jax.evaluation.model_fingerprint import architecture_fingerprint


def of(cfg: Config, waves: Dataset, key: int = 0) -> dict:
    model, tx = build(cfg, waves)
    state = init_state(model, tx, batch_at(waves, cfg, "operator", 0), jax.random.key(key))
    return architecture_fingerprint(cfg, waves.task, "operator", state.params)


def test_it_is_the_same_for_other_parameters_and_training_and_another_for_another_model(
    tiny: Config, waves: Dataset
) -> None:
    tiny = replace(tiny, stages=replace(tiny.stages, operator=replace(tiny.stages.operator, steps=4)))
    fingerprint = of(tiny, waves)
    assert of(replace(tiny, seed=1, gates=replace(tiny.gates, metric="vrmse")), waves, key=1) == fingerprint
    wider = replace(tiny, operator=replace(tiny.operator, spectral=replace(tiny.operator.spectral, hidden_dim=24)))
    other = of(wider, waves)
    assert other["digest"] != fingerprint["digest"] and other["parameters"] != fingerprint["parameters"]
    assert other["normalizer"] == fingerprint["normalizer"]


@pytest.mark.parametrize("name", ["mean", "std"])
def test_another_normaliser_is_another_model(tiny: Config, waves: Dataset, name: str) -> None:
    statistics = replace(waves.task.statistics, **{name: (7.0,)})
    params: dict = {}
    one = architecture_fingerprint(tiny, waves.task, "operator", params)
    other = architecture_fingerprint(tiny, replace(waves.task, statistics=statistics), "operator", params)
    assert one["digest"] != other["digest"] and one["model"] == other["model"]


def test_how_points_are_pooled_marks_models_of_points_where_it_is_not_as_it_always_was(
    tiny: Config, waves: Dataset
) -> None:
    other = replace(tiny, latent=replace(tiny.latent, neighbours=4))
    grid, points = waves.task, still_task()
    one, same = (architecture_fingerprint(cfg, grid, "operator", {}) for cfg in (tiny, other))
    assert one == same and one["codec"].keys() == {"dim", "patch_size"}
    one, another = (architecture_fingerprint(cfg, points, "operator", {}) for cfg in (tiny, other))
    assert one["codec"].keys() == {"dim", "patch_size", "nodes"}
    assert another["codec"] == one["codec"] | {"neighbours": 4} and another["digest"] != one["digest"]
