"""Runs with a held-out fold: what each stage really reads, resuming to the bit, and what would undo the holding out."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections import defaultdict
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import CONFIGS
from rich.console import Console
from shared_correctors import sharing

from ups_jax import simulate
from ups_jax.config import Config, load
from ups_jax.core.errors import ConfigError
from ups_jax.core.rng import philox_key
from ups_jax.data import open_dataset, windows
from ups_jax.data.splits import split_record
from ups_jax.pipeline.train_all_stages import is_finished, train_all
from ups_jax.runs.best_weights import best_weights
from ups_jax.runs.checkpoint import Checkpoints
from ups_jax.runs.directory import RunDirectory
from ups_jax.trainer.preflight import check_init_fold
from ups_jax.trainer.train import train
from ups_jax.training.build import abstract_state

QUIET = Console(quiet=True)
SHARE = 0.25
SETTINGS = [
    f"diffusion.fold={SHARE}",
    "optimizer={name: adamw, lr: 3e-3}",
    "scheduler={name: constant, warmup: 0}",
    "training.batch_size=8",
    "training.eval_every=0.25",
    "operator.spectral.depth=1",
    "diffusion.num_steps=2",
    "stages.diffusion_residual.steps=4",
    "stages.consistency_distill={steps: 2, tau_schedule: [2, 1]}",
    "evaluation={enabled: false, plots: false, bootstrap: 10}",
]
PREDICTORS = {"tiny": "operator", "tiny_steady": "steady_prior"}
CORRECTORS = ("diffusion_residual", "consistency_distill")

shared_programs = pytest.fixture(scope="module", autouse=True)(sharing)


def config(name: str, data_root: Path, *more: str) -> Config:
    overrides = [*SETTINGS, f"stages.{PREDICTORS[name]}.steps=6", f"data.root={data_root}", *more]
    return load(CONFIGS / f"{name}.yaml", overrides)


def recorded(cfg: Config, patch: pytest.MonkeyPatch) -> dict[str, set[int]]:
    """The trajectories that each stage draws, from now on."""
    drawn_ids: dict[str, set[int]] = defaultdict(set)
    names = {philox_key(cfg.seed, f"data/{stage}"): stage for stage in (*PREDICTORS.values(), *CORRECTORS)}
    draw = windows.draw_windows

    def recording_draw(plan: windows.WindowPlan, n: int, count: int = 1) -> windows.WindowDraw:
        drawn = draw(plan, n, count)
        drawn_ids[names[plan.key]] |= set(drawn.ids.tolist())
        return drawn

    patch.setattr(windows, "draw_windows", recording_draw)
    return drawn_ids


@pytest.fixture(scope="module", params=PREDICTORS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def run(name: str, data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, dict, str]:
    """A run of all stages, the trajectories that each has drawn, and the console output."""
    cfg, console_output = config(name, data_root), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        drawn = recorded(cfg, patch)
        path = tmp_path_factory.mktemp("runs") / name
        return train_all(cfg, path, console=Console(file=console_output, width=200)), drawn, console_output.getvalue()


def test_no_stage_of_a_run_reads_of_the_other_side(
    run: tuple[RunDirectory, dict, str], name: str, data_root: Path
) -> None:
    _, drawn, output = run
    train_split = set(open_dataset(config(name, data_root)).splits.train.tolist())
    assert set(drawn) == {PREDICTORS[name], *CORRECTORS}
    predictor, fold = drawn[PREDICTORS[name]], drawn["diffusion_residual"] | drawn["consistency_distill"]
    size = round(SHARE * len(train_split))
    assert fold and predictor and not fold & predictor and fold | predictor <= train_split
    assert len(fold) <= size and len(predictor) <= len(train_split) - size
    for stage, count in ((PREDICTORS[name], len(train_split) - size), *((stage, size) for stage in CORRECTORS)):
        assert re.search(rf"fold .*{stage}.*{count} of .*{len(train_split)}.*diffusion\.fold={SHARE}", output)


def test_a_resumed_corrector_reads_what_the_whole_one_does_and_is_it_to_the_bit(
    run: tuple[RunDirectory, dict, str], name: str, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, stage = config(name, data_root), "consistency_distill"
    again = RunDirectory(shutil.copytree(run[0].path, tmp_path / "run"))
    shutil.rmtree(again.checkpoint_folder(stage))
    train(config(name, data_root, f"stages.{stage}.steps=1"), stage, again.path, console=QUIET)
    drawn = recorded(cfg, monkeypatch)
    train(cfg, stage, again.path, console=QUIET)
    assert drawn[stage] and drawn[stage] <= run[1][stage] and set(drawn) == {stage}
    task, states = open_dataset(cfg).task, []
    for place in (again, run[0]):
        with Checkpoints(place.checkpoint_folder(stage), read_only=True) as checkpoints:
            states.append(jax.tree.leaves(checkpoints.restore(2, abstract_state(cfg, task, stage)).params))
    for one, other in zip(*states, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_predictor_that_was_fitted_to_another_fold_is_refused(
    run: tuple[RunDirectory, dict, str], name: str, data_root: Path, share: float
) -> None:
    other = config(name, data_root, f"diffusion.fold={share}")
    assert not any(is_finished(run[0], other, stage) for stage in (PREDICTORS[name], *CORRECTORS))
    with pytest.raises(ConfigError, match=r"diffusion\.fold.*0\.25") as error:
        train(other, "diffusion_residual", run[0].path, console=QUIET)
    assert "\n" not in str(error.value)


def test_a_fold_of_other_data_than_the_predictor_s_is_refused(name: str, data_root: Path, tmp_path: Path) -> None:
    """Which file lists the split is no part of the configuration, and what it lists may be something else by now."""
    cfg = config(name, data_root, "data.split.method=listed", f"data.split.path={tmp_path / 'split.json'}")
    simulate.generate_missing(config(name, data_root))
    dataset = open_dataset(config(name, data_root))
    parts = split_record(dataset.splits, dataset.source.trajectories)
    (tmp_path / "split.json").write_text(json.dumps(parts))
    train(cfg, PREDICTORS[name], tmp_path / "run", console=QUIET)
    parts["train"][0], parts["val"][0] = parts["val"][0], parts["train"][0]
    (tmp_path / "split.json").write_text(json.dumps(parts))
    with pytest.raises(ConfigError, match=rf"{PREDICTORS[name]}.*--run-dir") as error:
        train(cfg, "diffusion_residual", tmp_path / "run", console=QUIET)
    assert "\n" not in str(error.value)


def test_weights_that_were_fitted_to_what_is_held_out_are_refused(
    run: tuple[RunDirectory, dict, str], name: str, data_root: Path, tmp_path: Path
) -> None:
    cfg, other = config(name, data_root), config(name, data_root, "diffusion.fold=0.5")
    with pytest.raises(ConfigError, match=r"--init-from.*diffusion\.fold=0\.25.*fold=0\.5") as error:
        train(other, PREDICTORS[name], tmp_path / "other", init_from=run[0].path, console=QUIET)
    assert "\n" not in str(error.value) and not (tmp_path / "other").exists()
    weights = best_weights(run[0].path, PREDICTORS[name])
    check_init_fold(cfg, weights.fingerprint, weights)
    # Of other data, or where nothing is held out, any weights may be begun with.
    check_init_fold(other, "of other data", weights)
    check_init_fold(config(name, data_root, "diffusion.fold=0"), weights.fingerprint, weights)
    with pytest.raises(ConfigError, match=r"data\.split\.seed=0.*5"):
        check_init_fold(config(name, data_root, "data.split.seed=5"), weights.fingerprint, weights)
