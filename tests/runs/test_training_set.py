"""Which trajectories a run was trained on: recognised in any file, refused for validation and test, and counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import CONFIGS
from rich.console import Console

from ups_jax import config
from ups_jax.config import Config, load
from ups_jax.core.errors import CheckpointError, ConfigError
from ups_jax.data import Dataset, Mixture, from_arrays, open_mixture
from ups_jax.runs.directory import RunDirectory
from ups_jax.runs.training_set import (
    TrainingSet,
    check_unseen,
    extend_training_set,
    read_training_set,
    recorded_training_set,
)
from ups_jax.runs.training_set import write_training_set as write
from ups_jax.trainer.preflight import preflight

QUIET = Console(quiet=True)
FIELDS = np.random.default_rng(0).normal(size=(20, 5, 8)).astype(np.float32)
OTHER = np.random.default_rng(1).normal(size=(4, 5, 8)).astype(np.float32)


def opened(fields: np.ndarray, seed: int = 0, **split: Any) -> Dataset:
    cfg = config.from_dict({"data": {"tasks": [{"name": "noise"}], "split": {"seed": seed, **split}}})
    return from_arrays(cfg, fields, 0.1)


def trained_on(dataset: Dataset) -> TrainingSet:
    return TrainingSet.of_dataset(dataset, dataset.fingerprint, dataset.splits.train)


def test_trajectories_are_recognised_at_any_place_in_any_file_and_in_any_length() -> None:
    dataset = opened(FIELDS)
    train, training_set = dataset.splits.train, trained_on(dataset)
    np.testing.assert_array_equal(training_set.trained_ids(dataset), train)
    order = np.random.default_rng(2).permutation(20)
    permuted_and_grown = np.concatenate([OTHER, FIELDS[order]])
    expected = 4 + np.flatnonzero(np.isin(order, train))
    np.testing.assert_array_equal(training_set.trained_ids(opened(permuted_and_grown)), expected)
    np.testing.assert_array_equal(training_set.trained_ids(opened(permuted_and_grown[:, :3])), expected)
    longer = np.concatenate([FIELDS, np.random.default_rng(3).normal(size=(20, 2, 8)).astype(np.float32)], axis=1)
    np.testing.assert_array_equal(training_set.trained_ids(opened(longer)), train)


def test_other_trajectories_are_not_recognised() -> None:
    training_set = trained_on(opened(FIELDS))
    changed = FIELDS.copy()
    # The same start with other coefficients goes on in another way.
    changed[:, 1:, 3] += 1e-3
    assert not len(training_set.trained_ids(opened(changed)))
    # So may a start with two equal frames.
    later = FIELDS.copy()
    later[:, 2:, 3] += 1e-3
    assert not len(training_set.trained_ids(opened(later)))
    # A constant state says nothing about where it comes from.
    still = np.concatenate([np.ones((3, 5, 8), np.float32), FIELDS])
    assert set(trained_on(opened(still)).trained_ids(opened(still)).tolist()).isdisjoint({0, 1, 2})


def stored(path: Path, dataset: Dataset, **entry: Any) -> RunDirectory:
    """A run directory with the record and the split of a run on this dataset."""
    run = RunDirectory(path)
    path.mkdir()
    run.write_record({"config": {}, "digests": {}, "stages": {"operator": entry}})
    run.write_split(Mixture(datasets=(dataset,)).split_record())
    return run


def mixture(dataset: Dataset) -> Mixture:
    return Mixture(datasets=(dataset,))


def test_a_run_passes_on_what_its_parents_were_trained_on(tmp_path: Path) -> None:
    parent, child, other = opened(FIELDS), opened(OTHER), opened(FIELDS, seed=3)
    runs = [RunDirectory(tmp_path / name) for name in ("a", "b")]
    inherited = None
    for run, dataset in zip(runs, (parent, child), strict=True):
        run.path.mkdir()
        write(run, extend_training_set(run, mixture(dataset), inherited=inherited))
        inherited = read_training_set(run, dataset.fingerprint, mixture(dataset))
    training_set = read_training_set(runs[1], child.fingerprint, mixture(other))
    assert training_set == TrainingSet.union([trained_on(parent), trained_on(child)])
    with pytest.raises(ConfigError, match=r"^--init-from: .*b was trained on 2 of 2 test trajectories") as error:
        check_unseen(training_set, mixture(other), runs[1], "--init-from")
    expected = {
        split: np.intersect1d(other.splits.ids(split), parent.splits.train).tolist()  # type: ignore[arg-type]
        for split in ("test", "val")
    }
    assert all(", ".join(map(str, ids)) in str(error.value) for ids in expected.values()) and all(expected.values())
    assert check_unseen(training_set, mixture(parent), runs[1], "--init-from") == []
    # The file is extended by the data of a later stage, and not written without a change.
    changed = runs[1].training_set_path.stat().st_mtime_ns
    write(runs[1], training_set)
    assert runs[1].training_set_path.stat().st_mtime_ns == changed
    write(runs[1], extend_training_set(runs[1], mixture(other), [child.fingerprint]))
    assert trained_on(other).hashes < read_training_set(runs[1], other.fingerprint, mixture(other)).hashes


def test_the_split_of_the_parent_is_the_remedy_where_it_fits(tmp_path: Path) -> None:
    dataset, other = opened(FIELDS), opened(FIELDS, seed=3)
    run = stored(tmp_path / "run", dataset)
    with pytest.raises(ConfigError, match=rf"data\.split\.path={run.split_path}"):
        check_unseen(trained_on(dataset), mixture(other), run, "--init-from")
    listed = replace(other, splits=dataset.splits)
    assert check_unseen(trained_on(dataset), mixture(listed), run, "--init-from") == []
    grown = opened(np.concatenate([OTHER, FIELDS]), seed=3)
    with pytest.raises(ConfigError, match="or start from other weights") as error:
        check_unseen(trained_on(dataset), mixture(grown), run, "--init-from")
    assert "split.json" not in str(error.value)


def test_the_training_set_of_an_earlier_version_follows_from_its_fingerprint_or_is_unknown(tmp_path: Path) -> None:
    dataset, other = opened(FIELDS), opened(FIELDS, seed=3)
    former = dataset.former_fingerprint(dataset.splits)
    run = stored(tmp_path / "run", dataset)
    for data in (dataset, other):
        training_set = read_training_set(run, former, mixture(data))
        assert not training_set.unknown_runs and training_set.hashes == trained_on(dataset).hashes
    with pytest.raises(ConfigError, match="--init-from"):
        check_unseen(training_set, mixture(other), run, "--init-from")
    # Other data, and a run that started from another one.
    for training_set in (
        read_training_set(run, former, mixture(opened(OTHER))),
        read_training_set(stored(tmp_path / "child", dataset, parent={"run": str(run.path)}), former, mixture(dataset)),
    ):
        assert training_set.unknown_runs == {str(run.path)}
        (note,) = check_unseen(training_set, mixture(opened(OTHER)), run, "--init-from")
        assert str(run.path) in note and "cannot be checked" in note


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    run = stored(tmp_path / "run", opened(FIELDS))
    for content in ("{", "[]", '{"hashes": []}', '{"fingerprints": 1, "hashes": [], "start_hashes": []}'):
        run.training_set_path.write_text(content)
        with pytest.raises(CheckpointError, match=r"training_set\.json: .*restore it from a copy"):
            read_training_set(run, "2-", mixture(opened(FIELDS)))


def on_data(data_root: Path, *overrides: str) -> Config:
    return load(CONFIGS / "tiny.yaml", [f"data.root={data_root}", *overrides])


def test_init_from_is_refused_if_its_run_was_trained_on_test_trajectories(
    saved_run: Path, data_root: Path, tmp_path: Path
) -> None:
    run, cfg = RunDirectory(tmp_path / "run"), on_data(data_root, "data.split.seed=5")
    with pytest.raises(ConfigError, match=r"--init-from: .* of 4 test trajectories") as error:
        preflight(cfg, "operator", run, init_from=saved_run, console=QUIET)
    assert "\n" not in str(error.value) and not run.path.exists()
    training_set = recorded_training_set(RunDirectory(saved_run))
    assert training_set is not None and len(training_set.hashes) == 32
    data = open_mixture(on_data(data_root))
    assert check_unseen(training_set, data, RunDirectory(saved_run), "--init-from") == []


def test_encode_is_refused_if_the_codec_was_trained_on_test_trajectories(
    main: Any, saved_run: Path, data_root: Path, tmp_path: Path
) -> None:
    arguments = ["--run-dir", str(saved_run), "--out", str(tmp_path / "latents")]
    result = main("encode_latents.py", *arguments, f"data.root={data_root}", "data.split.seed=5")
    assert result.returncode == 2 and "--run-dir" in result.stderr and "test trajectories" in result.stderr
    assert not (tmp_path / "latents").exists()
