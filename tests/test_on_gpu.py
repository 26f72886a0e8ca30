"""Tests that need a GPU: `python -m pytest -n0 -m gpu tests/test_on_gpu.py`.

The other tests run on one as they stand, with `XLA_FLAGS=--xla_gpu_deterministic_ops=true` in the environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import CONFIGS, command, quiet

from ups_jax import batch_at, build, init_state, make_train_step, simulate
from ups_jax.config import load
from ups_jax.data import open_dataset
from ups_jax.models.attention import attention
from ups_jax.trainer.parents import untrained_parents
from ups_jax.trainer.profile import profile_step

Script = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.gpu

STEADY = ("steady_prior",)
TRANSIENT = ("operator", "diffusion_residual", "consistency_distill")


def losses(data_root: Path, stage: str, *overrides: str) -> list[float]:
    """Return the losses of ten steps on the present device."""
    config = "tiny_steady.yaml" if stage in STEADY else "tiny.yaml"
    cfg = load(CONFIGS / config, [f"data.root={data_root}", *overrides])
    simulate.generate_missing(cfg)
    dataset = open_dataset(cfg)
    model, tx = build(cfg, dataset, stage=stage)
    batch = batch_at(dataset, cfg, stage, 0)
    parents = untrained_parents(cfg, dataset.task, stage, batch)
    state = init_state(model, tx, batch, jax.random.key(0), stage=stage, cfg=cfg)
    step = make_train_step(model, tx, cfg, stage=stage, steps_per_epoch=4, parents=parents)
    values = []
    for number in range(10):
        state, metrics = step(state, batch_at(dataset, cfg, stage, number))
        values.append(float(metrics["loss"]))
    return values


@pytest.mark.parametrize("stage", [*TRANSIENT, *STEADY])
def test_a_gpu_trains_as_a_cpu_does(data_root: Path, stage: str) -> None:
    with jax.default_device(jax.devices("gpu")[0]):
        ours = losses(data_root, stage)
    with jax.default_device(jax.devices("cpu")[0]):
        expected = losses(data_root, stage)
    np.testing.assert_allclose(ours, expected, rtol=1e-3)


def test_tensor_float_32_trains_like_float32(data_root: Path) -> None:
    quick = losses(data_root, "operator", "training.precision=tf32")
    exact = losses(data_root, "operator")
    np.testing.assert_allclose(quick, exact, rtol=2e-2)


def test_fused_attention_is_the_plain_one() -> None:
    rng = np.random.default_rng(0)
    parts = [jnp.asarray(rng.normal(size=(4, 128, 6, 64)), jnp.bfloat16) for _ in range(3)]
    program = jax.jit(attention).lower(*parts).compile().as_text()
    assert "cudnn" in program.lower()
    plain = jax.nn.dot_product_attention(*(part.astype(jnp.float32) for part in parts))
    np.testing.assert_allclose(np.asarray(attention(*parts), np.float32), plain, atol=2e-2)


def test_memory_that_really_runs_out_is_answered_with_fewer_rows(data_root: Path, tmp_path: Path) -> None:
    arguments = ["--config", str(CONFIGS / "tiny.yaml"), f"data.root={data_root}", "evaluation.enabled=false",
                 "stages.operator.steps=3", "stages.operator.batch_size=65536", "training.eval_every=1"]  # fmt: skip
    small = quiet() | {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.05", "XLA_FLAGS": ""}
    run = tmp_path / "run"
    result = subprocess.run(
        command("train.py", *arguments, "--run-dir", str(run)), capture_output=True, text=True, env=small, timeout=280
    )
    assert result.returncode == 0, result.stderr
    record: dict[str, Any] = json.loads((run / "run.json").read_text())["stages"]["operator"]
    assert record["out_of_memory"], "it fitted; give it less memory"


def test_a_profile_names_the_parts_of_the_model(data_root: Path, tmp_path: Path) -> None:
    cfg = load(CONFIGS / "tiny.yaml", [f"data.root={data_root}"])
    simulate.generate_missing(cfg)
    dataset = open_dataset(cfg)
    model, tx = build(cfg, dataset)
    batch = jax.device_put(batch_at(dataset, cfg, "operator", 0))
    state = init_state(model, tx, batch, jax.random.key(0), cfg=cfg)
    result = profile_step(make_train_step(model, tx, cfg), state, iter(lambda: batch, None), tmp_path, steps=5, depth=2)
    parts = {part.part: part.seconds_per_step for part in result.parts}
    assert parts["operator/core"] > 0 and parts["optimizer"] > 0, parts


def test_a_run_of_a_gpu_is_evaluated_on_a_cpu(script: Script, data_root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = script("train.py", "--config", str(CONFIGS / "tiny.yaml"), f"data.root={data_root}",
                    "stages.operator.steps=60", "--run-dir", str(run))  # fmt: skip
    assert result.returncode == 0, result.stderr
    numbers = []
    for platform in ("cuda", "cpu"):
        out = tmp_path / f"{platform}.json"
        again = subprocess.run(
            [*command("evaluate.py", "--run-dir", str(run)), "--json", str(out)],
            capture_output=True,
            text=True,
            env=quiet() | {"JAX_PLATFORMS": platform},
        )
        assert again.returncode == 0, again.stderr
        numbers.append(json.loads(out.read_text()))
    flat = [np.array([*_numbers(values)]) for values in numbers]
    np.testing.assert_allclose(flat[0], flat[1], rtol=2e-2)


def _numbers(values: Any) -> Any:
    if isinstance(values, dict):
        for name in sorted(values):
            if "nrmse" in name or isinstance(values[name], dict):
                yield from _numbers(values[name])
    elif isinstance(values, float):
        yield values


def test_there_is_a_gpu() -> None:
    assert jax.default_backend() == "gpu", (os.environ.get("JAX_PLATFORMS"), sys.version)
