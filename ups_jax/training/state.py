"""The state of a training as a single pytree that contains everything a resume needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key, PyTree

from ups_jax.config import Config, TrainingConfig
from ups_jax.core.errors import ConfigError
from ups_jax.optim import ema_init

# Leaves of a state are arrays, tracers or abstract shapes, depending on the context.
Leaf = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Monitor:
    """Counters that decide whether a training stops early.

    Attributes:
        skipped_in_row: Steps with a non-finite loss or gradient since the last accepted step, int32 scalar.
        skipped: Total number of steps with a non-finite loss or gradient, int32 scalar.
        best_metric: Lowest validation metric, float32 scalar.
        since_best: Evaluations since the lowest validation metric, int32 scalar.
    """

    skipped_in_row: Leaf
    skipped: Leaf
    best_metric: Leaf
    since_best: Leaf


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SpikeMonitor(Monitor):
    """A monitor with the window of recent losses from which loss spikes are detected.

    It is a separate class, because an optional field of `Monitor` would make older checkpoints unreadable.
    """

    spikes: SpikeWindow


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TrainState:
    """The state of a training.

    Attributes:
        step: Number of completed steps including skipped steps, and therefore the position in the data; int32.
        params: Parameters of the model.
        opt_state: State of the optimizer.
        ema: State of the parameter average.
        rng: Base key of the run; each random draw folds the name of its stream and the step into it.
        monitor: Counters for early stopping.
    """

    step: Leaf
    params: PyTree
    opt_state: optax.OptState
    ema: optax.EmaState
    rng: Leaf
    monitor: Monitor


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ScaledState(TrainState):
    """A train state with the scale of the error that a corrector models.

    It is a separate class, because an optional field of `TrainState` would make older checkpoints unreadable.

    Attributes:
        scale: Root mean square of the error per channel (c,), measured before the first step and constant since.
    """

    scale: Leaf


def init_monitor(cfg: Config | None = None) -> Monitor:
    """Return the monitor of a new training, with an empty window of losses if `cfg` enables spike detection."""
    zero = jnp.zeros((), jnp.int32)
    monitor = Monitor(
        skipped_in_row=zero, skipped=zero, best_metric=jnp.full((), jnp.inf, jnp.float32), since_best=zero
    )
    window = None if cfg is None else init_spike_window(cfg.training)
    return monitor if window is None else SpikeMonitor(**vars(monitor), spikes=window)


def create_train_state(
    params: PyTree,
    tx: optax.GradientTransformation,
    key: Key[Array, ""],
    cfg: Config | None = None,
    *,
    scale_channels: int | None = None,
) -> TrainState:
    """Return the train state at step 0.

    Call it under `jax.jit`, so that no two leaves share a buffer.

    Args:
        key: Base key of the run.
        cfg: Configuration, which decides whether the monitor has a window of losses.
        scale_channels: Number of channels for a `ScaledState` with a scale of ones; None for a `TrainState`.
    """
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        ema=ema_init(params),
        rng=key,
        monitor=init_monitor(cfg),
    )
    return state if scale_channels is None else ScaledState(**vars(state), scale=jnp.ones(scale_channels, jnp.float32))


def state_scale(state: TrainState) -> Leaf:
    """Return the scale of a `ScaledState`, None for other states."""
    return state.scale if isinstance(state, ScaledState) else None


# Lower bounds of the standard deviation of a window: relative to its mean, and absolute.
MIN_RELATIVE_SPREAD = 0.01
MIN_SPREAD = 1e-6


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SpikeWindow:
    """The recent losses from which loss spikes are detected, and the number of spikes.

    Attributes:
        losses: Last accepted losses, oldest first; NaN stands for a loss that a new training does not have yet.
        in_row: Spikes since the last accepted step, int32 scalar.
        count: Total number of spikes, int32 scalar.
    """

    losses: Leaf
    in_row: Leaf
    count: Leaf


def init_spike_window(config: TrainingConfig) -> SpikeWindow | None:
    """Return the window of a new training, without losses; None if spike detection is disabled."""
    if config.spike_sigma is None:
        return None
    zero = jnp.zeros((), jnp.int32)
    return SpikeWindow(losses=jnp.full((config.spike_window,), jnp.nan, jnp.float32), in_row=zero, count=zero)


def accept_and_update_window(
    window: SpikeWindow | None, loss: Float[Array, ""], finite: Bool[Array, ""], config: TrainingConfig
) -> tuple[Bool[Array, ""], SpikeWindow | None]:
    """Return whether a step is accepted (finite and no spike), and the window after the step.

    A step is a spike if its loss exceeds the mean of a full window by more than `spike_sigma` standard deviations. The
    standard deviation is at least `MIN_RELATIVE_SPREAD` times the mean.

    Args:
        window: Window before the step; None if spike detection is disabled.
        finite: Whether loss and gradient of the step are finite.

    Raises:
        ConfigError: Spike detection is enabled and the state has no window.
    """
    if config.spike_sigma is None:
        return finite, window
    if window is None:
        raise ConfigError(
            "training.spike_sigma is set, but the train state has no window of losses; pass `cfg=cfg` to init_state"
        )
    old_losses = window.losses
    mean = old_losses.mean()
    # Losses are relative errors or errors of normalised fields: MIN_SPREAD is about the round-off of 1.
    spread = jnp.maximum(old_losses.std(), jnp.maximum(MIN_RELATIVE_SPREAD * jnp.abs(mean), MIN_SPREAD))
    limit = mean + config.spike_sigma * spread
    # The mean over a window that is not full is NaN, and no loss is above NaN.
    spike = finite & (loss > limit)
    accepted = finite & ~spike
    losses = jnp.where(accepted, jnp.concatenate([old_losses[1:], loss[None].astype(old_losses.dtype)]), old_losses)
    increment = spike.astype(jnp.int32)
    # A non-finite step does not reset `in_row`: a run that alternates between it and spikes makes no progress.
    in_row = jnp.where(accepted, 0, window.in_row + increment)
    return accepted, SpikeWindow(losses=losses, in_row=in_row, count=window.count + increment)


def spike_metrics(window: SpikeWindow | None) -> dict[str, Array]:
    """Return the metrics with the numbers of spikes; no metrics if spike detection is disabled."""
    return {} if window is None else {"spikes": window.count, "spikes_in_row": window.in_row}
