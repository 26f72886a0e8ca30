"""The values of rows of a steady task, of finer data and of a latent rollout."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from comparison import worker
from comparison.models import MODELS, Peer
from comparison.notes import notes
from comparison.row import Row
from comparison.runs import prepare, rows_of
from comparison.store import Store
from comparison.tasks import TASKS
from comparison.training import Trained

from ups_jax.data import Dataset
from ups_jax.inference.trained_model import TrainedModel
from ups_jax.runs.best_weights import Weights
from ups_jax.training.build import abstract_state, as_joint_model, build_model

# So little is learned that a model is still what it starts as.
SMALL = ("optimizer.name=adamw", "optimizer.lr=1e-6", "evaluation.bootstrap=5", "data.split.test=0.1")


def values_of(data_root: Path, task: str, model: str, *overrides: str, steps: int | None = 2) -> dict[str, Any]:
    row = Row(
        task=task, model=model, seed=0, budget=1.0, data_root=str(data_root), overrides=(*SMALL, *overrides),
        steps=steps, double=True, needs_double=True,
    )  # fmt: skip
    prepare([row])
    values = worker.run(row)
    assert row.complete(values)
    return values


def persistent(row: Row, peer: Peer, dataset: Dataset) -> Trained:
    """A model of random weights that predicts no change, without a step to compile."""
    cfg = row.config()
    shapes = abstract_state(cfg, dataset.task, "operator").params
    rng = np.random.default_rng(0)

    def weights(path: Any, leaf: Any) -> np.ndarray:
        scale = 0.0 if any(part.key == "write" for part in path) else 0.1
        return (scale * rng.normal(size=leaf.shape)).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(weights, shapes)
    weights = Weights(
        params=params, weights=params, digest="", step=0, config=cfg, tasks=(dataset.task,),
        fingerprint=dataset.fingerprint,
    )  # fmt: skip
    model = as_joint_model(build_model(cfg, dataset.task, "operator"))
    run = TrainedModel(path=Path(), stage="operator", checkpoint=weights, models=model)
    return Trained(run=run, parameters=1, steps=2, cpu_seconds=1.0, compile_seconds=1.0)


def test_a_steady_peer_takes_the_better_way_to_the_finer_grid(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"steady": {"width": 4, "blocks": 1, "dilations": (1,)}}
    monkeypatch.setitem(MODELS, "dilated_recipe", replace(MODELS["dilated_recipe"], sizes=small))
    values = values_of(data_root, "tiny_steady", "dilated_recipe")
    assert values["points"] == [16, 16] and values["steps"] == 2
    double = values["double_resolution"]
    assert set(double["ways"]) == {"averaged", "native"}
    assert double["nrmse"] == min(double["ways"].values()) == double["ways"][double["way"]]
    mean_field = values_of(data_root, "tiny_steady", "mean_field")
    channel_mean = values["steady"]["nrmse"]
    assert mean_field["steady"]["nrmse"] < channel_mean < 1
    assert mean_field["double_resolution"]["nrmse"] == pytest.approx(mean_field["steady"]["nrmse"], rel=0.05)
    assert "way" not in mean_field["double_resolution"]


def test_a_model_with_tokens_is_rolled_out_in_its_latent_space_and_on_finer_data(
    data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "train", persistent)
    small = ("operator.spectral.depth=1", "operator.spectral.hidden_dim=8")
    values = values_of(data_root, "tiny", "ours", *small)
    persistence = values_of(data_root, "tiny", "persistence", "evaluation.batch_size=4")
    assert persistence["latent_rollout"] is None
    assert "latent_seconds_per_rollout_step" not in persistence and values["latent_seconds_per_rollout_step"] > 0
    for section in (values["latent_rollout"], values["double_resolution"]):
        assert section["nrmse"] == pytest.approx(persistence["rollout"]["nrmse"], rel=0.01)
    assert 0 < values["correlation_time"] == values["rollout"]["correlation_time"]
    # Twice the points of a resolved field: the same persistence.
    assert persistence["double_resolution"]["nrmse"] == pytest.approx(persistence["rollout"]["nrmse"], rel=1e-3)


def test_the_correlation_time_is_of_the_tasks_longer_trajectories_where_it_has_such(
    data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = values_of(data_root, "tiny", "persistence")
    monkeypatch.setitem(TASKS, "tiny", replace(TASKS["tiny"], long="tiny"))
    # The training part of the same file instead of the test split.
    longer = values_of(data_root, "tiny", "persistence")
    assert longer["rollout"] == plain["rollout"] and longer["correlation_time"] != plain["correlation_time"] > 0
    assert plain["correlation_trajectories"] == plain["trajectories"] < longer["correlation_trajectories"]
    assert notes({"persistence": [plain]}, plain["source"]) == []
    expected = f"correlated for: of {longer['correlation_trajectories']} trajectories over {longer['frames']} frames"
    assert notes({"persistence": [longer]}, longer["source"]) == [expected]


def test_the_longer_trajectories_are_the_embedded_ones_alone_and_part_of_what_a_row_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = Row(task="ns2d", model="ours", seed=0, budget=60.0)
    config = row.long_config()
    assert config is not None and config.data.tasks[0].preset == "long"
    with_file = replace(row, overrides=("data.tasks.0.path=mine.hdf5",))
    assert with_file.long_config() is None
    digests = row.digest(), with_file.digest()
    monkeypatch.setitem(TASKS, "ns2d", replace(TASKS["ns2d"], long=None))
    assert row.digest() != digests[0] and with_file.digest() == digests[1]


def test_a_row_without_the_finer_score_is_run_again_only_where_it_is_asked_for(tmp_path: Path) -> None:
    store = Store(tmp_path / "rows.json")
    row = Row(task="ns2d", model="ours", seed=0, budget=60.0)
    store.add(row.key, {"digest": row.digest(), "seed": 0})
    assert store.finished(replace(row, double=True)) and not store.finished(replace(row, needs_double=True))
    store.add(row.key, {"digest": row.digest(), "seed": 0, "double_resolution": {}})
    assert store.finished(replace(row, needs_double=True))


def test_finer_data_that_takes_minutes_is_left_out_unless_it_is_there_or_asked_for(tmp_path: Path) -> None:
    def doubled(**options: Any) -> dict[str, bool]:
        return {row.task: row.double for row in rows(tmp_path, **options)}

    assert doubled() == {"burgers1d": True, "ns2d": False, "darcy2d": False}
    (tmp_path / "darcy2d_fine.hdf5").touch()
    assert doubled() == {"burgers1d": True, "ns2d": False, "darcy2d": True}
    assert all(doubled(double=True).values())
    assert not any(doubled(quick=True).values())


def test_persistence_and_mean_field_are_each_for_one_kind_of_task(tmp_path: Path) -> None:
    untrained = {(row.task, row.model) for row in rows(tmp_path) if row.budget == 0}
    expected = {("burgers1d", "persistence"), ("ns2d", "persistence"), ("darcy2d", "mean_field")}
    assert untrained == expected


def rows(root: Path, *, double: bool = False, quick: bool = False) -> list[Row]:
    """Return the rows of a command for three tasks."""
    return rows_of(
        argparse.Namespace(
            tasks=["burgers1d", "ns2d", "darcy2d"], models=["persistence", "mean_field", "ours"], seeds=1, budget=1.0,
            split="test", data_root=str(root), set=[], double=double, quick=quick, fixed_steps=None,
        )
    )  # fmt: skip
