"""Each task's own loss: against numpy, over masked rows, the same from micro-batches."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from ups_jax.losses import per_task_metrics, per_task_terms

TASKS = ("burgers1d", "ks1d", "unseen")
RNG = np.random.default_rng(0)
LOSSES = RNG.uniform(0.1, 2.0, 12).astype(np.float32)
MASK = np.array([1, 1, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1], np.float32)
IDS = np.array([0, 1, 1, 0, 0, 1, 1, 1, 0, 0, 1, 1], np.int32)


def terms(rows: slice = slice(None)):  # type: ignore[no-untyped-def]
    return per_task_terms(TASKS, jnp.asarray(LOSSES[rows]), jnp.asarray(MASK[rows]), jnp.asarray(IDS[rows]))


def test_a_tasks_loss_is_the_mean_over_its_kept_rows() -> None:
    metrics = per_task_metrics({"relative": jnp.ones(())} | terms(), jnp.asarray(MASK.sum()))
    assert set(metrics) == {"relative", *(f"{task}/{name}" for task in TASKS for name in ("loss", "sample_count"))}
    for number, task in enumerate(TASKS[:2]):
        task_rows = (number == IDS) & (MASK > 0)
        np.testing.assert_allclose(metrics[f"{task}/loss"], LOSSES[task_rows].mean(), rtol=1e-6)
        np.testing.assert_allclose(metrics[f"{task}/sample_count"], task_rows.sum(), rtol=1e-6)
    assert np.isnan(metrics["unseen/loss"]) and metrics["unseen/sample_count"] == 0


def test_micro_batches_weighted_by_their_rows_give_the_whole_batchs() -> None:
    parts = [slice(0, 4), slice(4, 7), slice(7, 12)]
    counts = [MASK[rows].sum() for rows in parts]
    joined = {
        name: sum(count * terms(rows)[name] for count, rows in zip(counts, parts, strict=True)) / sum(counts)
        for name in terms()
    }
    whole, together = (per_task_metrics(values, jnp.asarray(MASK.sum())) for values in (terms(), joined))
    for name in whole:
        np.testing.assert_allclose(together[name], whole[name], rtol=1e-6)


def test_without_task_numbers_all_rows_are_the_one_tasks() -> None:
    metrics = per_task_metrics(
        per_task_terms(("darcy2d",), jnp.asarray(LOSSES), jnp.asarray(MASK)), jnp.asarray(MASK.sum())
    )
    np.testing.assert_allclose(metrics["darcy2d/loss"], LOSSES[MASK > 0].mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["darcy2d/sample_count"], MASK.sum(), rtol=1e-6)
