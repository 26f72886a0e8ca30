"""Points that hear their neighbours, and points that are pooled by learned queries: trained, evaluated, rolled out, and
what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import CONFIGS
from flax.traverse_util import flatten_dict
from rich.console import Console

from ups_jax import batch_at, build, init_state, load_run, make_train_step, simulate
from ups_jax.cli.predict import RolloutRequest, write_rollout
from ups_jax.config import load
from ups_jax.core.errors import ConfigError
from ups_jax.data import open_mixture, windows_per_step
from ups_jax.data.sources import open_file
from ups_jax.data.sources.base import read_trajectories
from ups_jax.evaluation.evaluate_run import evaluate_run
from ups_jax.trainer.dry_run import dry_run
from ups_jax.trainer.train import train
from ups_jax.training.build import abstract_state, build_model

QUIET = Console(quiet=True)
SMALL = [
    "data.tasks.0.preset=tiny_varied", "latent={dim: 8, nodes: 16}",
    "operator.spectral={hidden_dim: 8, depth: 1, modes: 3}",
    "operator.pdet={hidden_dim: 16, num_heads: 2, depth: 1}", "training.batch_size=4", "training.eval_every=4",
    "evaluation={plots: false, bootstrap: 10}", "logging.wandb.enabled=false", "optimizer.name=adamw",
]  # fmt: skip
OPTIONS = {
    "neighbours": ["latent.neighbours=4", "latent.radius=0.3"],
    "queries": ["latent.pooling=queries", "operator.architecture_type=pdet_stack", "latent.neighbours=4"],
}


def config(data_root: Path, option: str, *more: str, task: str = "heat_mesh"):
    cfg = load(CONFIGS / f"{task}.yaml", [f"data.root={data_root}", *SMALL, *OPTIONS[option], *more])
    simulate.generate_missing(cfg)
    return cfg


@pytest.mark.parametrize("option", OPTIONS)
def test_a_run_beats_persistence_and_rolls_out(option: str, data_root: Path, tmp_path: Path) -> None:
    cfg = config(data_root, option, "stages.operator.epochs=12")
    train(cfg, "operator", tmp_path / "run", console=QUIET)
    values = evaluate_run(tmp_path / "run", cfg, console=QUIET)
    ours, still = values["metrics"]["heat_mesh"], values["baselines"]["persistence"]["heat_mesh"]
    assert ours["rollout"]["nrmse"] < 0.5 * still["rollout"]["nrmse"]
    # Any other points of the box, here fewer than a point has neighbours.
    run, rng = load_run(tmp_path / "run"), np.random.default_rng(0)
    places = {"coords": rng.random((3, 2)), "inputs": np.zeros((3, 2))}
    frames = run.rollout(rng.normal(size=(2, 3, 1)), 3, {"kappa": 0.02}, input_fields=places)
    assert frames.shape == (2, 3, 3, 1) and np.isfinite(frames).all()
    wanted = RolloutRequest(input="test:0", steps=3, output=tmp_path / "states.h5", params={})
    write_rollout(tmp_path / "run", cfg, wanted, console=QUIET)
    source = open_file(wanted.output, "transient", ("u",))
    states = read_trajectories(source, np.zeros(1, int))
    assert states.shape[1] == 4 and np.isfinite(states).all() and np.ptp(states) > 0


@pytest.mark.parametrize("option", OPTIONS)
def test_micro_batches_are_one_batch_and_bfloat16_is_near(option: str, data_root: Path) -> None:
    results, state, moved = [], None, None
    for rows, groups, precision in ((4, 1, "fp32"), (2, 2, "fp32"), (4, 1, "bf16")):
        cfg = config(
            data_root, option, f"training.batch_size={rows}", f"training.accum_steps={groups}",
            "data.tasks.0={name: particles, preset: tiny, channels: [x, y, u, v], periodic: [x, y], "
            "coefficients: {nu: log10}}", "training.remat=block", f"training.precision={precision}", task="particles",
        )  # fmt: skip
        (dataset,) = open_mixture(cfg).datasets
        model, tx = build(cfg, dataset)
        batch = batch_at(dataset, cfg, "operator", 0)
        assert len(batch.fields) == windows_per_step(cfg, "operator") == 4
        if state is None:
            # Parameters and optimizer are float32 and the same of all three.
            state, rng = (
                jax.device_get(init_state(model, tx, batch, jax.random.key(0), cfg=cfg)),
                np.random.default_rng(1),
            )
            # A fresh model says nothing, whatever it hears.
            moved = jax.tree.map(
                lambda leaf, rng=rng: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), state.params
            )
        step = make_train_step(model, tx, cfg)
        persistent, loss = (
            float(step(jax.tree.map(jnp.array, replace(state, params=params)), batch)[1]["loss"])
            for params in (state.params, moved)
        )
        results.append(loss)
        assert abs(loss / persistent - 1) > 0.01
    np.testing.assert_allclose(results[1], results[0], rtol=1e-4)
    assert 1e-6 < abs(results[2] / results[0] - 1) < 0.1


def test_a_dry_run_costs_a_step(data_root: Path) -> None:
    console = Console(record=True, width=200)
    dry_run(config(data_root, "queries"), ["operator"], console)
    assert "pooling" in console.export_text()


@pytest.mark.parametrize("core", ["spectral", "pdet_unet"])
def test_queries_take_a_core_that_needs_no_grid(core: str, data_root: Path) -> None:
    cfg = config(data_root, "queries", f"operator.architecture_type={core}", "operator.pdet.group_size=16")
    (dataset,) = open_mixture(cfg).datasets
    with pytest.raises(ConfigError, match=rf"{core}.*operator\.architecture_type.*pdet_stack") as raised:
        build_model(cfg, dataset.task, "operator")
    assert "\n" not in str(raised.value)


def test_of_two_tasks_of_points_only_what_has_one_shape_is_shared(data_root: Path) -> None:
    cfg = config(
        data_root, "queries",
        "data.tasks=[{name: heat_mesh, preset: tiny_varied, channels: [u], coefficients: {kappa: log10}}, {name: "
        "particles, preset: tiny, channels: [x, y, u, v], periodic: [x, y], coefficients: {nu: log10}}]",
    )  # fmt: skip
    params = flatten_dict(abstract_state(cfg, open_mixture(cfg).tasks, "operator").params)
    for name in ("pooling", "messages", "features"):
        assert any(path[:2] == ("tasks", "particles") and name in path for path in params), name
    assert not any("core" in path for path in params if path[0] == "tasks")
