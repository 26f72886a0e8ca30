"""Runs of earlier versions: refused in one line, whatever their record lacks or has besides, or read as they were."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from commands import CONFIGS
from rich.console import Console

from ups_jax import batch_at, build, from_arrays, init_state, load_config, load_run, save
from ups_jax.config import Config, digest, to_dict
from ups_jax.core.errors import ConfigError
from ups_jax.core.task import Task
from ups_jax.data import Dataset, as_mixture
from ups_jax.runs.best_weights import tasks_of_run
from ups_jax.runs.directory import RunDirectory
from ups_jax.trainer.preflight import check_resume, preflight


def lacking(values: dict[str, Any]) -> None:
    for section in (values["training"], *values["stages"].values()):
        del section["accum_steps"]
    del values["diffusion"]


def besides(values: dict[str, Any]) -> None:
    values["latent"]["former"] = 1


def another(values: dict[str, Any]) -> None:
    lacking(values)
    values["latent"]["dim"] += 1


@pytest.mark.parametrize(
    "change, reason",
    [
        (lacking, "by an earlier version, in which a key or a part of the model had another meaning"),
        (besides, "by an earlier version, with keys that this version does not have"),
        (another, r"latent\.dim: \d+ -> \d+\)"),
    ],
)
def test_a_run_of_an_earlier_version_is_refused_in_one_line(
    tiny: Config, tmp_path: Path, change: Any, reason: str
) -> None:
    run, values = RunDirectory(tmp_path / "run"), to_dict(tiny)
    change(values)
    run.path.mkdir()
    run.write_record({"config": values, "digests": {"operator": "0" * 12}, "stages": {}})
    with pytest.raises(ConfigError, match=reason):
        check_resume(run, tiny, "operator", "auto")
    run.write_record({"config": values, "digests": {"operator": digest(tiny, "operator")}, "stages": {}})
    check_resume(run, tiny, "operator", "auto")


OVERRIDES = ["data.tasks.0.symmetries=[]", "data.tasks.0.coefficients={}", "latent={dim: 4, patch_size: 4}",
             "operator.spectral={hidden_dim: 8, depth: 1}", "optimizer.name=adamw", "training.batch_size=2",
             "data.tasks.0.conserved=[]"]  # fmt: skip


def noise(points: int) -> Dataset:
    fields = np.random.default_rng(0).normal(size=(12, 5, points))
    cfg = load_config(CONFIGS / "tiny.yaml", OVERRIDES)
    return from_arrays(cfg, fields, 0.1, spacing=(1.0,))


def saved_by_an_earlier_version(path: Path, points: int, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Save an untrained run on a line of `points` points, whose record does not state its partition into patches."""
    cfg, dataset = load_config(CONFIGS / "tiny.yaml", OVERRIDES), noise(points)
    dataset = dataclasses.replace(dataset, task=dataclasses.replace(dataset.task, partition="divisor"))
    model, tx = build(cfg, dataset)
    state = init_state(model, tx, batch_at(dataset, cfg, "operator", 0), jax.random.key(0))
    to_dict = Task.to_dict
    with monkeypatch.context() as patch:
        patch.setattr(
            Task, "to_dict", lambda task: {key: item for key, item in to_dict(task).items() if key != "partition"}
        )
        save(path, state, cfg, dataset, validation=1.0)
    return cfg


def test_a_run_on_a_prime_grid_keeps_its_patches_of_one_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = saved_by_an_earlier_version(tmp_path / "run", 13, monkeypatch)
    run = load_run(tmp_path / "run")
    assert run.task.partition == "divisor"
    fields = np.random.default_rng(1).normal(size=(2, 13, 1)).astype(np.float32)
    np.testing.assert_allclose(run.step(fields), fields, atol=1e-6)
    data = as_mixture(noise(13))
    assert data.tasks[0].partition == "full"
    new, parent = RunDirectory(tmp_path / "new"), tmp_path / "run"
    for directory, init_from in ((RunDirectory(parent), None), (new, parent)):
        checked = preflight(cfg, "operator", directory, init_from=init_from, data=data, console=Console(quiet=True))
        assert checked.data.tasks == run.tasks == checked.model.tasks
    assert preflight(cfg, "operator", new, data=data, console=Console(quiet=True)).data.tasks[0].partition == "full"


def test_a_run_keeps_the_statistics_of_coefficients_that_its_weights_were_trained_with(tmp_path: Path) -> None:
    overrides = [*OVERRIDES[:1], "data.tasks.0.coefficients={nu: linear}", *OVERRIDES[2:]]
    cfg = load_config(CONFIGS / "tiny.yaml", overrides)
    fields = np.random.default_rng(0).normal(size=(12, 5, 12))
    dataset = from_arrays(cfg, fields, 0.1, {"nu": np.linspace(3e-7, 1.2e-6, 12)}, spacing=(1.0,))
    # Earlier versions took such a coefficient for constant.
    former = dataclasses.replace(dataset.task.coefficients[0], std=1.0)
    old = dataclasses.replace(dataset, task=dataclasses.replace(dataset.task, coefficients=(former,)))
    model, tx = build(cfg, old)
    state = init_state(model, tx, batch_at(old, cfg, "operator", 0), jax.random.key(0))
    save(tmp_path / "run", state, cfg, old, validation=1.0)
    for name, expected in (("run", former), ("new", dataset.task.coefficients[0])):
        run = RunDirectory(tmp_path / name)
        checked = preflight(cfg, "operator", run, data=as_mixture(dataset), console=Console(quiet=True))
        assert checked.model.tasks[0].coefficients == (expected,)


def test_a_run_on_a_grid_that_its_patches_divide_steps_on_a_prime_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved_by_an_earlier_version(tmp_path, 12, monkeypatch)
    assert tasks_of_run(RunDirectory(tmp_path))[0].partition == "full"
    other = load_run(tmp_path).on_grid_of(noise(13).task)
    fields = np.random.default_rng(1).normal(size=(2, 13, 1)).astype(np.float32)
    np.testing.assert_allclose(other.step(fields), fields, atol=1e-6)
