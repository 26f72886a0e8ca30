"""A best checkpoint that is damaged while the newest is sound: who trains sets it aside, who reads is told what stands
for it."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from ups_jax import build, init_state, load_run, save, simulate
from ups_jax.config import Config, load
from ups_jax.core.errors import CheckpointError
from ups_jax.data import Dataset, batch_at, open_dataset
from ups_jax.evaluation.evaluate_run import evaluate_run
from ups_jax.runs.best_weights import best_weights
from ups_jax.runs.checkpoint import Checkpoints
from ups_jax.tracking import Writer
from ups_jax.trainer.console import log_end
from ups_jax.trainer.train import train
from ups_jax.training.build import abstract_state
from ups_jax.training.state import TrainState

# Step 4 is the best, step 5 the best of the others.
VALIDATIONS = {4: 0.1, 5: 0.2, 6: 0.4}
METRICS = Path("metrics") / "metrics"


def largest(folder: Path) -> Path:
    return max((folder / "state").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)


def flipped(folder: Path) -> None:
    content = bytearray(largest(folder).read_bytes())
    content[len(content) // 2] ^= 1
    largest(folder).write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flipped": flipped,
    "truncated": lambda folder: largest(folder).write_bytes(b""),
    "missing": lambda folder: largest(folder).unlink(),
    "metric missing": lambda folder: (folder / METRICS).unlink(),
    "metric is no JSON": lambda folder: (folder / METRICS).write_bytes(b"\xff{"),
    "metric is a list": lambda folder: (folder / METRICS).write_text("[1]"),
    "metric is a text": lambda folder: (folder / METRICS).write_text('{"validation": "a"}'),
    "metric of another name": lambda folder: (folder / METRICS).write_text('{"v": 0.1}'),
    "metric is worse": lambda folder: (folder / METRICS).write_text('{"validation": 0.9}'),
    "commit": lambda folder: (folder / "_CHECKPOINT_METADATA").write_bytes(b"true"),
}


@pytest.fixture(scope="module")
def cfg(data_root: Path) -> Config:
    short = ["stages.operator.steps=6", "evaluation.plots=false", "evaluation.bootstrap=2"]
    small = ["operator.spectral.depth=1", "operator.spectral.hidden_dim=8", "latent.dim=4", "optimizer.name=adamw"]
    return load("configs/tiny.yaml", [f"data.root={data_root}", *short, *small])


@pytest.fixture(autouse=True)
def shapes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shapes of a state, which are traced for each checkpoint that is read, are traced once for a configuration."""
    monkeypatch.setattr("ups_jax.runs.best_weights.abstract_state", abstract_state_once)


SHAPES: dict[str, Any] = {}


def abstract_state_once(config: Config, tasks: Any, stage: str) -> Any:
    key = repr((config, tasks, stage))
    if key not in SHAPES:
        SHAPES[key] = abstract_state(config, tasks, stage)
    return SHAPES[key]


# By the data's folder.
STATES: dict[str, tuple[Dataset, TrainState]] = {}


def first_state(cfg: Config) -> tuple[Dataset, TrainState]:
    """The data and the state that a training of `cfg` begins with, compiled once."""
    if cfg.data.root in STATES:
        return STATES[cfg.data.root]
    simulate.generate_missing(cfg)
    dataset = open_dataset(cfg)
    model, tx = build(cfg, dataset)
    state = init_state(model, tx, batch_at(dataset, cfg, "operator", 0), jax.random.key(0))
    STATES[cfg.data.root] = dataset, state
    return dataset, state


def saved(cfg: Config, run: Path, validations: dict[int, float]) -> None:
    dataset, state = first_state(cfg)
    for step, validation in validations.items():
        save(run, replace(state, step=jnp.int32(step)), cfg, dataset, validation=validation)


@pytest.fixture(scope="module")
def whole(cfg: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    saved(cfg, run, VALIDATIONS)
    assert best_weights(run, "operator").step == 4
    return run


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def folder(run: Path, step: int | str) -> Path:
    return run / "checkpoints" / "operator" / str(step)


def trained(cfg: Config, run: Path) -> str:
    out = StringIO()
    train(cfg, "operator", run, console=Console(file=out, width=1000))
    return out.getvalue()


@pytest.mark.parametrize("damage", DAMAGES)
def test_who_reads_takes_the_best_of_the_others_and_says_so(run: Path, damage: str) -> None:
    DAMAGES[damage](folder(run, 4))
    with pytest.warns(UserWarning, match=r"4: .*step 5"):
        assert best_weights(run, "operator").step == 5
    assert folder(run, 4).is_dir()


@pytest.mark.parametrize("damage", ["flipped", "missing", "metric is no JSON", "metric is worse"])
def test_who_trains_sets_it_aside_and_who_reads_is_told_ever_after(cfg: Config, run: Path, damage: str) -> None:
    DAMAGES[damage](folder(run, 4))
    bytes_before = {path: path.read_bytes() for path in folder(run, 4).rglob("*") if path.is_file()}
    output = trained(cfg, run)
    assert str(folder(run, 4)) in output and re.search("resumed .*step 6 of 6", output)
    assert not folder(run, 4).exists()
    aside = folder(run, "damaged-4")
    assert {aside / path.relative_to(folder(run, 4)): content for path, content in bytes_before.items()} == {
        path: path.read_bytes() for path in aside.rglob("*") if path.is_file()
    }
    # Told once by the training, and ever after by whoever uses the weights.
    assert "damaged" not in trained(cfg, run)
    with pytest.warns(UserWarning, match=r"step 4.*step 5"):
        assert best_weights(run, "operator").step == 5


def test_the_record_of_an_evaluation_is_of_the_step_that_was_measured(cfg: Config, run: Path) -> None:
    flipped(folder(run, 4))
    with pytest.warns(UserWarning, match="step 5"):
        values = evaluate_run(run, cfg, console=Console(quiet=True))
    with pytest.warns(UserWarning, match="step 5"):
        assert values["meta"]["checkpoint_digest"] == load_run(run).digest
    assert values["meta"]["steps"] == 5 and values["meta"]["checkpoint"] == "checkpoints/operator/5"


def test_a_better_one_that_is_saved_later_ends_the_warning(cfg: Config, run: Path) -> None:
    flipped(folder(run, 4))
    trained(cfg, run)
    record = json.loads((run / "run.json").read_text())
    assert record["stages"]["operator"]["set_aside"] == {"4": 0.1}
    saved(cfg, run, {7: 0.05})
    with warnings.catch_warnings(action="error"):
        assert best_weights(run, "operator").step == 7


@pytest.mark.parametrize("step", [5, 6])
def test_another_one_that_is_damaged_is_no_matter_to_who_reads(cfg: Config, run: Path, step: int) -> None:
    flipped(folder(run, step))
    with warnings.catch_warnings(action="error"):
        assert best_weights(run, "operator").step == 4
    output = trained(cfg, run)
    assert str(folder(run, step)) in output and folder(run, f"damaged-{step}").is_dir()
    with warnings.catch_warnings(action="error"):
        assert best_weights(run, "operator").step == 4


def test_where_none_is_sound_it_is_one_error_and_nothing_is_moved(cfg: Config, run: Path) -> None:
    (folder(run, 4) / METRICS).write_text("[1]")
    for step in (5, 6):
        flipped(folder(run, step))
    with pytest.raises(CheckpointError, match=r"\[4, 5, 6\]"):
        best_weights(run, "operator")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"none of the checkpoints"):
            trained(cfg, run)
    assert all(folder(run, step).is_dir() for step in VALIDATIONS)


def test_a_best_one_that_a_training_takes_away_meanwhile_is_not_told_as_damaged(
    run: Path, cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listed checkpoint disappears before it is read, because a better one was saved."""
    meta, calls = Checkpoints.meta, [0]

    def late(checkpoints: Checkpoints, step: int) -> dict:
        calls[0] += 1
        if calls[0] == 1:
            shutil.rmtree(folder(run, 4))
            saved(cfg, run, {7: 0.05})
        return meta(checkpoints, step)

    monkeypatch.setattr(Checkpoints, "meta", late)
    with warnings.catch_warnings(action="error"):
        assert best_weights(run, "operator").step == 7


class Heard(Writer):
    """Records the messages at the end of a stage."""

    def summary(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def alert(self, title: str, text: str, level: str = "INFO") -> None:
        self.text = text


def test_the_end_of_a_stage_is_told_of_the_best_one_on_disk(
    cfg: Config, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the metric of one step beside the number of another."""
    flipped(folder(run, 4))
    heard = Heard()

    def log_end_with_another_metric(writer, config, run, stage, checkpoints, state) -> None:  # type: ignore[no-untyped-def]
        best = replace(state.monitor, best_metric=jnp.float32(0.1))
        log_end(heard, config, run, stage, checkpoints, replace(state, monitor=best))

    monkeypatch.setattr("ups_jax.trainer.stage_run.log_end", log_end_with_another_metric)
    trained(cfg, run)
    about = heard.values["training"]["operator"]
    assert (about["best_step"], about["best_metric"]) == (5, 0.2)
    assert re.search(r"0\.2 .*step 5", heard.text)
