"""Loss spikes: skipped and counted once enough losses are known, never before, and the same after a resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ups_jax import batch_at, build, init_state, make_train_step
from ups_jax.config import TrainingConfig, load
from ups_jax.core.errors import ConfigError
from ups_jax.data import Dataset
from ups_jax.runs.checkpoint import Checkpoints
from ups_jax.training.build import abstract_state, build_model
from ups_jax.training.state import SpikeMonitor, accept_and_update_window, init_spike_window

RULE = TrainingConfig(spike_sigma=3.0, spike_window=4)


def accepted_of(losses: list[float], finite: list[bool] | None = None) -> tuple[list[bool], list[int], list[int]]:
    window, result = init_spike_window(RULE), []
    in_row, count = [], []
    for loss, good in zip(losses, finite or [True] * len(losses), strict=True):
        accepted, window = accept_and_update_window(window, jnp.asarray(loss, jnp.float32), jnp.asarray(good), RULE)
        assert window is not None
        result.append(bool(accepted))
        in_row.append(int(window.in_row))
        count.append(int(window.count))
    return result, in_row, count


def test_the_limit_is_the_mean_and_deviations_of_the_accepted_losses() -> None:
    rng = np.random.default_rng(0)
    losses = list(rng.uniform(0.9, 1.1, 40) * np.where(rng.random(40) < 0.2, 3.0, 1.0))
    history: list[float] = []
    expected = []
    for loss in losses:
        last = np.asarray(history[-4:], np.float32)
        expected.append(len(history) < 4 or bool(loss <= last.mean() + 3.0 * max(last.std(), 0.01 * last.mean())))
        history += [loss] * expected[-1]
    assert not all(expected[4:])
    accepted, _, count = accepted_of(losses)
    assert accepted == expected
    assert count[-1] == expected.count(False)


@pytest.mark.parametrize(("constant", "above", "spike"), [(2.0, 2.05, 2.07), (0.0, 2e-6, 4e-6)])
def test_losses_without_a_spread_do_not_make_every_larger_one_a_spike(
    constant: float, above: float, spike: float
) -> None:
    assert accepted_of([constant] * 4 + [spike])[0] == [True] * 4 + [False]
    assert accepted_of([constant] * 4 + [above, constant, above])[0] == [True] * 7


def test_nothing_is_a_spike_before_the_window_is_full() -> None:
    assert accepted_of([1.0, 1.1, 1e6, 1.0])[0] == [True] * 4
    assert accepted_of([1.0, 1.1, 0.9, 1.0, 1e6])[0] == [True] * 4 + [False]


def test_a_step_that_is_not_finite_is_no_spike_and_no_known_loss() -> None:
    losses = [1.0, 1.1, 0.9, float("nan"), 1e6, 1e6]
    accepted, in_row, count = accepted_of(losses, [True, True, True, False, True, True])
    # The fourth known loss is 1e6 itself.
    assert accepted == [True, True, True, False, True, True] and count[-1] == 0 == in_row[-1]


def test_spikes_in_a_row_are_counted_from_the_last_accepted_one() -> None:
    _, in_row, count = accepted_of([1.0, 1.1, 0.9, 1.0, 9.0, 9.0, 1.0, 9.0])
    assert (in_row, count) == ([0, 0, 0, 0, 1, 2, 0, 1], [0, 0, 0, 0, 1, 2, 2, 3])


OPTIONS = ["operator.spectral.depth=1", "operator.spectral.hidden_dim=8", "latent.dim=4", "training.spike_sigma=4",
           "training.spike_window=3", "training.input_noise=0"]  # fmt: skip


def test_a_step_with_a_spike_moves_nothing_and_a_restored_run_sees_it_too(waves: Dataset, tmp_path: Path) -> None:
    cfg = load("configs/tiny.yaml", OPTIONS)
    model, tx = build_model(cfg, waves.task, "operator"), optax.adam(1e-3)
    batches = [batch_at(waves, cfg, "operator", n) for n in range(4)]
    spike = replace(batches[3], fields=batches[3].fields * np.asarray([1, -50], np.float32).reshape(1, 2, 1, 1))
    state = init_state(model, tx, batches[0], jax.random.key(0), cfg=cfg)
    step = make_train_step(model, tx, cfg)
    for batch in batches[:3]:
        state, metrics = step(state, batch)
        assert (int(metrics["spikes"]), int(metrics["skipped"])) == (0, 0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, {}, validation=None)
        checkpoints.wait()
        restored = checkpoints.restore(3, jax.eval_shape(lambda: state))
    before = jax.device_get((state.params, state.opt_state, state.ema))
    first, metrics = step(state, spike)
    second, again = step(restored, spike)
    assert (int(metrics["spikes"]), int(metrics["skipped"]), int(first.step)) == (1, 0, 4)
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get((first.params, first.opt_state, first.ema)))
    jax.tree.map(np.testing.assert_array_equal, metrics, again)
    assert isinstance(first.monitor, SpikeMonitor) and isinstance(second.monitor, SpikeMonitor)
    np.testing.assert_array_equal(first.monitor.spikes.losses, second.monitor.spikes.losses)
    assert np.isfinite(first.monitor.spikes.losses).all()


def test_a_state_without_a_window_is_told_of_and_one_that_needs_none_has_none(waves: Dataset) -> None:
    cfg = load("configs/tiny.yaml", OPTIONS)
    model, tx = build(cfg, waves)
    batch = batch_at(waves, cfg, "operator", 0)
    state = jax.eval_shape(lambda key: init_state(model, tx, batch, key), jax.random.key(0))
    with pytest.raises(ConfigError, match="init_state"):
        jax.eval_shape(make_train_step(model, tx, cfg), state, batch)
    off = abstract_state(load("configs/tiny.yaml", [*OPTIONS, "training.spike_sigma=null"]), waves.task, "operator")
    assert {name for name in vars(off.monitor)} == {"skipped_in_row", "skipped", "best_metric", "since_best"}
