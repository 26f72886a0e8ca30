"""Which checkpoints stay, which one is the best, and what a library user's `save` refuses."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from ups_jax import build, init_state, load_run, restore, save
from ups_jax.config import Config, load
from ups_jax.core.errors import CheckpointError, ConfigError, DataError
from ups_jax.data import Dataset, batch_at
from ups_jax.runs.checkpoint import Checkpoints
from ups_jax.runs.checksums import find_damage
from ups_jax.training.build import abstract_state
from ups_jax.training.state import TrainState, create_train_state

SMALL = ["operator.spectral.depth=1", "operator.spectral.hidden_dim=8", "optimizer={name: adamw, lr: 1e-3}"]
# The state of each configuration is compiled once.
STATES: dict[tuple[str, ...], TrainState] = {}


def new_state(waves: Dataset, *overrides: str) -> tuple[Config, TrainState]:
    """A small configuration, and the state that its training begins with."""
    cfg = load("configs/tiny.yaml", [*SMALL, *overrides])
    if overrides not in STATES:
        model, tx = build(cfg, waves)
        STATES[overrides] = init_state(model, tx, batch_at(waves, cfg, "operator", 0), jax.random.key(0))
    return cfg, STATES[overrides]


@pytest.fixture
def small(waves: Dataset) -> Config:
    return new_state(waves)[0]


@pytest.fixture
def state(waves: Dataset) -> TrainState:
    return new_state(waves)[1]


@pytest.fixture(scope="module")
def few_arrays() -> TrainState:
    """The state of a model of one array, which is saved and read in a moment."""
    return create_train_state({"kernel": jnp.arange(6.0)}, optax.adam(0.1), jax.random.key(0))


def at(state: TrainState, step: int) -> TrainState:
    return replace(state, step=jnp.asarray(step, jnp.int32))


@pytest.mark.parametrize(
    ("validations", "kept", "best"),
    [
        ([0.1, 0.2, 0.3, 0.4], [0, 2, 3], 0),
        ([0.3, 0.1, 0.2], [1, 2], 1),
        ([0.1, float("nan"), 0.3, 0.4, 0.5], [0, 3, 4], 0),
        ([0.3, 0.1, float("nan"), float("inf")], [1, 2, 3], 1),
        ([0.2, None, None, None], [0, 2, 3], 0),
    ],
)
def test_the_best_and_the_latest_stay(
    few_arrays: TrainState, tmp_path: Path, validations: list[float | None], kept: list[int], best: int
) -> None:
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        for step, validation in enumerate(validations):
            checkpoints.save(at(few_arrays, step), {}, validation=validation)
            checkpoints.wait()
        assert checkpoints.steps() == kept
        assert checkpoints.best_step() == best
        best_validation = validations[best]
        assert (
            best_validation is not None and checkpoints.step_with_validation(float(np.float32(best_validation))) == best
        )
        assert checkpoints.step_with_validation(0.75) is None


def test_a_save_is_sealed_when_it_is_committed(few_arrays: TrainState, tmp_path: Path) -> None:
    """Nobody has to wait for it or save again: a process that is killed at once leaves a sealed checkpoint."""
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(at(few_arrays, 3), {}, validation=0.5)
        deadline = time.monotonic() + 60
        while not (tmp_path / "c" / "3").exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        shutil.copytree(tmp_path / "c", tmp_path / "killed")
    assert find_damage(tmp_path / "killed" / "3") is None
    arrays = next((tmp_path / "killed" / "3" / "state" / "ocdbt.process_0" / "d").glob("*"))
    arrays.write_bytes(arrays.read_bytes()[:-1])
    assert str(find_damage(tmp_path / "killed" / "3")).endswith("differs from its checksum")


@pytest.mark.parametrize("content", [b"", b"true"])
def test_a_commit_that_cannot_be_read_is_set_aside_where_there_is_another(
    few_arrays: TrainState, tmp_path: Path, content: bytes
) -> None:
    with Checkpoints(tmp_path / "c") as checkpoints:
        for step in (3, 4):
            checkpoints.save(at(few_arrays, step), {}, validation=0.5)
    (tmp_path / "c" / "4" / "_CHECKPOINT_METADATA").write_bytes(content)
    # orbax refuses the folder, or the seal the step: which, depends on what is damaged.
    with pytest.raises(CheckpointError), Checkpoints(tmp_path / "c", read_only=True) as checkpoints:
        checkpoints.restore(4, few_arrays)
    messages: list[str] = []
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.steps() == [3]
        restored = checkpoints.restore_latest(few_arrays, lambda meta: None, messages.append)
    assert restored is not None and int(restored.step) == 3
    assert any(line.endswith("damaged-4") for line in messages) and (tmp_path / "c" / "damaged-4").is_dir()
    (tmp_path / "c" / "3" / "_CHECKPOINT_METADATA").write_bytes(content)
    with pytest.raises(CheckpointError), Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.restore_latest(few_arrays, lambda meta: None, messages.append)
    assert (tmp_path / "c" / "3").is_dir()


@pytest.mark.parametrize("error", [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")])
def test_memory_that_runs_out_says_nothing_of_a_checkpoint(
    few_arrays: TrainState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It is not set aside as a damaged one would be."""

    def fail(*args: object, **kwargs: object) -> None:
        raise error

    with Checkpoints(tmp_path / "c") as checkpoints:
        for step in (3, 4):
            checkpoints.save(at(few_arrays, step), {}, validation=0.5)
        checkpoints.wait()
        with monkeypatch.context() as patch, pytest.raises(type(error)):
            patch.setattr(ocp.CheckpointManager, "restore", fail)
            checkpoints.restore_latest(few_arrays, lambda meta: None, lambda line: None)
        restored = checkpoints.restore_latest(few_arrays, lambda meta: None, lambda line: None)
    assert restored is not None and int(restored.step) == 4 and not list((tmp_path / "c").glob("damaged-*"))


def test_a_saved_run_comes_back_and_is_not_written_over(
    state: TrainState, small: Config, waves: Dataset, tmp_path: Path
) -> None:
    save(tmp_path / "run", at(state, 3), small, waves)
    again = restore(tmp_path / "run", state)
    assert int(again.step) == 3
    jax.tree.map(np.testing.assert_array_equal, again.params, state.params)
    with pytest.raises(ConfigError, match="step 3"):
        save(tmp_path / "run", at(state, 3), small, waves)
    with pytest.raises(ConfigError, match="another configuration"):
        save(tmp_path / "run", at(state, 4), replace(small, seed=99), waves)


def test_a_loaded_run_refuses_what_it_cannot_know(
    state: TrainState, small: Config, waves: Dataset, tmp_path: Path
) -> None:
    save(tmp_path / "run", state, small, waves)
    run = load_run(tmp_path / "run")
    start = waves.trajectories("test").fields[:, 0]
    coefficients = {coefficient.name: 0.5 for coefficient in waves.task.coefficients}
    assert run.rollout(start, 3, params=coefficients).shape == (len(start), 3, 32, 1)
    for arguments in (
        {"dt": 0.1},
        {"params": coefficients | {"mu": 1.0}},
        {"params": dict.fromkeys(coefficients, np.nan)},
    ):
        with pytest.raises(DataError):
            run.rollout(start, 3, **({"params": coefficients} | arguments))
    with pytest.raises(DataError, match="shape"):
        run.rollout(start[:, ::2], 3, params=coefficients)
    with pytest.warns(UserWarning, match="training mean"):
        run.rollout(start, 3)


def test_a_run_with_context_takes_and_feeds_back_that_many_frames(waves: Dataset, tmp_path: Path) -> None:
    cfg, state = new_state(waves, "data.context=2", "stages.operator.steps=1")
    save(tmp_path / "run", state, cfg, waves)
    run = load_run(tmp_path / "run")
    frames = waves.trajectories("test").fields[:, :2]
    coefficients = {coefficient.name: 0.5 for coefficient in waves.task.coefficients}
    np.testing.assert_allclose(run.rollout(frames, 2, params=coefficients)[:, 1], frames[:, 1], atol=1e-6)


@pytest.mark.parametrize(("saved", "read"), [(2, 1), (1, 2)])
def test_weights_of_a_model_with_other_parameters_are_refused(
    saved: int, read: int, waves: Dataset, tmp_path: Path
) -> None:
    depths: dict[int, tuple[str, ...]] = {1: (), 2: ("operator.spectral.depth=2",)}
    cfg, state = new_state(waves, *depths[saved])
    other = load("configs/tiny.yaml", [*SMALL, *depths[read]])
    with Checkpoints(tmp_path / "operator") as checkpoints:
        checkpoints.save(state, {}, validation=None)
        checkpoints.wait()
    with Checkpoints(tmp_path / "operator", read_only=True) as checkpoints:
        same = checkpoints.restore_weights(0, abstract_state(cfg, waves.task, "operator"))
        assert all(map(np.array_equal, jax.tree.leaves(same.params), jax.tree.leaves(state.params)))
        with pytest.raises(CheckpointError):
            checkpoints.restore_weights(0, abstract_state(other, waves.task, "operator"))
