"""Two equations on lines and one on a plane in one training: what a step moves, what is kept, what is told."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import jax
import numpy as np
import pytest
from commands import CONFIGS
from rich.console import Console
from shared_programs import optimizer, sharing, state, train_step

from ups_jax import batch_at, evaluate, load_run
from ups_jax.config import Config, load, restrict_to_task
from ups_jax.core.errors import ConfigError, DataError
from ups_jax.data import Mixture, first_batches, open_dataset, open_mixture, steps_per_epoch
from ups_jax.evaluation.evaluate_run import evaluate_run
from ups_jax.inference.inputs import make_conditions
from ups_jax.losses import StageLoss, operator_losses
from ups_jax.models.batch import as_jax_arrays
from ups_jax.models.conditioning import conditions_of
from ups_jax.rollout.autoregressive import rollout
from ups_jax.runs.checkpoint import Checkpoints, tasks_from_meta
from ups_jax.tracking import read_jsonl
from ups_jax.trainer.train import train
from ups_jax.training.build import abstract_state, as_joint_model, build_joint_model
from ups_jax.training.stages import stage_spec

shared_programs = pytest.fixture(scope="module", autouse=True)(sharing)

NAMES = ("waves", "pair", "plane")
TASKS = """[
  {name: waves, path: %(root)s/waves.hdf5, periodic: [x], conserved: [u], coefficients: {beta: linear}},
  {name: pair, path: %(root)s/pair.hdf5, channels: [density, pressure], periodic: [x],
   coefficients: {nu: log10, beta: linear}},
  {name: plane, path: %(root)s/plane.hdf5, periodic: [x, y]}]"""
SMALL = ["operator.spectral={hidden_dim: 8, depth: 1, modes: 3}", "latent.dim=4", "training.batch_size=4",
         "training.eval_every=1", "evaluation.batch_size=4", "logging.every_steps=1", "evaluation.plots=false",
         "scheduler={name: constant, warmup: 0}", "optimizer={name: muon, lr: 5e-3, weight_decay: 0.1}"]  # fmt: skip


Numbers = dict[str, np.ndarray]


def travelling(trajectories: int, points: int, dt: float, dims: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(points)
    beta, phase = rng.uniform(0.2, 1.0, (2, trajectories))
    x, t = np.arange(points) * 2 / points - 1, dt * np.arange(8)
    moved = x - beta[:, None, None] * t[:, None] + phase[:, None, None]
    line = np.sin(np.pi * moved) + 0.5 * np.cos(2 * np.pi * moved)
    return (line if dims == 1 else line[..., None] * np.cos(np.pi * x)).astype(np.float32), beta


def write(path: Path, dt: float, content: dict[str, np.ndarray]) -> None:
    fields = next(iter(content.values()))
    with h5py.File(path, "w") as file:
        file["t-coordinate"] = dt * np.arange(9)
        for axis, points in zip("xy", fields.shape[2:], strict=False):
            file[f"{axis}-coordinate"] = -1 + 2 / points * np.arange(points)
        for name, values in content.items():
            file[name] = values


@pytest.fixture(scope="session")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Config:
    root = tmp_path_factory.mktemp("several")
    fields, beta = travelling(20, 32, 0.05)
    write(root / "waves.hdf5", 0.05, {"tensor": fields, "parameters/beta": beta})
    fields, beta = travelling(10, 24, 0.1)
    nu = np.logspace(-3, -1, 10)
    both = {"density": fields, "pressure": fields[:, :, ::-1] ** 2, "parameters/beta": beta, "parameters/nu": nu}
    write(root / "pair.hdf5", 0.1, both)
    write(root / "plane.hdf5", 0.05, {"tensor": travelling(10, 12, 0.05, dims=2)[0]})
    tasks = (TASKS % {"root": root}).replace("\n", " ")
    return load(CONFIGS / "tiny.yaml", [f"data.tasks={tasks}", "stages.operator.epochs=0", *SMALL])


@pytest.fixture(scope="session")
def data(cfg: Config) -> Mixture:
    return open_mixture(cfg)


def numbers(tree: Any) -> dict[str, np.ndarray]:
    """Copies by name: the step takes the buffers of its state."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.array(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.fixture(scope="session")
def stepped(cfg: Config, data: Mixture) -> tuple[list[bool], list[tuple[int, Numbers, Numbers]]]:
    """For each of twelve steps whether it was traced, its task, what it moved from and what to."""
    model, tx = build_joint_model(cfg, data.tasks, "operator"), optimizer(cfg.stages.operator, 12, 1)
    traced, counts = [], [0]

    def counted(loss: StageLoss) -> StageLoss:
        def wrapped(*arguments: Any) -> Any:
            traced.append(True)
            return loss(*arguments)

        return wrapped

    losses = [counted(loss) for loss in as_joint_model(model).losses(stage_spec("operator"), cfg)]
    # The step of the trainings below, which then trace nothing.
    epoch = steps_per_epoch(data, cfg, "operator")
    step = train_step(model, tx, cfg, losses=losses, steps_per_epoch=epoch)
    reached = state(model, tx, first_batches(data, cfg, "operator")[0], jax.random.key(0), cfg=cfg)
    moves = []
    for n in range(12):
        batch = batch_at(data, cfg, "operator", n)
        before = numbers((reached.params, reached.opt_state))
        reached, metrics = step(reached, batch)
        counts.append(len(traced))
        moves.append((batch.task, before, numbers((reached.params, reached.opt_state))))
        assert f"{NAMES[batch.task]}/loss" in metrics and np.isfinite(metrics["loss"])
    return [after > before for before, after in pairwise(counts)], moves


def load_with_steps(cfg: Config, steps: int) -> Config:
    operator = replace(cfg.stages.operator, steps=steps)
    return replace(cfg, stages=replace(cfg.stages, operator=operator))


def test_a_step_moves_its_task_and_what_is_shared_and_no_other_task_s_own(stepped: Any) -> None:
    _, moves = stepped
    assert {task for task, _, _ in moves} == {0, 1, 2}
    seen: set[int] = set()
    for task, before, after in moves:
        changed = {name for name in before if not np.array_equal(before[name], after[name])}
        first = task not in seen
        seen.add(task)
        prefix = f"tasks/{NAMES[task]}/" if task else ""
        # The exit begins at zero, and what stands before it has no gradient in a task's first step but by decay.
        assert f"0/{prefix}operator/field_exit/write/kernel" in changed
        if not first:
            assert "0/operator/core/SpectralBlock_0/value/kernel" in changed
            assert f"0/{prefix}features/stem/kernel" in changed
        for number, name in enumerate(NAMES):
            if number != task:
                place = f"tasks/{name}/" if number else ""
                # Parameters and both moments, wherever the optimizer keeps them.
                ends = (key for key in before if key.endswith(f"/{place}features/stem/kernel"))
                theirs = {key for key in ends if place or "tasks" not in key}
                assert len(theirs) >= 2 and not theirs & changed


def test_one_dimension_shares_its_spectrum_and_another_has_its_own(stepped: Any) -> None:
    _, moves = stepped
    names = {name for name in moves[0][1] if name.startswith("0/")}
    spectra = {name for name in names if name.endswith("spectrum")}
    block = "operator/core/SpectralBlock_0"
    assert spectra == {f"0/{block}/spectral/spectrum", f"0/tasks/plane/{block}/spectral/spectrum"}
    assert {name for name in names if name.endswith("value/kernel")} == {f"0/{block}/value/kernel"}
    assert {name for name in names if name.endswith("marks/kernel")} == {"0/operator/condition/marks/kernel"}


def test_the_step_is_compiled_once_for_each_task(stepped: Any) -> None:
    traced, moves = stepped
    tasks = [task for task, _, _ in moves]
    assert traced == [task not in tasks[:n] for n, task in enumerate(tasks)]


def test_untrained_every_task_is_persistence(cfg: Config, data: Mixture) -> None:
    joint = build_joint_model(cfg, data.tasks, "operator")
    tx, first = optimizer(cfg.stages.operator, 1, 1), first_batches(data, cfg, "operator")[0]
    params = state(joint, tx, first, jax.random.key(1), cfg=cfg).params
    for number, (model, dataset) in enumerate(zip(joint.models, data.datasets, strict=True)):
        trajectories = dataset.trajectories("val", limit=1)
        cond = make_conditions(dataset.task, trajectories.cond, trajectories.cond_mask)
        rolled = jax.jit(partial(rollout, model), static_argnums=3)
        frames = rolled(joint.sharing.task_params(params, number), trajectories.fields[:, :1], cond, 3)
        np.testing.assert_allclose(frames, np.repeat(trajectories.fields[:, :1], 3, axis=1), atol=1e-6)


def test_each_task_feels_its_place_its_boundaries_and_its_time_step(cfg: Config, data: Mixture) -> None:
    """With another mark, unit of time or coefficient the same parameters make another step."""
    first_task = data.datasets[0].task
    model = build_joint_model(cfg, data.tasks, "operator").models[0]
    batch = as_jax_arrays(first_batches(data, cfg, "operator")[0])
    params = operator_params(model, batch)

    def loss_of(task: Any) -> Any:
        bundle = jax.jit(operator_losses(model.clone(task=task), cfg.training))
        return lambda **changes: float(bundle(params, replace(batch, **changes), jax.random.key(0))[0])

    loss = loss_of(first_task)
    plain = loss()
    for changed in (
        replace(first_task, siblings=("pair", "waves", "plane")),
        replace(first_task, dt_unit=2 * first_task.dt_unit),
    ):
        assert abs(loss_of(changed)() / plain - 1) > 1e-5
    assert abs(loss(cond=batch.cond + 0.3) / plain - 1) > 1e-5
    assert abs(loss(cond_mask=0 * batch.cond_mask) / plain - 1) > 1e-5


def operator_params(model: Any, batch: Any) -> Any:
    params = jax.jit(model.init)(jax.random.key(0), batch.fields[:, :1], conditions_of(batch))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), params)


def trained(cfg: Config, path: Path, steps: int) -> list[np.ndarray]:
    """Every leaf of the state after so many steps in a run directory."""
    train(load_with_steps(cfg, steps), "operator", path, console=Console(quiet=True))
    with Checkpoints(path / "checkpoints" / "operator", read_only=True) as checkpoints:
        step = checkpoints.steps()[-1]
        restored = checkpoints.restore(step, abstract_state(cfg, tasks_from_meta(checkpoints.meta(step)), "operator"))
    leaves = jax.tree.leaves(restored)
    return [
        np.asarray(jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
        for leaf in leaves
    ]


@pytest.fixture(scope="session")
def run(stepped: Any, cfg: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    """A run of thirty steps, after the steps whose traces are counted, which it shares."""
    path = tmp_path_factory.mktemp("trained") / "run"
    return path, trained(cfg, path, 30)


def test_a_resumed_run_ends_in_the_same_bits(run: Any, cfg: Config, tmp_path: Path) -> None:
    trained(cfg, tmp_path / "run", 13)
    for one, other in zip(trained(cfg, tmp_path / "run", 30), run[1], strict=True):
        np.testing.assert_array_equal(one, other)


def test_validation_is_the_mean_over_the_tasks_and_each_one_s_own(run: Any) -> None:
    records = read_jsonl(run[0] / "metrics.jsonl")
    validations = [record for record in records if "validation/rollout" in record]
    assert validations
    for record in validations:
        task_errors = [record[f"validation/{name}/rollout"] for name in NAMES]
        assert record["validation/rollout"] == pytest.approx(np.mean(task_errors))
    assert records[-1]["best_metric"] == pytest.approx(
        min(record["validation/rollout"] for record in validations), rel=1e-6
    )
    losses = {name: sum(f"{name}/loss" in record for record in records) for name in NAMES}
    assert sum(losses.values()) == len(records) == 30 and min(losses.values()) >= 5


def test_the_split_file_has_every_task_s(run: Any, cfg: Config, data: Mixture) -> None:
    kept = json.loads((run[0] / "split.json").read_text())
    assert list(kept) == list(NAMES) and kept["pair"]["test"] == data.datasets[1].splits.test.tolist()
    listed = load(CONFIGS / "tiny.yaml", [f"data.split={{method: listed, path: {run[0]}/split.json}}"])
    again = open_mixture(replace(cfg, data=replace(cfg.data, split=listed.data.split)))
    assert [dataset.splits.val.tolist() for dataset in again.datasets] == [
        dataset.splits.val.tolist() for dataset in data.datasets
    ]


def test_evaluation_has_every_task_beside_its_baselines(run: Any, cfg: Config, data: Mixture) -> None:
    values = evaluate_run(run[0], cfg, console=Console(quiet=True))
    assert list(values["metrics"]) == list(NAMES)
    for name, dataset in zip(NAMES, data.datasets, strict=True):
        assert values["baselines"]["persistence"][name]["rollout"]["nrmse"] > 0
        assert values["per_trajectory"][name]["ids"] == dataset.splits.test.tolist()
    assert values["meta"]["data"]["fingerprint"] == data.fingerprint
    # The run's own data: the result has the split's plain name.
    assert (run[0] / "evaluation" / "test.json").exists()
    alone = evaluate_run(run[0], restrict_to_task(cfg, "pair"), console=Console(quiet=True))
    assert list(alone["metrics"]) == ["pair"]
    assert alone["metrics"]["pair"]["rollout"]["nrmse"] == values["metrics"]["pair"]["rollout"]["nrmse"]
    # The library's evaluation has what the command wrote, of one task from the data of all or from its own.
    model = load_run(run[0])
    assert evaluate(model, data)["per_trajectory"] == values["per_trajectory"]
    # Data that is opened by itself has another order of coefficients, which are matched by name.
    for opened in (data, data.datasets[1], open_dataset(restrict_to_task(cfg, "pair"))):
        result = evaluate(model.for_task("pair"), opened)
        assert list(result["metrics"]) == ["pair"]
        np.testing.assert_allclose(
            result["per_trajectory"]["pair"]["rollout"]["nrmse"],
            values["per_trajectory"]["pair"]["rollout"]["nrmse"],
            rtol=1e-6,
        )
    with pytest.raises(DataError, match="channels"):
        evaluate(model.for_task("pair"), data.datasets[0])
    with pytest.raises(ConfigError):
        evaluate(model.for_task("pair"), replace(data, datasets=(data.datasets[0], data.datasets[2])))


def test_a_rollout_names_its_task(run: Any, data: Mixture) -> None:
    loaded = load_run(run[0])
    trajectories = data.datasets[1].trajectories("test", limit=1)
    coefficients = {"nu": float(trajectories.cond[0, 1]), "beta": float(trajectories.cond[0, 0])}
    frames = loaded.rollout(trajectories.fields[:, 0], 4, params=coefficients, task="pair")
    assert frames.shape == (1, 4, 24, 2)
    # What only a sibling has is none of its own, and a sibling's coefficient is not missed.
    with pytest.raises(DataError, match="waves, pair, plane"):
        loaded.rollout(trajectories.fields[:, 0], 4)
    with pytest.raises(DataError, match="burgers1d"):
        loaded.rollout(trajectories.fields[:, 0], 4, task="burgers1d")
    waves = data.datasets[0].trajectories("test", limit=1)
    with pytest.raises(DataError, match=r"nu.*beta"):
        loaded.rollout(waves.fields[:, 0], 2, params={"nu": 0.1}, task="waves")
    assert loaded.rollout(waves.fields[:, 0], 2, params={"beta": 0.5}, task="waves").shape == (1, 2, 32, 1)
    plane = data.datasets[2].trajectories("test", limit=1)
    assert loaded.rollout(plane.fields[:, 0], 2, task="plane").shape == (1, 2, 12, 12, 1)


def test_scripts_take_the_task_s_name(run: Any, main: Any, tmp_path: Path) -> None:
    command = ("rollout.py", "--run-dir", str(run[0]), "--input", "test:0", "--steps", "2", "--output")
    refused = main(*command, str(tmp_path / "out.hdf5"))
    assert refused.returncode == 2 and "waves, pair, plane" in refused.stderr
    done = main(*command, str(tmp_path / "out.hdf5"), "--task", "pair")
    assert done.returncode == 0, done.stderr
    # What only others have is not missed.
    assert "training mean" not in done.stdout
    with h5py.File(tmp_path / "out.hdf5") as file:
        assert file["density"].shape[-1] == 24 and file.attrs["task"] == "pair"


def test_a_run_on_one_task_is_not_evaluated_on_several(run: Any, saved_run: Path, cfg: Config) -> None:
    with pytest.raises(ConfigError, match="3"):
        evaluate_run(saved_run, cfg, console=Console(quiet=True))


def test_a_corrector_is_of_one_task(cfg: Config, data: Mixture) -> None:
    with pytest.raises(ConfigError, match=r"diffusion_residual.*data\.tasks.*3"):
        build_joint_model(cfg, data.tasks, "diffusion_residual")


def test_a_task_of_a_single_run_may_be_named(saved_run: Path, tiny: Config) -> None:
    loaded = load_run(saved_run)
    trajectories = open_dataset(tiny).trajectories("test", limit=1)
    coefficients = {"nu": float(trajectories.cond[0, 0])}
    assert loaded.rollout(trajectories.fields[:, 0], 1, params=coefficients, task="burgers1d").shape == (1, 1, 64, 1)
    with pytest.raises(DataError, match=r"waves.*burgers1d"):
        loaded.rollout(trajectories.fields[:, 0], 1, params=coefficients, task="waves")
