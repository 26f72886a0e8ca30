"""The stages upon a trained operator, in one run: frozen parents, a scale that stays, resuming to the bit, collapse."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from commands import CONFIGS
from rich.console import Console
from shared_correctors import reading_once, sharing, validation

from ups_jax import make_train_step
from ups_jax.cli.predict import RolloutRequest, write_rollout
from ups_jax.config import Config, TauConfig, load
from ups_jax.core.errors import CheckpointError, ConfigError, DivergedError
from ups_jax.data import Dataset, Mixture, as_mixture, batch_at, open_dataset
from ups_jax.evaluation import evaluate_run as evaluation
from ups_jax.evaluation.evaluate_run import evaluate_run
from ups_jax.inference.corrected import load_corrector
from ups_jax.losses import StepContext
from ups_jax.losses.diffusion import draw_flow_times
from ups_jax.losses.distillation import level_count_at
from ups_jax.metrics import ENSEMBLE_METRICS
from ups_jax.pipeline import train_all_stages
from ups_jax.pipeline.train_all_stages import is_finished, train_all
from ups_jax.rollout.flow_sampler import sample_distilled, sample_error
from ups_jax.runs.best_weights import Weights, best_weights
from ups_jax.runs.checkpoint import Checkpoints
from ups_jax.runs.directory import RunDirectory
from ups_jax.tracking import wandb_context_path
from ups_jax.trainer.parents import trained_parents
from ups_jax.trainer.train import TrainedStage, train
from ups_jax.training.build import JointModel, abstract_state, build_joint_model, build_model, init_state
from ups_jax.training.stages import consistency_distill, stage_spec
from ups_jax.training.stages.consistency_distill import collapse_warning
from ups_jax.training.stages.corrector_validation import corrected_metrics, validation_segments
from ups_jax.training.state import create_train_state

QUIET = Console(quiet=True)
# The same rate whatever the length, so that a longer run goes on as the longer one would have begun.
SETTINGS = [
    "optimizer={name: adamw, lr: 3e-3}",
    "scheduler={name: constant, warmup: 0}",
    "training.batch_size=8",
    "training.eval_every=0.0625",
    "operator.spectral.depth=1",
    "diffusion.num_steps=2",
    "stages.operator.steps=6",
    "stages.diffusion_residual.steps=4",
    "stages.consistency_distill={steps: 4, tau_schedule: [2, 1]}",
    "evaluation={enabled: false, plots: false, bootstrap: 10}",
]
CORRECTORS = ("diffusion_residual", "consistency_distill")

shared_programs = pytest.fixture(scope="module", autouse=True)(sharing)


@pytest.fixture(scope="module")
def cfg(data_root: Path) -> Config:
    return load(CONFIGS / "tiny.yaml", [*SETTINGS, f"data.root={data_root}"])


@pytest.fixture(scope="module")
def run(cfg: Config, tmp_path_factory: pytest.TempPathFactory, shared_programs: None) -> Iterator[RunDirectory]:
    """A finished run of all stages, which no test changes."""
    trained = train_all(cfg, tmp_path_factory.mktemp("runs") / "run", console=QUIET)
    for _ in reading_once(trained.path):
        yield trained


@pytest.fixture(scope="module")
def weights(run: RunDirectory) -> dict[str, Weights]:
    return {stage: best_weights(run.path, stage) for stage in ("operator", *CORRECTORS)}


@pytest.fixture(scope="module")
def parents(run: RunDirectory) -> Mapping[str, Any]:
    """The weights upon which the student is trained: those of the operator and of its teacher."""
    return trained_parents(run, "consistency_distill", "transient").weights


@pytest.fixture(scope="module")
def states(run: RunDirectory, cfg: Config, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., np.ndarray]:
    """The frames of a rollout of the run; of one that was asked for before, those of its file."""
    folder, written = tmp_path_factory.mktemp("rollouts"), {}

    def rolled_out(stage: str | None, **changes: Any) -> np.ndarray:
        name = repr((stage, sorted(changes.items())))
        if name not in written:
            output = folder / f"{len(written)}.h5"
            wanted = RolloutRequest(input="test:0", steps=4, output=output, params={}, corrector=stage, **changes)
            write_rollout(run.path, cfg, wanted, console=QUIET)
            with h5py.File(output) as file:
                if stage is not None and "correct_above" not in changes:
                    steps = f", {wanted.sampler_steps} sampler steps" if wanted.sampler_steps else ""
                    assert file.attrs["corrector"] == f"{stage} every {wanted.correct_every}{steps}"
                written[name] = file["tensor"][:, 1:]
        return written[name]

    return rolled_out


@pytest.fixture(scope="module")
def dataset(cfg: Config, run: RunDirectory) -> Dataset:
    return open_dataset(cfg)


def leaves_of(path: Path, cfg: Config, dataset: Dataset, stage: str, step: int) -> list[Any]:
    with Checkpoints(RunDirectory(path).checkpoint_folder(stage), read_only=True) as checkpoints:
        state = checkpoints.restore(step, abstract_state(cfg, dataset.task, stage))
    keys = jax.tree.map(
        lambda leaf: jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf,
        state,
    )
    return [np.asarray(leaf) for leaf in jax.tree.leaves(keys)]


def test_every_stage_has_its_record_with_its_parents_checkpoints(
    run: RunDirectory, weights: dict[str, Weights]
) -> None:
    train_all_stages = run.read_record()["stages"]
    assert list(train_all_stages) == ["operator", *CORRECTORS]
    assert all(record["finished"] and record["steps"] == record["total_steps"] for record in train_all_stages.values())
    for stage in CORRECTORS:
        for parent, then in train_all_stages[stage]["parents"].items():
            assert then == {key: getattr(weights[parent], key) for key in ("step", "digest")}
    assert list(train_all_stages["consistency_distill"]["parents"]) == ["operator", "diffusion_residual"]


def test_all_stages_are_told_of_one_run_to_join(cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts: list[tuple[str, Path | None]] = []

    def trained(cfg: Config, stage: str, path: Path, *, data: Mixture, **_: object) -> TrainedStage:
        contexts.append((stage, wandb_context_path()))
        return TrainedStage(run=RunDirectory(path), data=data, model=build_joint_model(cfg, data.tasks, stage))

    monkeypatch.setattr(train_all_stages, "train", trained)
    monkeypatch.delenv("WANDB_CONTEXT_FILE", raising=False)
    train_all(cfg, tmp_path / "run", console=QUIET)
    assert contexts == [(stage, tmp_path / "run" / "wandb-context.json") for stage in ("operator", *CORRECTORS)]
    assert wandb_context_path() is None
    monkeypatch.setenv("WANDB_CONTEXT_FILE", str(tmp_path / "of a pipeline"))
    train_all(cfg, tmp_path / "run", console=QUIET)
    assert contexts[-1][1] == tmp_path / "of a pipeline" == wandb_context_path()


def test_a_finished_run_is_left_as_it_is(run: RunDirectory, cfg: Config) -> None:
    before = run.record_path.read_text()
    train_all(cfg, run.path, console=QUIET)
    assert run.record_path.read_text() == before
    longer = load(CONFIGS / "tiny.yaml", [*SETTINGS, "stages.diffusion_residual.steps=5", f"data.root={cfg.data.root}"])
    assert [is_finished(run, longer, stage) for stage in ("operator", *CORRECTORS)] == [True, False, True]


def test_the_command_for_all_stages_evaluates_each_and_goes_on_with_what_is_missing(
    script: Callable[..., subprocess.CompletedProcess[str]], run: RunDirectory, cfg: Config, tmp_path: Path
) -> None:
    again = RunDirectory(shutil.copytree(run.path, tmp_path / "run"))
    shutil.rmtree(again.checkpoint_folder("consistency_distill"))
    before = {stage: run.read_record()["stages"][stage] for stage in ("operator", "diffusion_residual")}
    result = script(
        "train.py", "--config", CONFIGS / "tiny.yaml", "--stage", "all", "--run-dir", again.path, *SETTINGS,
        f"data.root={cfg.data.root}", "evaluation.enabled=true",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert all(re.search(f"skipped +{stage}", result.stdout) for stage in ("operator", "diffusion_residual"))
    assert "skipped     consistency_distill" not in result.stdout and is_finished(again, cfg, "consistency_distill")
    assert {stage: again.read_record()["stages"][stage] for stage in before} == before
    names = {"test", "diffusion_residual_test", "consistency_distill_test"}
    assert {path.stem for path in again.evaluation_folder.iterdir()} == names
    # The operator's is made once more at the end, with the correctors that there are by then.
    last = json.loads((again.evaluation_folder / "test.json").read_text())
    assert list(last["variants"]) == ["latent", "corrector", "distilled", "ensemble"]


@pytest.mark.parametrize("stage", CORRECTORS)
def test_two_steps_and_two_more_are_four_to_the_bit(
    run: RunDirectory, cfg: Config, dataset: Dataset, tmp_path: Path, stage: str
) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    again = RunDirectory(tmp_path / "run")
    for name in CORRECTORS[CORRECTORS.index(stage) :]:
        shutil.rmtree(again.checkpoint_folder(name))
    shorter = load(CONFIGS / "tiny.yaml", [*SETTINGS, f"stages.{stage}.steps=2", f"data.root={cfg.data.root}"])
    for length in (shorter, cfg):
        train(length, stage, again.path, console=QUIET)
    ours, theirs = (leaves_of(path, cfg, dataset, stage, 4) for path in (again.path, run.path))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_student_has_its_teachers_scale_and_began_as_the_teacher(
    run: RunDirectory, cfg: Config, dataset: Dataset, weights: dict[str, Weights]
) -> None:
    teacher, student = (weights[stage] for stage in CORRECTORS)
    np.testing.assert_array_equal(teacher.weights.scale, student.weights.scale)
    assert 0 < float(teacher.weights.scale[0]) < 1
    jax.tree.map(np.testing.assert_array_equal, load_corrector(run.path, "consistency_distill").weights.teacher,
                 teacher.params)  # fmt: skip
    spec, model = stage_spec("consistency_distill"), build_model(cfg, dataset.task, "consistency_distill")
    others = jax.tree.map(np.ones_like, student.params)
    state = create_train_state(others, optax.sgd(1.0), jax.random.key(0), scale_channels=1)
    first = spec.init_from_parents(model, cfg, {"diffusion_residual": teacher.weights}, state, iter(()))
    jax.tree.map(np.testing.assert_array_equal, first.params, teacher.params)
    np.testing.assert_array_equal(first.scale, teacher.weights.scale)


def moved(params: Any) -> Any:
    """Parameters of which none is zero, as those of an untrained exit are."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(leaf.dtype), params)


def assert_all_but_conditions(params: Any) -> None:
    """Every leaf is somewhere other than zero; of a step that never varies, the condition tells nothing."""
    still = [jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(params) if not leaf.any()]
    assert all("condition" in name for name in still), still


@pytest.mark.parametrize("stage", CORRECTORS)
def test_the_loss_has_a_gradient_for_every_parameter_and_none_for_parents(
    cfg: Config, dataset: Dataset, weights: dict[str, Weights], parents: Mapping[str, Any], stage: str
) -> None:
    spec, model = stage_spec(stage), build_model(cfg, dataset.task, stage)
    needed = {name: parents[name] for name in spec.required_stages("transient")}
    params, scale = moved(weights["diffusion_residual"].params), weights["diffusion_residual"].weights.scale
    context = {"scale": scale} | ({"target": params, "epoch": jnp.zeros(())} if spec.uses_ema_target else {})
    losses, batch = spec.losses(model, cfg), batch_at(dataset, cfg, stage, 0)

    def loss(params: Any, parents: Any) -> Any:
        return losses(params, batch, jax.random.key(0), StepContext(parents=parents, **context))[0]

    ours, theirs = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, needed)
    assert_all_but_conditions(ours)
    assert not any(leaf.any() for leaf in jax.tree.leaves(theirs["operator"]))


def test_a_stage_upon_another_checkpoint_of_its_parent_is_refused(
    run: RunDirectory, cfg: Config, tmp_path: Path
) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record["stages"]["diffusion_residual"]["parents"]["operator"]["digest"] = "another"
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    assert not is_finished(RunDirectory(tmp_path / "run"), cfg, "diffusion_residual")
    with pytest.raises(ConfigError, match=r"step \d.*operator.*residual"):
        train(cfg, "diffusion_residual", tmp_path / "run", console=QUIET)


def without_student(run: RunDirectory, path: Path, *others: str) -> Path:
    """A copy of a run that has not begun to distil, nor the other stages that are named."""
    shutil.copytree(run.path, path)
    record = json.loads((path / "run.json").read_text())
    for stage in ("consistency_distill", *others):
        shutil.rmtree(path / "checkpoints" / stage)
        for entries in (record["stages"], record["digests"]):
            del entries[stage]
    (path / "run.json").write_text(json.dumps(record))
    return path


def test_a_validation_has_the_samples_of_the_student_beside_those_of_its_teacher(
    cfg: Config, dataset: Dataset, weights: dict[str, Weights], parents: Mapping[str, Any]
) -> None:
    model, spec = build_model(cfg, dataset.task, "consistency_distill"), stage_spec("consistency_distill")
    teacher, student = parents["diffusion_residual"], weights["consistency_distill"].weights
    (pieces,), base = validation_segments(dataset, cfg)(), build_model(cfg, dataset.task, "operator")
    theirs, ours = (
        corrected_metrics(model, samples_of, base, parents["operator"], pieces, sampler)
        for samples_of, sampler in ((teacher, sample_error), (student, sample_distilled))
    )
    validate = validation(JointModel((model,)), spec, as_mixture(dataset), cfg, parents)
    for _ in range(2):
        metrics = validate(student)
        for name in ("one_step", "rollout", "fourier_high"):
            np.testing.assert_allclose(metrics[name], ours[name], rtol=1e-4)
            np.testing.assert_allclose(metrics[f"teacher/{name}"], theirs[name], rtol=1e-4)
            np.testing.assert_allclose(metrics[f"alone/{name}"], ours[f"alone/{name}"], rtol=1e-4)
    assert metrics["rollout"] != metrics["teacher/rollout"] and metrics["distance"] > 0
    # Where the weights are gone, what the student says is zero with them.
    assert collapse_warning(metrics) is None
    vanished = validate(replace(student, params=jax.tree.map(np.zeros_like, student.params), scale=0 * student.scale))
    assert "has collapsed" in str(collapse_warning(vanished))


def test_single_rollouts_of_a_student_are_its_teachers(states: Callable[..., np.ndarray]) -> None:
    for changes in ({}, {"correct_above": 1e-4}):
        theirs, ours = (states(corrector, **changes) for corrector in CORRECTORS)
        np.testing.assert_array_equal(theirs, ours)


def test_a_student_whose_teacher_is_not_known_is_refused(run: RunDirectory, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    del record["stages"]["consistency_distill"]["parents"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"diffusion_residual.*consistency_distill"):
        load_corrector(tmp_path / "run", "consistency_distill")


def test_a_student_that_collapses_ends_the_stage(
    run: RunDirectory, cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert collapse_warning({"size": 0.9}) is None and "0.4 times the size" in str(collapse_warning({"size": 0.4}))
    again = without_student(run, tmp_path / "run")
    # By this measure every student is too small.
    monkeypatch.setattr(consistency_distill, "MIN_SAMPLE_SIZE", np.inf)
    with pytest.raises(DivergedError, match=r"step \d"):
        train(cfg, "consistency_distill", again, console=QUIET)
    assert RunDirectory(again).read_record()["status"] == "failed"


def test_a_student_that_is_near_enough_ends_its_stage(run: RunDirectory, cfg: Config, tmp_path: Path) -> None:
    again = without_student(run, tmp_path / "run")
    near = "stages.consistency_distill.target_loss=1e6"
    train(
        load(CONFIGS / "tiny.yaml", [*SETTINGS, near, f"data.root={cfg.data.root}"]),
        CORRECTORS[1],
        again,
        console=QUIET,
    )
    done, whole = (RunDirectory(path).read_record()["stages"]["consistency_distill"] for path in (again, run.path))
    assert 0 < done["steps"] < whole["steps"] == 4


@pytest.mark.parametrize("stage", CORRECTORS)
def test_micro_batches_of_a_corrector_are_one_batch(
    cfg: Config, dataset: Dataset, weights: dict[str, Weights], parents: Mapping[str, Any], stage: str
) -> None:
    model, tx = build_model(cfg, dataset.task, stage), optax.sgd(1.0)
    needed = {name: parents[name] for name in stage_spec(stage).required_stages("transient")}
    batch, results, params = batch_at(dataset, cfg, stage, 0), [], moved(weights["diffusion_residual"].params)
    for groups in (1, 4):
        state = jax.jit(lambda params, key: create_train_state(params, tx, key, cfg, scale_channels=1))(
            params, jax.random.key(0)
        )
        step = make_train_step(model, tx, cfg, stage=stage, steps_per_epoch=4, micro_batches=groups, parents=needed)
        results.append(step(state, batch))
    for name in ("loss", "grad_norm"):
        assert float(results[0][1][name]) > 0
        np.testing.assert_allclose(results[0][1][name], results[1][1][name], rtol=1e-5)
    # Every parameter has been moved by its gradient.
    assert_all_but_conditions(jax.tree.map(lambda new, old: np.asarray(new - old), results[0][0].params, params))


def test_a_student_is_taught_by_its_own_average(cfg: Config, dataset: Dataset, parents: Mapping[str, Any]) -> None:
    stage = "consistency_distill"
    model, tx = build_model(cfg, dataset.task, stage), optax.sgd(1e-2)
    batch = batch_at(dataset, cfg, stage, 0)
    average_cfg = load(CONFIGS / "tiny.yaml", [*SETTINGS, f"stages.{stage}.aim=average"])
    step = make_train_step(model, tx, average_cfg, stage=stage, steps_per_epoch=4, parents=parents)
    losses = []
    for shift in (0.0, 0.1):
        state = init_state(model, tx, batch, jax.random.key(0), stage=stage, cfg=cfg)
        ema = jax.tree.map(lambda leaf, by=shift: leaf + by if leaf.ndim else leaf + 1, state.ema)
        losses.append(float(step(replace(state, ema=ema, step=state.step + 9), batch)[1]["loss"]))
    assert losses[0] != losses[1]


@pytest.mark.parametrize(("epoch", "count"), [(0.0, 4), (0.9, 4), (1.0, 3), (1.9, 3), (2.5, 1), (9.0, 1)])
def test_the_levels_of_an_epoch_are_those_of_the_schedule_and_then_its_last(epoch: float, count: int) -> None:
    assert int(level_count_at((4, 3, 1), jnp.asarray(epoch))) == count
    assert int(level_count_at((2,), None)) == 2
    with pytest.raises(ValueError, match="epoch"):
        level_count_at((4, 3), None)


def test_times_of_the_flow_are_drawn_as_configured() -> None:
    key = jax.random.key(0)
    early = np.asarray(draw_flow_times(key, 4000, TauConfig(type="beta", alpha=1.0, beta=3.0)))
    even = np.asarray(draw_flow_times(key, 4000, TauConfig(type="uniform")))
    np.testing.assert_allclose([early.mean(), even.mean()], [0.25, 0.5], atol=0.02)
    np.testing.assert_allclose(early.var(), 3 / 80, rtol=0.1)


def test_an_evaluation_has_the_correctors_as_variants(
    run: RunDirectory, cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = evaluate_run(run.path, cfg, console=QUIET)
    assert list(values["variants"]) == ["latent", "corrector", "distilled", "ensemble"]
    ensemble = values["variants"]["ensemble"]["burgers1d"]
    assert values["meta"]["ensemble_of"] == "consistency_distill" and ensemble["members"] == cfg.evaluation.members
    assert ensemble["rollout"].keys() - values["metrics"]["burgers1d"]["rollout"].keys() == {*ENSEMBLE_METRICS}
    assert 0 < ensemble["rollout"]["crps"] < 1 and ensemble["rollout"]["spread_skill"] > 0
    for name in ("corrector", "distilled"):
        variant = values["variants"][name]["burgers1d"]
        assert variant["rollout"].keys() == values["metrics"]["burgers1d"]["rollout"].keys()
        assert variant["rollout"]["nrmse"] != values["metrics"]["burgers1d"]["rollout"]["nrmse"]
        assert variant["seconds_per_rollout_step"] > 0
    # On a finer grid, as which the trained one counts here, there is no corrector.
    output = io.StringIO()
    with monkeypatch.context() as changed:
        changed.setattr(evaluation, "predictor_for_grid", lambda trained, task: (trained, "restricted"))
        on_finer = evaluate_run(run.path, cfg, console=Console(file=output, width=200))
    assert list(on_finer["variants"]) == ["latent"]
    assert "diffusion_residual" in output.getvalue()
    # Alone it is the teacher's expected error that is taken out.
    single = (values["variants"][name]["burgers1d"]["rollout"]["nrmse"] for name in ("corrector", "distilled"))
    assert len({*single}) == 1
    conditioned = load(CONFIGS / "tiny.yaml", [*SETTINGS, f"data.root={cfg.data.root}", "evaluation.candidates=2"])
    alone = evaluate_run(run.path, conditioned, stage="diffusion_residual", console=QUIET)
    assert alone["metrics"]["burgers1d"]["rollout"] == values["variants"]["corrector"]["burgers1d"]["rollout"]
    ways = ["one", "random", "mean", "chosen", "oracle"]
    assert list(alone["variants"]) == ["ensemble", *(f"candidates_{way}" for way in ways)]
    assert alone["meta"]["tasks"]["burgers1d"]["candidates_scored_by"] == "equation residual"
    assert alone["meta"]["ensemble_of"] == "diffusion_residual"


def test_candidates_that_are_asked_for_and_not_drawn_are_told_of(
    run: RunDirectory, cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def regressions(path: Path) -> dict[str, Weights]:
        weights = load_corrector(path, "diffusion_residual")
        diffusion = replace(weights.config.diffusion, objective="regression")
        return {"diffusion_residual": replace(weights, config=replace(weights.config, diffusion=diffusion))}

    asked = replace(cfg, evaluation=replace(cfg.evaluation, candidates=2, members=0))
    values = evaluate_run(run.path, asked, console=QUIET)
    assert "candidates_chosen" in values["variants"] and "ensemble" not in values["variants"]
    message = "evaluation.candidates has no effect: a corrector with `diffusion.objective: regression` is deterministic"
    for wanted, count in ((asked, 1), (cfg, 0)):
        output = io.StringIO()
        with monkeypatch.context() as changed:
            changed.setattr("ups_jax.evaluation.evaluate_run.load_correctors", regressions)
            values = evaluate_run(run.path, wanted, console=Console(file=output, width=200))
        assert list(values["variants"]) == ["latent", "corrector"] and output.getvalue().count(message) == count


def test_a_regression_is_trained_evaluated_and_rolled_out_and_draws_nothing(
    run: RunDirectory, cfg: Config, tmp_path: Path
) -> None:
    again = without_student(run, tmp_path / "run", "diffusion_residual")
    regression = [*SETTINGS, "diffusion.objective=regression", f"data.root={cfg.data.root}"]
    regression_cfg = load(CONFIGS / "tiny.yaml", [*regression, "stages.diffusion_residual.steps=2"])
    train(regression_cfg, "diffusion_residual", again, console=QUIET)
    values = evaluate_run(again, regression_cfg, console=QUIET)
    assert list(values["variants"]) == ["latent", "corrector"] and "ensemble_of" not in values["meta"]
    errors = [part["burgers1d"]["rollout"]["nrmse"] for part in (values["variants"]["corrector"], values["metrics"])]
    assert np.isfinite(errors).all() and errors[0] != errors[1]
    wanted = RolloutRequest(
        input="test:0", steps=2, output=tmp_path / "one.h5", params={}, corrector="diffusion_residual"
    )
    write_rollout(again, regression_cfg, wanted, console=QUIET)
    with h5py.File(wanted.output) as file:
        assert np.isfinite(file["tensor"][:]).all() and file["tensor"].shape[:2] == (1, 3)
    for option, changes in {"members": {"members": 2}, "sampler-steps": {"sampler_steps": 2, "members": 2}}.items():
        drawn = replace(wanted, output=tmp_path / "drawn.h5", **changes)
        with pytest.raises(ConfigError, match=f"--{option}"):
            write_rollout(again, regression_cfg, drawn, console=QUIET)
    with pytest.raises(ConfigError, match=r"diffusion\.objective.*regression"):
        train(regression_cfg, "consistency_distill", again, console=QUIET)


@pytest.mark.parametrize("stage", CORRECTORS)
def test_a_rollout_with_the_corrector_is_an_ensemble_by_seed(states: Callable[..., np.ndarray], stage: str) -> None:
    members = states(stage, members=3)
    assert members.shape[:2] == (3, 4) and np.std(members, axis=0).min(axis=0).max() > 0
    # Named in another way it is another rollout, of the same seed.
    np.testing.assert_array_equal(members, states(stage, members=3, seed=0))
    # One alone has the expected error taken out: nothing of it is drawn.
    np.testing.assert_array_equal(states(stage), states(stage, seed=5))
    assert (members != states(stage, members=3, seed=1)).any()
    assert (members != states(stage, members=3, sampler_steps=3)).any()
    with pytest.raises(ConfigError, match="--sampler-steps"):
        states(stage, sampler_steps=3)
    # Before the first correction the operator is alone.
    late = states(stage, members=3, correct_every=4)
    np.testing.assert_array_equal(late[0, :3], late[1, :3])
    assert (late[0, 3] != late[1, 3]).any()


def test_parents_are_not_bound_to_a_device_so_that_a_step_is_compiled_once(parents: Mapping[str, Any]) -> None:
    leaves = jax.tree.leaves(parents)
    assert leaves and not any(leaf.committed for leaf in leaves)


def test_where_no_error_is_expected_the_operator_is_alone(states: Callable[..., np.ndarray]) -> None:
    alone, corrected = states(None), states("diffusion_residual")
    assert (alone != corrected).any()
    none = states("diffusion_residual", correct_above=1e3)
    np.testing.assert_allclose(none, alone, atol=1e-6)
    every = states("diffusion_residual", correct_above=1e-4)
    np.testing.assert_allclose(every, corrected, atol=1e-6)
    assert np.abs(corrected - alone).max() > 1e-5
    with pytest.raises(ConfigError, match="--correct-above"):
        states(None, correct_above=0.1)
