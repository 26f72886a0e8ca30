"""The data set as a user sees it: splits, trajectories, notes, the task of a trained run, arrays, no JAX import."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from travelling_waves import DT, SPACING, waves

from ups_jax import config
from ups_jax.core.commands import command
from ups_jax.core.errors import ConfigError, DataError
from ups_jax.core.task import Task
from ups_jax.data import data_path, from_arrays, open_dataset

ROOT = Path(__file__).resolve().parents[2]


def test_reading_data_never_imports_jax():
    code = "import sys, ups_jax.data, ups_jax.data.scan; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_background_reading_starts_no_jax_backend(write):
    path = write(waves()[0])
    code = f"""
import sys
from ups_jax import config, data
cfg = config.from_dict({{"data": {{"tasks": [{{"name": "waves", "path": {str(path)!r}}}]}}}})
dataset = data.open_dataset(cfg)
with data.training_batches(dataset, cfg, "operator") as batches:
    next(batches)
bridge = sys.modules.get("jax._src.xla_bridge")
sys.exit(bool(bridge and bridge.backends_are_initialized()))
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_files_and_arrays_make_the_same_data_set(write, configure):
    fields, beta = waves()
    options = {"periodic": ["x"], "coefficients": {"beta": "linear"}, "conserved": ["u"]}
    cfg = configure(path=str(write(fields, parameters_beta=beta)), **options)
    left, right = open_dataset(cfg), from_arrays(cfg, fields, DT, {"beta": beta}, (-1.0,), (SPACING,))
    assert left.task == right.task and left.fingerprint == right.fingerprint and left.notes == right.notes == ()
    changed = fields.copy()
    changed[3, 4, 5] += 1e-3
    assert from_arrays(cfg, changed, DT, {"beta": beta}, (-1.0,), (SPACING,)).fingerprint != left.fingerprint


def test_trajectories_are_whole_and_strided(configure):
    fields, beta = waves()
    cfg = configure(coefficients={"beta": "linear"}, training={"time_stride": 4})
    dataset = from_arrays(cfg, fields, DT, {"beta": beta}, (-1.0,), (SPACING,))
    train = dataset.trajectories("train", limit=5)
    np.testing.assert_array_equal(train.ids, dataset.splits.train[:5])
    np.testing.assert_array_equal(train.fields[..., 0], fields[train.ids, ::4])
    np.testing.assert_allclose(train.time, DT * np.array([0, 4, 8]))
    np.testing.assert_array_equal(train.cond[:, 0], beta[train.ids].astype(np.float32))


def test_a_missing_coefficient_is_masked_and_said(configure, write):
    dataset = open_dataset(configure(path=str(write(waves()[0])), coefficients={"nu": "log10"}))
    assert not dataset.condition_mask.any() and not dataset.conditions.any()
    assert any(re.search(r"\bnu\b.*every", note) for note in dataset.notes)


def test_a_coefficient_that_only_one_of_two_files_has_is_masked_in_the_other(configure, write):
    fields, beta = waves(seed=1)
    paths = {"train": str(write(fields, "a.hdf5", parameters_beta=beta)), "test": str(write(waves(4)[0], "b.hdf5"))}
    dataset = open_dataset(configure(path=paths, coefficients={"beta": "linear"}))
    assert dataset.trajectories("train").cond_mask.all() and dataset.trajectories("val").cond_mask.all()
    assert not dataset.trajectories("test").cond_mask.any() and not dataset.trajectories("test").cond.any()
    assert any(re.search(r"\bbeta\b.*4 of 16", note) for note in dataset.notes)


@pytest.mark.parametrize("where", ["dataset", "attribute", "file name"])
def test_an_undeclared_coefficient_is_said_with_the_line_to_write(configure, write, where):
    fields, beta = waves()
    path = {
        "dataset": lambda: write(fields, parameters_beta=beta),
        "attribute": lambda: write(fields, attributes={"beta": 0.3, "seed": 1}),
        "file name": lambda: write(fields, "Advection_beta0.3.hdf5"),
    }[where]()
    hints = [note for note in open_dataset(configure(path=str(path))).notes if "coefficient" in note]
    assert len(hints) == 1 and "data.tasks.waves.coefficients={beta: linear}" in hints[0]


def test_a_trained_task_keeps_its_statistics_on_another_file(configure, write):
    fields, beta = waves()
    cfg = configure(coefficients={"beta": "linear"}, periodic=["x"])
    trained = Task.from_dict(from_arrays(cfg, fields, DT, {"beta": beta}, (-1.0,), (SPACING,)).task.to_dict())
    other, speeds = waves(points=64, seed=9)
    path = write(2 * other, spacing=SPACING / 2, parameters_beta=speeds)
    dataset = open_dataset(configure("other", path=str(path)), trained)
    assert dataset.task == replace(trained, shape=(64,), spacing=(SPACING / 2,))
    np.testing.assert_array_equal(dataset.conditions[:, 0], speeds.astype(np.float32))
    assert any(re.search(r"\(64,\).*\(32,\)", note) for note in dataset.notes)
    slower = replace(trained, dt=2 * DT)
    assert any("0.04" in note for note in open_dataset(configure(path=str(path)), slower).notes)


def test_a_trained_task_refuses_data_of_another_kind(configure, write):
    trained = from_arrays(configure(), waves()[0], DT, origin=(-1.0,), spacing=(SPACING,)).task
    plane = write(np.random.default_rng(0).normal(size=(5, 4, 6, 8)))
    with pytest.raises(DataError, match=r"2.*1.*waves"):
        open_dataset(configure(path=str(plane)), trained)


def test_embedded_data_that_is_not_there_names_the_command(configure, tmp_path):
    cfg = configure("burgers1d", preset="tiny")
    assert data_path(cfg.data, cfg.data.tasks[0]) == tmp_path / "burgers1d_tiny.hdf5"
    made_by = f"{command('generate')} --task burgers1d --preset tiny --out {tmp_path}"
    with pytest.raises(DataError, match=re.escape(made_by)):
        open_dataset(cfg)


@pytest.mark.parametrize("count", [0, 2])
def test_one_task_where_one_is_wanted(count):
    cfg = config.from_dict({"data": {"tasks": [{"name": f"task{index}"} for index in range(count)]}})
    with pytest.raises(ConfigError, match="task"):
        open_dataset(cfg)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(fields=waves()[0][0]), r"\(trajectories, frames"),
        (dict(dt=0.0), "dt"),
        (dict(coefficients={"beta": np.ones(3)}), r"beta.*\(3,\)"),
        (dict(origin=(0.0, 0.0)), "origin"),
    ],
)
def test_arrays_that_do_not_fit_together(configure, change, message):
    arguments = {
        "fields": waves()[0],
        "dt": DT,
        "coefficients": None,
        "origin": (-1.0,),
        "spacing": (SPACING,),
    } | change
    with pytest.raises(DataError, match=message):
        from_arrays(configure(), **arguments)
