"""A dry run: the table and the costs of a stage, and nothing left behind."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from commands import CONFIGS
from rich.console import Console

from ups_jax.config import load
from ups_jax.core.errors import CheckpointError, ConfigError, DivergedError
from ups_jax.data import Dataset, Mixture
from ups_jax.models import Batch
from ups_jax.runs.checkpoint import Checkpoints
from ups_jax.trainer import dry_run as module
from ups_jax.trainer.console import patch_notes
from ups_jax.trainer.dry_run import MISSING, dry_run, peak_bytes, step_costs
from ups_jax.trainer.timing import StepTrial, open_step_trial
from ups_jax.training.stages import enabled_stages
from ups_jax.training.state import create_train_state
from ups_jax.training.step import TrainStep

SMALL = ["operator.spectral.depth=1", "operator.spectral.hidden_dim=8", "latent.dim=4", "training.batch_size=8",
         "optimizer.name=adamw", "training.input_noise=0"]  # fmt: skip


@pytest.fixture(scope="module")
def compiled(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run the small configuration dry; return its output in a wide terminal, its measurements, and the files that it
    leaves in its working directory."""
    folder = tmp_path_factory.mktemp("dry_run")
    results: dict[str, Any] = {}

    def kept(name: str) -> Any:
        function = getattr(module, name)

        def keep(*arguments: Any) -> Any:
            results[name] = function(*arguments)
            return results[name]

        return keep

    with pytest.MonkeyPatch.context() as patch:
        for name in ("step_costs", "time_steps"):
            patch.setattr(module, name, kept(name))
        patch.chdir(folder)
        results["text"] = shown(data_root, "stages.operator.accum_steps=2")
    return results | {"left": list(folder.iterdir())}


@pytest.fixture
def without_compilation(monkeypatch: pytest.MonkeyPatch, compiled: dict[str, Any]) -> None:
    """Costs, times and the state are those that `compiled` came to."""
    for name in ("step_costs", "time_steps"):
        monkeypatch.setattr(module, name, lambda *_, result=compiled[name]: result)


def shown(data_root: Path, *overrides: str, width: int = 200) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    dry_run(load(CONFIGS / "tiny.yaml", [f"data.root={data_root}", *SMALL, *overrides]), ["operator"], console)
    return console.export_text()


def test_a_dry_run_prints_every_parameter_and_the_costs_and_writes_nothing(compiled: dict[str, Any]) -> None:
    text = compiled["text"]
    rows = re.findall(r"(\S+/\S+)\s+│ ([\dx ]+?)\s+│\s+([\d,]+) │ (\w+)", text)
    counts = {path: int(count.replace(",", "")) for path, _, count, _ in rows}
    assert {optimizer for *_, optimizer in rows} == {"adamw"}
    assert counts["operator/core/SpectralBlock_0/spectral/spectrum"] == 8 * 8 * 16
    total = re.search(r"adamw \d+ arrays, ([\d,]+) numbers", text)
    assert total is not None and int(total[1].replace(",", "")) == sum(counts.values())
    for name in ("compiled in", "FLOPs", "bytes accessed", "peak memory"):
        assert re.search(rf"{name}\s+│ [\d.]+", text), name
    assert "16 (2 x 8)" in text
    seconds = re.search(r"seconds per step │ ([\d., e-]+)", text)
    assert seconds is not None and len(seconds[1].split(", ")) == 3
    assert re.search(r"training time +│ about [\d.e+]+ s \(192 steps", text)
    assert "bit-identical" in text
    assert compiled["left"] == []


def test_a_loss_that_is_not_finite_is_told() -> None:
    step = TrainStep(compiled=jax.jit(lambda state, batch, parents: (state, {"loss": batch.time})), parents={})
    with pytest.raises(DivergedError, match=r"step 3.*stages\.operator\.optimizer\.lr"):
        trial = StepTrial(
            make_step=lambda **_: step,
            new_state=lambda: pytest.fail("no state is wanted"),
            batches=iter([Batch(time=np.float32(loss)) for loss in (1.0, 2.0, np.nan, 3.0)]),
            task_count=1,
            steps_per_call=1,
        )
        module.time_steps("operator", trial, create_train_state({}, optax.identity(), jax.random.key(0)))


def test_a_checkpoint_that_differs_is_told(
    without_compilation: None, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(self: Checkpoints, step: int, like: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf + 1, like)

    monkeypatch.setattr(Checkpoints, "restore", damaged)
    with pytest.raises(CheckpointError, match="restored"):
        shown(data_root)


def test_a_path_that_does_not_fit_is_folded_not_cut(without_compilation: None, data_root: Path) -> None:
    text = shown(data_root, width=80)
    assert "…" not in text
    first = "".join(re.findall(r"^│ (\S+)", text, re.MULTILINE))
    assert "operator/core/SpectralBlock_0/spectral/spectrum" in first


def test_the_costs_are_the_compiler_s_and_what_it_leaves_out_is_said() -> None:
    def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
        return a @ b

    a, b = jnp.ones((8, 16)), jnp.ones((16, 4))
    costs = step_costs(jax.jit(multiply), a, b)
    assert float(costs["FLOPs"]) == pytest.approx(2 * 8 * 16 * 4, rel=0.1)
    peak = 4 * (8 * 16 + 16 * 4 + 8 * 4) / 2**20
    np.testing.assert_allclose(float(costs["peak memory"].split()[0]), peak, rtol=0.01)

    class Silent:
        def lower(self, *_: object) -> Silent:
            return self

        compile = lower
        cost_analysis = memory_analysis = lambda self: None

    assert list(step_costs(Silent(), a, b).values())[1:] == [MISSING] * 3
    reused = SimpleNamespace(
        argument_size_in_bytes=10, output_size_in_bytes=7, alias_size_in_bytes=6, temp_size_in_bytes=3
    )
    assert peak_bytes(reused) == 14


def test_without_a_stage_the_enabled_ones_are_shown(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = load(CONFIGS / "tiny_steady.yaml", [f"data.root={data_root}"])
    assert enabled_stages(cfg) == ("steady_prior",)
    correctors = ("diffusion_residual", "consistency_distill")
    assert enabled_stages(load(CONFIGS / "tiny.yaml")) == ("operator", *correctors)
    # Seconds alone, which `training` gives to every stage, turn none on; steps win over epochs.
    off = ["training.max_seconds=9", *(f"stages.{stage}.steps=0" for stage in ("operator", *correctors))]
    with pytest.raises(ConfigError, match="stage"):
        enabled_stages(load(CONFIGS / "tiny.yaml", off))
    shown: list[Any] = []
    monkeypatch.setattr(module, "dry_run_stage", lambda cfg, stage, *_: shown.append((stage, cfg.data.root)))
    arguments = ["--config", str(CONFIGS / "tiny_steady.yaml"), "--dry-run", f"data.root={data_root}"]
    assert runpy.run_path(str(CONFIGS.parent / "scripts" / "train.py"))["main"](arguments) == 0
    assert shown == [("steady_prior", str(data_root))]


@pytest.mark.parametrize("where", ["state", "batch", "step"])
def test_a_step_that_does_not_fit_is_one_line(data_root: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def full(*_: object) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    @contextlib.contextmanager
    def tried(*arguments: Any) -> Iterator[Any]:
        with open_step_trial(*arguments) as whole:
            calls = iter([whole.new_state, full])
            new_state = {"new_state": lambda: next(calls)()} if where == "state" else {}
            batches = {"batches": map(full, [0])} if where == "batch" else {}
            yield replace(whole, **new_state, **batches)

    if where == "step":
        monkeypatch.setattr(module, "step_costs", full)
    monkeypatch.setattr(module, "open_step_trial", tried)
    with pytest.raises(ConfigError, match=r"stages\.operator\.batch_size=8.*accum_steps") as error:
        shown(data_root)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("shape", "ratio"), [((101,), None), ((129, 129), None), ((33, 33), "1.27"), ((5,), "2"), ((3,), None)]
)
def test_a_note_states_the_cost_of_a_grid_that_patches_divide_badly(
    waves: Dataset, shape: tuple[int, ...], ratio: str | None
) -> None:
    axes = len(shape)
    task = replace(
        waves.task, shape=shape, axes=("x", "y")[:axes], origin=(0.0,) * axes, spacing=(1.0,) * axes,
        periodic=(False,) * axes,
    )  # fmt: skip
    cfg = load(CONFIGS / "tiny.yaml", ["latent.patch_size=4"])
    notes = patch_notes(cfg, Mixture(datasets=(replace(waves, task=task),)))
    assert [f"about {ratio} times" in note for note in notes] == ([] if ratio is None else [True])


def test_a_note_states_the_cost_of_patches_of_one_point_in_an_earlier_run(waves: Dataset) -> None:
    task = replace(waves.task, shape=(101,), partition="divisor")
    (note,) = patch_notes(
        load(CONFIGS / "tiny.yaml", ["latent.patch_size=4"]), Mixture(datasets=(replace(waves, task=task),))
    )
    assert "101 tokens" in note and "about 4.04 times one on 100 points" in note
