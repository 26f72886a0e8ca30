"""The parameter table says what the optimizer does, for every core of the models."""

from __future__ import annotations

import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from commands import CONFIGS
from rich.console import Console

from ups_jax.config import OptimizerConfig, StageConfig, load
from ups_jax.data import Dataset
from ups_jax.optim import build_optimizer, parameter_table
from ups_jax.optim.parameter_groups import render_table, summarize_optimizers
from ups_jax.training.build import abstract_state

MUON = StageConfig(optimizer=OptimizerConfig(name="muon", weight_decay=0.1))


@pytest.mark.parametrize("core", ["spectral", "pdet_unet", "pdet_stack"])
def test_the_rows_are_what_the_optimizer_keeps(waves: Dataset, core: str) -> None:
    cfg = load(CONFIGS / "tiny.yaml", [f"operator.architecture_type={core}", "operator.pdet.hidden_dim=32"])
    state = abstract_state(cfg, waves.task, "operator")
    rows = parameter_table(state.params, cfg.stages.operator)
    assert sum(row.count for row in rows) == sum(leaf.size for leaf in jax.tree.leaves(state.params))
    # Muon keeps one array a parameter, Adam two.
    kept = sum(leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state) if leaf.ndim)
    counts = {name: sum(row.count for row in rows if row.optimizer == name) for name in ("muon", "adamw")}
    assert kept == counts["muon"] + 2 * counts["adamw"]
    by_path = {row.path: row for row in rows}
    for path, row in by_path.items():
        assert row.decayed == (not path.endswith(("/bias", "/scale"))), path
    # A convolution's kernel is one matrix: taps times inputs in, features out.
    stem = by_path["features/stem/kernel"]
    assert (stem.optimizer, len(stem.shape), stem.shape[1]) == ("muon", 2, cfg.latent.dim)
    assert by_path["operator/field_exit/write/kernel"].optimizer == "adamw"
    assert by_path["operator/field_exit/write/kernel"].reason
    hidden = [row for path, row in by_path.items() if "/core/" in path and path.endswith("kernel")]
    assert {row.optimizer for row in hidden if "modulation" not in row.path} == {"muon"}


def test_spectral_weights_are_adams_and_the_table_says_why(waves: Dataset) -> None:
    cfg = load(CONFIGS / "tiny.yaml")
    rows = parameter_table(abstract_state(cfg, waves.task, "operator").params, cfg.stages.operator)
    spectra = [row for row in rows if row.path.endswith("spectrum")]
    assert len(spectra) == cfg.operator.spectral.depth
    assert {row.optimizer for row in spectra} == {"adamw"}
    console = Console(width=250, file=io.StringIO())
    console.print(render_table(rows))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(row.path in text for row in rows)
    assert summarize_optimizers(rows) in text


def test_stacked_kernels_are_muons() -> None:
    params = {"layers": {"kernel": jnp.zeros((3, 4, 8)), "bias": jnp.zeros((3, 8))}}
    rows = parameter_table(params, MUON)
    assert [(row.path, row.optimizer, row.decayed) for row in rows] == [
        ("layers/bias", "adamw", False),
        ("layers/kernel", "muon", True),
    ]
    tx = build_optimizer(MUON, 10, 1)
    state = tx.init(params)
    momenta = [leaf.shape for _, mu in optax.tree.get_all_with_path(state, "mu") for leaf in jax.tree.leaves(mu)]
    assert sorted(momenta) == [(3, 4, 8), (3, 8)]


def test_another_optimizer_has_all_parameters_and_one_line_sums_them_up() -> None:
    params = {"a": {"kernel": np.zeros((20, 100)), "bias": np.zeros(100)}}
    assert summarize_optimizers(parameter_table(params, StageConfig())) == "adamw 2 arrays, 2,100 numbers"
    assert (
        summarize_optimizers(parameter_table(params, MUON))
        == "muon 1 arrays, 2,000 numbers; adamw 1 arrays, 100 numbers"
    )
    assert not any(row.decayed for row in parameter_table(params, StageConfig()))
