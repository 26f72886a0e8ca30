"""Runs agree on one device, on many, and in several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import CONFIGS, ROOT, quiet
from jax.sharding import AbstractMesh, PartitionSpec

from ups_jax.config import Config, load
from ups_jax.core.errors import ConfigError
from ups_jax.data import Dataset, batch_at
from ups_jax.distributed.mesh import (
    abstract_with_sharding,
    check_rows,
    device_put,
    device_put_batch,
    make_mesh,
    partition_spec,
)
from ups_jax.distributed.processes import any_host, broadcast_from_host0, on_host0


def small(stage: str, optimizer: str) -> tuple[str, ...]:
    """A model of one block, and rows for eight devices."""
    model = ("latent.dim=8", "operator.spectral.hidden_dim=16", "operator.spectral.depth=1")
    options = (f"stages.{stage}.optimizer.name={optimizer}", f"stages.{stage}.optimizer.lr=1e-3")
    return *model, "training.batch_size=8", *options


def paths() -> dict[str, str]:
    folders = [str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return quiet() | {"PYTHONPATH": os.pathsep.join(folders)}


def on_eight(
    stage: str, layouts: str, folder: Path, *overrides: str, config: str = "tiny.yaml", floats: int = 32
) -> dict[str, dict]:
    result = subprocess.run(
        [sys.executable, str(ROOT / "tests/helpers/mesh_steps.py"), config, stage, layouts, str(folder), *overrides],
        capture_output=True,
        text=True,
        timeout=400,
        env=paths() | {"FLOATS": str(floats)},
    )
    assert result.returncode == 0, result.stderr
    results: dict[str, dict] = json.loads(result.stdout)
    return results


def agrees(results: dict[str, dict], parameters: float, losses: float = 1e-5) -> None:
    """Ten losses and the parameters, on every layout; checkpoints are read bit for bit on another one."""
    one = results["one"]
    assert np.ptp(one["losses"]) > 0
    for name, other in results.items():
        np.testing.assert_allclose(other["losses"], one["losses"], rtol=losses, err_msg=name)
        assert other["difference"] <= parameters, name
        assert other["restored"] == 0.0, name


@pytest.mark.multiprocess
def test_ten_steps_are_the_same_on_every_layout_and_each_holds_its_part(data_root: Path, tmp_path: Path) -> None:
    # One round of micro-batches on each device, and noise that belongs to rows.
    results = on_eight(
        "operator",
        "one,both",
        tmp_path,
        f"data.root={data_root}",
        "optimizer.name=sgd",
        "optimizer.lr=0.1",
        "operator.spectral.hidden_dim=32",
        "operator.spectral.depth=1",
        "training.batch_size=8",
        "training.accum_steps=2",
        "training.input_noise=0.01",
    )
    agrees(results, 1e-6)
    # Four devices share the large arrays; what is too small to be shared is a seventh here.
    assert 0.25 <= results["both"]["bytes"] / results["one"]["bytes"] < 0.4


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("config", "stage", "optimizer"),
    [
        ("tiny.yaml", "operator", "muon"),
        ("tiny.yaml", "operator", "adam"),
        ("tiny.yaml", "diffusion_residual", "adamw"),
        ("tiny.yaml", "consistency_distill", "muon"),
        ("tiny_steady.yaml", "steady_prior", "adamw"),
        ("tiny_steady.yaml", "steady_prior", "sgd"),
    ],
)
def test_every_stage_and_optimizer_steps_alike_on_every_layout(
    data_root: Path, tmp_path: Path, config: str, stage: str, optimizer: str
) -> None:
    settings = (f"data.root={data_root}", *small(stage, optimizer))
    results = on_eight(stage, "one,data,fsdp,both", tmp_path, *settings, config=config)
    # What an optimizer divides by its own size may turn round-off into a step: ten of them are 1e-2.
    agrees(results, 1e-3)
    assert results["data"]["bytes"] == results["one"]["bytes"]


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("config", "stage", "optimizer"),
    [
        *(("tiny.yaml", "operator", name) for name in ("muon", "adam", "adamw", "sgd")),
        *(("tiny.yaml", stage, "muon") for stage in ("diffusion_residual", "consistency_distill")),
        ("tiny_steady.yaml", "steady_prior", "muon"),
    ],
)
def test_in_float64_no_layout_is_told_from_another(
    data_root: Path, tmp_path: Path, config: str, stage: str, optimizer: str
) -> None:
    # Optax makes curves of rates in float32, and two programs round them apart.
    flat = f"stages.{stage}.scheduler={{name: constant, warmup: 0}}"
    settings = (f"data.root={data_root}", *small(stage, optimizer), flat)
    agrees(on_eight(stage, "one,data,fsdp,both", tmp_path, *settings, config=config, floats=64), 1e-10, 1e-10)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "options",
    [(), ("latent.neighbours=4", "latent.radius=0.3"),
     ("latent.neighbours=4", "latent.pooling=queries", "operator.architecture_type=pdet_stack",
      "operator.pdet={hidden_dim: 16, num_heads: 2, depth: 1}")],
    ids=["nodes", "neighbours", "queries"],
)  # fmt: skip
def test_points_step_alike_on_every_layout(data_root: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    small = ("data.tasks.0.preset=tiny_varied", "latent={dim: 8, nodes: 16}", "training.batch_size=8")
    core = ("operator.spectral={hidden_dim: 16, depth: 1, modes: 3}", "optimizer.name=sgd", "optimizer.lr=0.01")
    settings = (f"data.root={data_root}", *small, *core, *options)
    agrees(on_eight("operator", "one,data,both", tmp_path, *settings, config="heat_mesh.yaml"), 1e-5)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((64, 128), PartitionSpec(None, "fsdp")),
        ((128, 64), PartitionSpec("fsdp")),
        ((64, 64), PartitionSpec(None, "fsdp")),
        ((5, 9, 48, 96), PartitionSpec(None, None, None, "fsdp")),
        # Seven divides nothing, and a bias is too small.
        ((35, 49), PartitionSpec()),
        ((64,), PartitionSpec()),
        ((), PartitionSpec()),
    ],
)
def test_the_largest_axis_that_divides_is_cut(shape: tuple[int, ...], spec: PartitionSpec) -> None:
    assert partition_spec(AbstractMesh((2, 8), ("data", "fsdp")), shape) == spec


def test_without_fsdp_everything_is_whole() -> None:
    assert partition_spec(AbstractMesh((8, 1), ("data", "fsdp")), (64, 128)) == PartitionSpec()


def test_one_device_changes_nothing(waves: Dataset, tiny: Config) -> None:
    mesh = make_mesh(tiny.parallel)
    assert mesh.size == 1
    state = {"step": jnp.zeros(()), "kernel": jnp.ones((64, 64))}
    assert device_put(mesh, state) is state
    batch = batch_at(waves, tiny, "operator", 0)
    for name, values in device_put_batch(mesh, batch).arrays.items():
        np.testing.assert_array_equal(values, batch.arrays[name])
    assert broadcast_from_host0({"steps": 3}) == {"steps": 3}
    assert any_host(True, 5) and not any_host(False, 8)
    assert on_host0(lambda: "done") == "done"


def test_a_state_that_is_read_on_one_device_lies_where_a_new_one_does(tiny: Config) -> None:
    """Arrays on a mesh of one device are another program's, and its last bits may be others."""
    mesh, new = make_mesh(tiny.parallel), {"kernel": jnp.ones((64, 64)), "step": jnp.zeros((), jnp.int32)}
    like = abstract_with_sharding(mesh, jax.eval_shape(lambda: new))
    assert jax.tree.map(lambda leaf: leaf.sharding, like) == jax.tree.map(lambda leaf: leaf.sharding, new)


@pytest.mark.parametrize(
    ("overrides", "says"), [(["parallel.fsdp=2"], "fsdp.*1 devices"), (["parallel.data=4"], "data.*1 devices")]
)
def test_more_devices_than_there_are_is_one_line(overrides: list[str], says: str) -> None:
    cfg = load(CONFIGS / "tiny.yaml", overrides)
    with pytest.raises(ConfigError, match=says):
        make_mesh(cfg.parallel)


@pytest.mark.parametrize(
    "overrides",
    [["parallel.data=0"], ["parallel.processes=2"], ["parallel.multihost=true", "parallel.coordinator=localhost:1"]],
)
def test_half_a_description_of_the_devices_is_refused(overrides: list[str]) -> None:
    with pytest.raises(ConfigError, match="parallel"):
        load(CONFIGS / "tiny.yaml", overrides)


def test_rows_that_devices_cannot_share_are_refused() -> None:
    mesh = AbstractMesh((4, 2), ("data", "fsdp"))
    check_rows(mesh, 16, "key")
    with pytest.raises(ConfigError, match=r"12.*8 devices"):
        check_rows(mesh, 12, "stages.operator.batch_size")
