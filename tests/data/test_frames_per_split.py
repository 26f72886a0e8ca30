"""Training, validation and test files may have different numbers of frames; the files of one split may not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from travelling_waves import DT, waves

from ups_jax.core.errors import DataError
from ups_jax.data import as_mixture, batch_at, open_dataset
from ups_jax.data.sources import open_file
from ups_jax.data.sources.base import frame_counts

FRAMES = {"train": 9, "val": 12, "test": 15}
ON_DISK = {"loader": {"memory_gib": 0}}


def fields_of(role: str) -> np.ndarray:
    seed = list(FRAMES).index(role)
    return waves(trajectories=12 if role == "train" else 4, frames=FRAMES[role], seed=10 + seed)[0]


@pytest.fixture
def paths(write: Any) -> dict[str, str]:
    return {role: str(write(fields_of(role), f"{role}.hdf5")) for role in FRAMES}


@pytest.mark.parametrize("data", [{}, ON_DISK])
def test_each_split_has_the_frames_of_its_file(configure: Any, paths: dict[str, str], data: dict[str, Any]) -> None:
    dataset = open_dataset(configure(path=paths, data=data))
    for role, frames in FRAMES.items():
        assert dataset.frames(role) == frames  # type: ignore[arg-type]
        trajectories = dataset.trajectories(role)  # type: ignore[arg-type]
        np.testing.assert_array_equal(trajectories.fields[..., 0], fields_of(role))
        np.testing.assert_allclose(trajectories.time, DT * np.arange(frames), rtol=1e-6)
        stored = dataset.stored_trajectories(role)  # type: ignore[arg-type]
        np.testing.assert_array_equal(stored.fields[np.arange(len(stored.ids))], trajectories.fields)
        assert len(stored.time) == frames
    # Frames that a shorter trajectory lacks are no frames that repeat.
    assert not [note for note in dataset.notes if "repeated" in note or "zeros" in note]
    assert len(dataset.relative_change) == FRAMES["train"] - 1


def test_statistics_and_batches_are_those_of_the_training_file(configure: Any, paths: dict[str, str]) -> None:
    cfg = configure(path=paths, conserved=["u"], channels=["u"])
    dataset = open_dataset(cfg)
    on_disk = open_dataset(configure(path=paths, conserved=["u"], channels=["u"], data=ON_DISK))
    assert on_disk.fingerprint == dataset.fingerprint and on_disk.task == dataset.task
    expected = fields_of("train").astype(np.float64)
    np.testing.assert_allclose(dataset.task.statistics.mean, expected.mean(), atol=1e-7)
    np.testing.assert_allclose(dataset.task.statistics.std, expected.std(), rtol=1e-6)
    changes = np.sqrt(np.mean(np.diff(expected, axis=1) ** 2))
    np.testing.assert_allclose(dataset.task.statistics.delta_std, changes, rtol=1e-6)
    times = np.concatenate([batch_at(as_mixture(dataset), cfg, "operator", step).time.ravel() for step in range(12)])
    assert times.max() == pytest.approx(DT * (FRAMES["train"] - 1))


def test_trajectories_without_content_are_listed_for_each_length(
    configure: Any, write: Any, paths: dict[str, str]
) -> None:
    fields = fields_of("test")
    fields[1] = 0
    fields[2, 5:] = fields[2, 5]
    notes = open_dataset(configure(path=paths | {"test": str(write(fields, "bad.hdf5"))})).notes
    # Numbers count over the files: 12 training and 4 validation trajectories come first.
    assert any("only zeros" in note and "1 of 20 trajectories: 17;" in note for note in notes)
    assert any("repeated" in note and "1 of 20 trajectories: 18 (from frame 5);" in note for note in notes)


def test_files_of_one_split_with_different_numbers_of_frames_are_refused(
    configure: Any, write: Any, paths: dict[str, str]
) -> None:
    longer = str(write(waves(trajectories=4, frames=11, seed=5)[0], "longer.hdf5"))
    for path in (paths | {"train": [paths["train"], longer]}, [paths["train"], longer]):
        with pytest.raises(DataError, match=r"longer\.hdf5: has 11 frames.*train\.hdf5 has 9.*path=\{train") as error:
            open_dataset(configure(path=path))
        assert "\n" not in str(error.value)


def test_a_longer_copy_of_a_training_trajectory_is_refused(configure: Any, write: Any, paths: dict[str, str]) -> None:
    for role in ("val", "test"):
        copies = waves(trajectories=12, frames=FRAMES[role], seed=10)[0][4:8]
        copies = np.concatenate([waves(trajectories=2, frames=FRAMES[role], seed=30)[0], copies])
        with pytest.raises(DataError, match=f"4 {role} trajectories are shorter or longer copies of training"):
            open_dataset(configure(path=paths | {role: str(write(copies, "copies.hdf5"))}))


def test_a_split_that_is_too_short_is_refused(configure: Any, write: Any, paths: dict[str, str]) -> None:
    short = str(write(waves(trajectories=3, frames=2, seed=8)[0], "short.hdf5"))
    settings = {"rollout_horizon": 2, "pushforward": 0}
    # One step can be predicted, although a training window has one frame more.
    assert open_dataset(configure(path=paths | {"test": short}, training=settings)).frames("test") == 2
    with pytest.raises(DataError, match=r"has 2 frames per trajectory, but a window needs 3"):
        open_dataset(configure(path=paths | {"train": short}, training=settings))
    with pytest.raises(DataError, match=r"the test trajectories have 2 frames, but a prediction needs 3"):
        open_dataset(configure(path=paths | {"test": short}, training=settings, data={"context": 2}))


def test_one_file_has_one_number_of_frames(paths: dict[str, str]) -> None:
    np.testing.assert_array_equal(frame_counts(open_file(paths["val"], "transient")), [12] * 4)
