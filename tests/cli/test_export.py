"""An exported run is stepped by a program in which `ups_jax` cannot be imported, and gives the run's own numbers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import CONFIGS, quiet

from ups_jax import batch_at, build, init_state, load_config, load_run, open_dataset, save, simulate
from ups_jax.config import Config
from ups_jax.core.errors import ConfigError
from ups_jax.core.locks import lock_file
from ups_jax.inference.export import export_run

Script = Callable[..., subprocess.CompletedProcess[str]]

# Loads the artifact and calls it with the arrays of each case in turn: jax and numpy, and nothing of this project.
PROGRAM = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ups_jax", "flax", "optax", "orbax"):
            raise ImportError(f"{name} is not for this program")

sys.meta_path.insert(0, Refuse())
import jax
import numpy as np

artifact, cases, results = sys.argv[1:]
with open(artifact, "rb") as file:
    call = jax.export.deserialize(bytearray(file.read())).call
given = np.load(cases)
names = sorted({name.split("/")[0] for name in given})
made = {}
for name in names:
    arguments = [given[f"{name}/{index}"] for index in range(sum(key.startswith(name + "/") for key in given))]
    made[name] = np.asarray(call(*arguments))
try:
    import ups_jax
except ImportError:
    np.savez(results, **made)
"""


def call_elsewhere(artifact: Path, cases: dict[str, list[np.ndarray]], folder: Path) -> dict[str, np.ndarray]:
    (folder / "program.py").write_text(PROGRAM)
    named = {f"{name}/{index}": array for name, case in cases.items() for index, array in enumerate(case)}
    np.savez(folder / "cases.npz", **named)
    command = [sys.executable, "program.py", str(artifact), "cases.npz", "results.npz"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, env=quiet())
    assert result.returncode == 0, result.stderr
    with np.load(folder / "results.npz") as results:
        return dict(results)


def smooth(count: int, seed: int = 0) -> np.ndarray:
    x, rng = np.arange(64) / 64 * 2 * np.pi, np.random.default_rng(seed)
    waves = [np.sin(k * x + rng.uniform(0, 6, (count, 1))) / k for k in (1, 2)]
    return 0.3 * np.sum(waves, 0)[..., None].astype(np.float32)


def test_a_rollout_elsewhere_is_the_runs_own_for_any_batch_and_number_of_steps(
    main: Script, saved_run: Path, tmp_path: Path
) -> None:
    result = main("export.py", "--run-dir", saved_run, "--output", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    artifact, described = (Path(line) for line in result.stdout.splitlines())
    description = json.loads(described.read_text())
    assert artifact.name == description["artifact"] == "model.stablehlo" and description["platforms"] == ["cpu", "cuda"]
    assert (description["channels"], description["context"], description["dt"]) == (["u"], 1, 0.05)
    assert description["coefficients"] == [{"name": "nu", "scale": "log10"}]
    assert description["axes"] == [{"name": "x", "points": 64, "origin": -1.0, "spacing": 1 / 32, "periodic": True}]

    def case(count: int, steps: int, nu: float | None) -> list[np.ndarray]:
        coefficients, mask = (np.full((count, 1), value, np.float32) for value in (nu or 0.0, nu is not None))
        return [smooth(count)[:, None], coefficients, mask, np.zeros(steps, np.int32)]

    cases = {"few": case(2, 3, 0.01), "many": case(5, 20, 0.03), "unknown": case(2, 3, None)}
    outputs = call_elsewhere(artifact, cases, tmp_path)
    run = load_run(saved_run)
    np.testing.assert_allclose(outputs["few"], run.rollout(smooth(2), 3, params={"nu": 0.01}), atol=1e-5)
    np.testing.assert_allclose(outputs["many"], run.rollout(smooth(5), 20, params={"nu": 0.03}), atol=1e-5)
    with pytest.warns(UserWarning, match="training mean"):
        np.testing.assert_allclose(outputs["unknown"], run.rollout(smooth(2), 3), atol=1e-5)
    assert np.abs(outputs["many"][:, -1] - smooth(5)).max() > 0.02


@pytest.fixture(scope="module")
def solver(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A steady run whose parameters are random."""
    small = ["operator.spectral.depth=1", "operator.spectral.hidden_dim=8", "optimizer.name=adamw"]
    cfg = load_config(CONFIGS / "tiny_steady.yaml", [f"data.root={data_root}", *small])
    simulate.generate_missing(cfg)
    dataset = open_dataset(cfg)
    model, tx = build(cfg, dataset, stage="steady_prior")
    batch = batch_at(dataset, cfg, "steady_prior", 0)
    state = init_state(model, tx, batch, jax.random.key(0), stage="steady_prior")
    rng = np.random.default_rng(0)
    moved = jax.tree.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), state.params)
    path = tmp_path_factory.mktemp("solver") / "run"
    save(path, replace(state, params=moved), cfg, dataset, stage="steady_prior")
    return path


def test_solutions_elsewhere_are_the_runs_own_for_any_batch(solver: Path, tmp_path: Path) -> None:
    artifact, described = export_run(solver, tmp_path / "darcy.bin", ["cpu"])
    assert (artifact.name, described.name) == ("darcy.bin", "darcy.json")
    description = json.loads(described.read_text())
    assert (description["kind"], description["inputs"], description["platforms"], description["dt"]) == (
        "steady",
        ["nu"],
        ["cpu"],
        None,
    )
    permeability = np.random.default_rng(1).uniform(0.1, 1.0, (3, 16, 16, 1)).astype(np.float32)
    none = np.zeros((3, 0), np.float32)
    cases = {"three": [permeability, none, none], "one": [permeability[:1], none[:1], none[:1]]}
    outputs = call_elsewhere(artifact, cases, tmp_path)
    expected = load_run(solver).step(permeability)
    np.testing.assert_allclose(outputs["three"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(outputs["one"], expected[:1], rtol=1e-5, atol=1e-6)
    assert np.ptp(expected, axis=(1, 2)).min() > 0


def test_steps_with_a_core_of_transformers_and_context_are_exported_as_well(tiny: Config, tmp_path: Path) -> None:
    cfg = load_config(
        CONFIGS / "tiny.yaml",
        [f"data.root={tiny.data.root}", "data.context=2", "operator.architecture_type=pdet_stack",
         "operator.pdet={hidden_dim: 16, depth: 1, num_heads: 2, group_size: 8}", "optimizer.name=adamw"],
    )  # fmt: skip
    simulate.generate_missing(cfg)
    dataset = open_dataset(cfg)
    model, tx = build(cfg, dataset)
    state = init_state(model, tx, batch_at(dataset, cfg, "operator", 0), jax.random.key(0))
    moved = jax.tree.map(lambda leaf: leaf + 0.02, state.params)
    save(tmp_path / "run", replace(state, params=moved), cfg, dataset)
    artifact, described = export_run(tmp_path / "run", tmp_path / "out", ["cpu"])
    assert json.loads(described.read_text())["context"] == 2
    with artifact.open("rb") as file:
        call = jax.export.deserialize(bytearray(file.read())).call
    pair = np.stack([smooth(3, 1), smooth(3, 2)], 1)
    nu, mask = (np.full((3, 1), value, np.float32) for value in (0.02, 1.0))
    expected = load_run(tmp_path / "run").rollout(pair, 5, params={"nu": 0.02})
    np.testing.assert_allclose(call(pair, nu, mask, np.zeros(5, np.int32)), expected, atol=1e-5)
    # Stepped one at a time, the frames given again: one compilation, the same states.
    window = pair
    for index in range(5):
        frame = np.asarray(call(window, nu, mask, np.zeros(1, np.int32)))
        np.testing.assert_allclose(frame[:, 0], expected[:, index], atol=1e-5)
        window = np.concatenate([window[:, 1:], frame], 1)


def test_a_platform_that_there_is_not_and_a_run_that_there_is_not_are_one_line(
    main: Script, saved_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"gpu.*cpu, cuda, rocm, tpu"):
        export_run(saved_run, tmp_path / "out", ["cpu", "gpu"])
    with pytest.raises(ConfigError, match="suffix"):
        export_run(saved_run, tmp_path / "out.json", ["cpu"])
    assert not list(tmp_path.iterdir())
    missing = main("export.py", "--run-dir", tmp_path / "none", "--output", tmp_path / "out")
    assert (missing.returncode, missing.stderr.count("\n")) == (4, 1), missing.stderr


def test_two_exports_do_not_mix(saved_run: Path, tmp_path: Path) -> None:
    with lock_file(tmp_path / "model.stablehlo", "wait"), pytest.raises(ConfigError, match=str(os.getpid())):
        export_run(saved_run, tmp_path, ["cpu"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", ["diffusion_residual", "diff_residual", "consistency_distill"])
def test_a_corrector_is_no_model_by_itself(main: Script, saved_run: Path, tmp_path: Path, stage: str) -> None:
    result = main("export.py", "--run-dir", saved_run, "--output", tmp_path / "out", "--stage", stage)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    name = "consistency_distill" if stage.startswith("cons") else "diffusion_residual"
    assert re.search(f"{name}.*operator or steady_prior.*{name}", result.stderr)
    with pytest.raises(ConfigError, match=f"{name}.*steady_prior"):
        load_run(saved_run, stage=stage)
    with pytest.raises(ConfigError, match=r"other.*operator or steady_prior$"):
        load_run(saved_run, stage="other")
    assert not list(tmp_path.iterdir())
