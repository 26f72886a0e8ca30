"""A weighted term that no trained parameter can change is an error before the start, and no other one is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import pytest
from commands import CONFIGS

from ups_jax.config import load
from ups_jax.core.errors import ConfigError
from ups_jax.data import Dataset, batch_at
from ups_jax.trainer import preflight
from ups_jax.trainer.preflight import check_term_gradients
from ups_jax.training.build import build
from ups_jax.training.stages import stage_spec

SMALL = ["operator.spectral.depth=1", "operator.spectral.hidden_dim=8", "latent.dim=4", "training.batch_size=4"]

PRIORS = (
    "training.physics_priors="
    "{lambda_smoothness: 1, lambda_positivity: 1, lambda_latent_norm: 1, lambda_latent_diversity: 1}"
)


def checked(waves: Dataset, *overrides: str) -> None:
    cfg = load(CONFIGS / "tiny.yaml", [*SMALL, *overrides])
    model, _ = build(cfg, waves)
    check_term_gradients(model, cfg, "operator", batch_at(waves, cfg, "operator", 0))


@pytest.fixture(scope="module")
def norms() -> dict[str, float]:
    """Gradient norms of the two inverse terms, once they have been measured: they are without the terms' weights."""
    return {}


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("training.lambda_inv_enc=1", r"training\.lambda_inv_enc"),
        ("training.lambda_inv_dec=1", r"training\.lambda_inv_dec"),
    ],
)
def test_a_term_that_is_met_by_construction_is_refused(
    waves: Dataset, norms: dict[str, float], monkeypatch: pytest.MonkeyPatch, override: str, why: str
) -> None:
    measure = preflight.gradient_norms

    def of_both(model: Any, _: Any, stage: str, batch: Any, names: list[str]) -> dict[str, float]:
        both = load(CONFIGS / "tiny.yaml", [*SMALL, "training.lambda_inv_enc=1", "training.lambda_inv_dec=1"])
        norms.update(norms or measure(model, both, stage, batch, ["inverse_encoding", "inverse_decoding"]))
        return {name: norms[name] for name in names}

    monkeypatch.setattr(preflight, "gradient_norms", of_both)
    with pytest.raises(ConfigError, match=why):
        checked(waves, override)


def test_terms_that_reach_a_parameter_pass_and_are_looked_at_one_row_at_a_time(
    waves: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, rows = stage_spec("operator"), []

    def watched(model: Any, config: Any) -> Any:
        losses = spec.losses(model, config)

        def bundle(params: Any, batch: Any, *more: Any) -> Any:
            rows.append({len(values) for values in batch.arrays.values()})
            return losses(params, batch, *more)

        return bundle

    monkeypatch.setattr(preflight, "stage_spec", lambda _: replace(spec, losses=watched))
    checked(waves, PRIORS)
    assert rows and all(sizes == {1} for sizes in rows)


def test_a_row_that_does_not_fit_is_one_line(waves: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(preflight, "gradient_norms", full)
    with pytest.raises(ConfigError, match=r"^stages\.operator\.batch_size.*training\.remat=full"):
        checked(waves, PRIORS)
