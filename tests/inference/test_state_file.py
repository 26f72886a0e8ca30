"""Rollouts into files: what is written is what the run predicts, for any batch and length, and it opens anywhere."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import imageio.v3 as iio
import imageio_ffmpeg
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray
from rich.console import Console

from ups_jax import load_run
from ups_jax.cli.predict import RolloutRequest, write_rollout
from ups_jax.config import Config
from ups_jax.core.errors import ConfigError, DataError, DivergedError, Stopped
from ups_jax.core.task import Statistics, Task
from ups_jax.data.sources.pdebench_tensor import TensorSource
from ups_jax.evaluation.evaluate_run import evaluation_config
from ups_jax.evaluation.plots.films import write_images
from ups_jax.inference.chunked_rollout import ChunkedRollout
from ups_jax.inference.initial_state import InitialState
from ups_jax.inference.state_file import StateFile
from ups_jax.inference.trained_model import TrainedModel
from ups_jax.rollout.correction import Correction, every_n

NU = 0.01


@pytest.fixture(scope="module")
def run(saved_run: Path) -> TrainedModel:
    return load_run(saved_run)


@pytest.fixture(scope="module")
def cfg(saved_run: Path, data_root: Path) -> Config:
    return evaluation_config(saved_run, [f"data.root={data_root}"])


@pytest.fixture(scope="module")
def initial() -> np.ndarray:
    """Smooth fields of five samples on the run's 64 points, of the size of its data."""
    x, rng = np.arange(64) / 64 * 2 * np.pi, np.random.default_rng(0)
    waves = [np.sin(k * x + rng.uniform(0, 6, (5, 1))) / k for k in (1, 2, 3)]
    return 0.3 * np.sum(waves, 0).astype(np.float32)


Predict = Callable[..., str]


@pytest.fixture(scope="module")
def rolled_out(saved_run: Path, cfg: Config, initial: np.ndarray) -> Predict:
    """Roll out the five samples into out.hdf5 of a folder; what was printed."""

    def call(folder: Path, correction: Correction | None = None, **changes: Any) -> str:
        np.save(folder / "u0.npy", initial)
        wanted = RolloutRequest(
            input=str(folder / "u0.npy"), steps=20, output=folder / "out.hdf5", params={"nu": NU}, overwrite=True
        )
        output = io.StringIO()
        write_rollout(
            saved_run, cfg, replace(wanted, **changes), console=Console(file=output, width=200), correction=correction
        )
        return output.getvalue()

    return call


@pytest.fixture(scope="module")
def predicted(rolled_out: Predict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of 20 steps of the five samples, which no test may change."""
    folder = tmp_path_factory.mktemp("predicted")
    rolled_out(folder)
    return folder / "out.hdf5"


@pytest.fixture
def predict(rolled_out: Predict, tmp_path: Path) -> Predict:
    """Roll out into the test's own folder."""
    return partial(rolled_out, tmp_path)


def tensor(path: Path) -> np.ndarray:
    with h5py.File(path, locking=False) as file:
        return file["tensor"][:]


def test_the_file_holds_the_given_frames_and_the_runs_own_rollout_whatever_the_batch(
    predict: Predict, predicted: Path, run: TrainedModel, initial: np.ndarray, tmp_path: Path
) -> None:
    states = tensor(predicted)
    assert states.shape == (5, 21, 64)
    np.testing.assert_array_equal(states[:, 0], initial)
    expected = run.rollout(initial[..., None], 20, params={"nu": NU})[..., 0]
    np.testing.assert_allclose(states[:, 1:], expected, atol=2e-5)
    assert np.abs(states[:, -1] - initial).max() > 0.02
    predict(batch_size=2, steps=37)
    np.testing.assert_allclose(tensor(tmp_path / "out.hdf5")[:, :21], states, atol=2e-5)


def test_any_number_of_steps_and_samples_is_one_compilation(run: TrainedModel, initial: np.ndarray) -> None:
    stepper = ChunkedRollout(model=run.model, weights=run.weights)
    whole = run.rollout(initial[..., None], 40, params={"nu": NU})
    for count, steps in ((2, 3), (5, 40), (3, 17)):
        cond = np.full((count, 1), NU, np.float32)
        pieces = stepper.iter_chunks(initial[:count, None, :, None], cond, np.ones_like(cond), steps, 2)
        frames = np.full((count, steps, 64, 1), np.nan)
        for piece in pieces:
            frames[piece.rows, piece.first_frame : piece.first_frame + piece.frames.shape[2]] = piece.frames[0]
        np.testing.assert_allclose(frames, whole[:count, :steps], atol=2e-5)
    # A lone sample at the end of a batch of two is filled up, and the last piece is cut.
    assert stepper.compilation_count() == 1


def test_xarray_opens_it_with_coordinates_that_select(predicted: Path) -> None:
    expected = tensor(predicted)[3, 5]
    with xarray.open_dataset(predicted, engine="h5netcdf") as states:
        assert states["tensor"].dims == ("trajectory-coordinate", "t-coordinate", "x-coordinate")
        np.testing.assert_allclose(states["t-coordinate"], 0.05 * np.arange(21))
        np.testing.assert_allclose(states["x-coordinate"], -1 + np.arange(64) / 32)
        chosen = states["tensor"].sel({"trajectory-coordinate": 3}).sel({"t-coordinate": 0.26}, method="nearest")
        np.testing.assert_array_equal(chosen, expected)


def test_the_file_says_where_it_comes_from_and_is_data_again(
    predict: Predict, predicted: Path, run: TrainedModel, saved_run: Path, tmp_path: Path
) -> None:
    with h5py.File(predicted) as file:
        attributes = dict(file.attrs)
    assert attributes["run"] == str(saved_run) and attributes["checkpoint"] == "checkpoints/operator/0"
    assert (attributes["checkpoint_step"], attributes["given_frames"], attributes["dt"]) == (0, 1, run.task.dt)
    assert attributes["task"] == "burgers1d" and json.loads(attributes["params"]) == {"nu": [NU]}
    assert (attributes["status"], attributes["checkpoint_digest"]) == ("complete", run.digest)
    assert attributes["version"].startswith("ups_jax ")
    source = TensorSource(predicted)
    assert (source.trajectories, source.frames, source.grid.dt) == (5, 21, pytest.approx(0.05))
    assert source.coefficient_names() == ("nu",)
    # Its first frames are given frames: the rollout of a prediction's file is the prediction.
    predict(input=str(predicted), params={}, output=tmp_path / "again.hdf5")
    np.testing.assert_array_equal(tensor(tmp_path / "again.hdf5"), tensor(predicted))


def test_another_coefficient_gives_other_states_and_one_that_is_missing_is_told(
    predict: Predict, predicted: Path, tmp_path: Path
) -> None:
    predict(params={"nu": 10 * NU})
    assert np.abs(tensor(tmp_path / "out.hdf5") - tensor(predicted)).max() > 1e-4
    assert "coefficient nu is not given" in predict(params={})


def test_a_test_trajectory_is_known_with_its_coefficient_and_its_error_is_told(
    predict: Predict, run: TrainedModel, cfg: Config, tmp_path: Path
) -> None:
    from ups_jax.data import open_dataset

    printed = predict(input="test:3", params={}, steps=25)
    trajectories = open_dataset(cfg, run.task).trajectories("test")
    with h5py.File(tmp_path / "out.hdf5") as file:
        states, number, nu = file["tensor"][0], file["trajectory-coordinate"][0], file["parameters/nu"][0]
    assert (number, nu) == (trajectories.ids[3], pytest.approx(trajectories.cond[3, 0]))
    truth = trajectories.fields[3, :, :, 0]
    np.testing.assert_array_equal(states[0], truth[0])
    error = np.sqrt(np.square(states[1:21] - truth[1:]).mean(1) / np.square(truth[1:]).mean(1))
    assert re.search(f"nrmse .*{error.mean():.3g}.*20 frames", printed)
    assert f"{error[-1]:.3g} nrmse" in printed


def add_noise(key, window, pred, cond):
    return pred + 0.1 * jax.random.normal(key, pred.shape)


NOISE = Correction(corrector=add_noise, when=every_n(2))


def test_an_ensemble_has_a_row_a_member_and_the_seed_decides(predict: Predict, tmp_path: Path) -> None:
    printed = predict(NOISE, input="test:1", members=4, params={})
    with h5py.File(tmp_path / "out.hdf5") as file:
        assert file["member-coordinate"][:].tolist() == [0, 1, 2, 3]
        assert len(set(file["trajectory-coordinate"][:].tolist())) == 1
    first = tensor(tmp_path / "out.hdf5")
    np.testing.assert_allclose(first[1:, :2], np.repeat(first[:1, :2], 3, 0), atol=1e-5)
    assert (np.abs(first[1:, 2] - first[0, 2]).max(1) > 0.05).all()
    for name in ("crps", "spread_skill", "coverage_50", "coverage_90", "decorrelation_time", "mean of the members"):
        assert name in printed
    predict(NOISE, input="test:1", members=4, params={})
    np.testing.assert_array_equal(tensor(tmp_path / "out.hdf5"), first)
    predict(NOISE, input="test:1", members=4, params={}, seed=1)
    assert np.abs(tensor(tmp_path / "out.hdf5") - first).max() > 0.05
    predict(NOISE, members=2)
    with h5py.File(tmp_path / "out.hdf5") as file:
        assert file["trajectory-coordinate"][:].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        assert file["member-coordinate"][:].tolist() == [0, 1] * 5


def test_members_without_a_corrector_are_refused(predict: Predict, run: TrainedModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--members 4"):
        predict(members=4)
    assert not (tmp_path / "out.hdf5").exists()
    with pytest.raises(ValueError, match="4"):
        ChunkedRollout(model=run.model, weights=run.weights, members=4)


def test_a_frame_that_is_not_finite_ends_the_rollout_and_the_finite_ones_are_kept(
    predict: Predict, predicted: Path, tmp_path: Path
) -> None:
    """The second sample is lost at the 18th step, and with it the rows of a file that has frames of all."""
    whole = tensor(predicted)[:, :18]

    def lost(number, window, pred, cond):
        return (number == 17) & (jnp.arange(len(pred)) == 1)

    correction = Correction(corrector=lambda key, window, pred, cond: pred * jnp.nan, when=lost)
    with pytest.raises(DivergedError, match=r"frame 18 of 60.*17") as raised:
        predict(correction, steps=60)
    assert raised.value.exit_code == 5
    states = tensor(tmp_path / "out.hdf5")
    assert states.shape == (5, 18, 64)
    np.testing.assert_allclose(states, whole, atol=2e-5)
    with h5py.File(tmp_path / "out.hdf5") as file:
        assert file.attrs["status"] == "diverged: frame 18 is not finite" and len(file["t-coordinate"]) == 18


def test_an_interruption_leaves_what_was_written_under_the_temporary_name(
    predict: Predict, predicted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = StateFile.write, []

    def interrupted(self: StateFile, rows: slice, first: int, frames: np.ndarray) -> None:
        # Three pieces of the first 16 frames (two samples each, and one), then one of the next.
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(first)
        write(self, rows, first, frames)

    monkeypatch.setattr(StateFile, "write", interrupted)
    with pytest.raises(Stopped, match=r"out\.hdf5\.partial.*16 of 60") as raised:
        predict(steps=60, batch_size=2)
    assert raised.value.exit_code == 75
    assert not (tmp_path / "out.hdf5").exists()
    np.testing.assert_allclose(tensor(tmp_path / "out.hdf5.partial"), tensor(predicted)[:, :17], atol=2e-5)


def test_an_output_that_is_there_is_replaced_only_when_asked(predict: Predict, predicted: Path, tmp_path: Path) -> None:
    shutil.copy(predicted, tmp_path / "out.hdf5")
    with pytest.raises(ConfigError, match="--overwrite"):
        predict(steps=2, overwrite=False)
    assert tensor(tmp_path / "out.hdf5").shape[1] == 21
    predict(steps=2)
    assert tensor(tmp_path / "out.hdf5").shape[1] == 3
    assert [path.name for path in tmp_path.glob("*partial*")] == []


def test_mistakes_write_nothing(predict: Predict, tmp_path: Path) -> None:
    for changes, named in (({"dt": 0.1}, "0.1"), ({"params": {"mu": 1.0}}, "mu"), ({"input": "x.npy"}, "x.npy")):
        with pytest.raises(DataError, match=named):
            predict(**changes)
    assert [path.name for path in tmp_path.iterdir()] == ["u0.npy"]


def plate(channels: tuple[str, ...]) -> Task:
    ones = (1.0,) * len(channels)
    return Task(
        name="plate", channels=channels, axes=("x", "y"), shape=(8, 6), origin=(0.0, 0.0), spacing=(0.1, 0.2),
        periodic=(True, False), dt=0.5, statistics=Statistics(mean=ones, std=ones, delta_std=ones),
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:os.fork")
def test_channels_are_datasets_of_their_own_and_are_pictured_and_filmed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def written(name: str, channels: tuple[str, ...], count: int) -> tuple[Path, Task, np.ndarray]:
        """A file of two samples of `count` frames, its task, and the frames."""
        task, path = plate(channels), tmp_path / name
        frames = rng.normal(size=(2, count, 8, 6, len(channels))).astype(np.float32)
        axes = (0.1 * np.arange(8), 0.2 * np.arange(6))
        start = InitialState(name="any", fields=frames[:, :1], sample_ids=np.arange(2), coordinates=axes, time=2.0)
        file = StateFile(path, start, task, count - 1, 1, overwrite=False)
        file.write(slice(0, 2), 0, frames[None, :, 1:])
        file.finish(count - 1, {"status": "complete"})
        return path, task, frames

    path, task, frames = written("plate.hdf5", ("u", "v"), 5)
    with xarray.open_dataset(path, engine="h5netcdf") as states:
        assert set(states.data_vars) == {"u", "v"}
        np.testing.assert_array_equal(states["v"], frames[..., 1])
        np.testing.assert_allclose(states["t-coordinate"], 2 + 0.5 * np.arange(5))
    images = write_images(path, task, ["png"], truth=frames[0, :3])
    assert [path.name for path in images] == ["plate_u.png", "plate_v.png"]
    assert all(iio.imread(path).ndim == 3 for path in images)
    # Every frame of a film is drawn: of one channel and three frames, the last without a truth.
    path, task, frames = written("film.hdf5", ("u",), 3)
    films = write_images(path, task, ["gif", "mp4"], truth=frames[0, :2])
    assert [path.name for path in films] == ["film.gif", "film.mp4"]
    assert imageio_ffmpeg.count_frames_and_secs(str(films[1]))[0] == 3
    shown = iio.imread(films[0])
    assert shown.shape[:3] == (3, 400, 1440) and (shown[0] != shown[1]).any()
