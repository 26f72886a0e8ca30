"""The whole state of a training run as one pytree: everything that a resumed run needs, and nothing else."""

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

# The leaves of a state are arrays, tracers or abstract shapes by turns, which no single annotation covers.
Leaf = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Monitor:
    """What decides about stopping, all scalars: int32 skips in a row and in all, float32 best metric, int32 evaluations
    since."""

    skipped_in_row: Leaf
    skipped: Leaf
    best_metric: Leaf
    since_best: Leaf


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SpikeMonitor(Monitor):
    """With the losses that tell a spike. A type of its own: a field that is None would be one more entry of every
    checkpoint, and make those unreadable that have none."""

    spikes: SpikeWindow


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TrainState:
    """`step` (int32) counts completed steps, skipped ones included, so that it is also the position in the data.

    `rng` is the run's base key (typed, scalar); what is random in a step folds a name and the step into it.
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
    """With the rms by channel of what the stage models, measured before the first step and kept as it is. A type of its
    own for the sake of older checkpoints, as `SpikeMonitor` is."""

    scale: Leaf


def init_monitor(cfg: Config | None = None) -> Monitor:
    """Nothing skipped, nothing measured; with room for what `cfg` has watched."""
    zero = jnp.zeros((), jnp.int32)
    monitor = Monitor(
        skipped_in_row=zero, skipped=zero, best_metric=jnp.full((), jnp.inf, jnp.float32), since_best=zero
    )
    window = None if cfg is None else init_spike_window(cfg.training)
    return monitor if window is None else SpikeMonitor(**vars(monitor), spikes=window)


def state_of(
    params: PyTree,
    tx: optax.GradientTransformation,
    key: Key[Array, ""],
    cfg: Config | None = None,
    *,
    scaled: int | None = None,
) -> TrainState:
    """A state at step 0 for given parameters; traced under jit, so that no two leaves share a buffer. With `scaled`
    channels it has a scale, of ones until it is measured."""
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        ema=ema_init(params),
        rng=key,
        monitor=init_monitor(cfg),
    )
    return state if scaled is None else ScaledState(**vars(state), scale=jnp.ones(scaled, jnp.float32))


def state_scale(state: TrainState) -> Leaf:
    """The scale of a state that has one, else None."""
    return state.scale if isinstance(state, ScaledState) else None


# The least spread of a window: a share of its mean, and of a loss of zero this.
MIN_RELATIVE_SPREAD = 0.01
ROUND_OFF = 1e-6


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SpikeWindow:
    """The last accepted losses, oldest first (NaN: not there yet), int32 spikes in a row and in all."""

    losses: Leaf
    in_row: Leaf
    count: Leaf


def init_spike_window(config: TrainingConfig) -> SpikeWindow | None:
    """An empty window; None where no spikes are looked for."""
    if config.spike_sigma is None:
        return None
    zero = jnp.zeros((), jnp.int32)
    return SpikeWindow(losses=jnp.full((config.spike_window,), jnp.nan, jnp.float32), in_row=zero, count=zero)


def judge(
    window: SpikeWindow | None, loss: Float[Array, ""], accepted: Bool[Array, ""], config: TrainingConfig
) -> tuple[Bool[Array, ""], SpikeWindow | None]:
    """Whether a step is accepted (which it was up to here, or not), and the window after it.

    Refused: loss > mean + `spike_sigma` standard deviations of the window. Nothing is before the window is full. Of
    losses that hardly differ, `MIN_RELATIVE_SPREAD` times their mean counts for the deviation.
    """
    if config.spike_sigma is None:
        return accepted, window
    if window is None:
        raise ConfigError("training.spike_sigma is set, the state has no window of losses: give init_state `cfg=cfg`")
    known = window.losses
    mean = known.mean()
    # The loss's terms are relative errors or of normalised fields: what is below round-off of 1 is no spread either.
    spread = jnp.maximum(known.std(), jnp.maximum(MIN_RELATIVE_SPREAD * jnp.abs(mean), ROUND_OFF))
    limit = mean + config.spike_sigma * spread
    # A mean over a window that is not full is NaN, and no number exceeds that.
    spike = accepted & (loss > limit)
    kept = accepted & ~spike
    losses = jnp.where(kept, jnp.concatenate([known[1:], loss[None].astype(known.dtype)]), known)
    one = spike.astype(jnp.int32)
    # A step left out for another reason ends no row: spikes and lost steps in turn get a run nowhere either.
    in_row = jnp.where(kept, 0, window.in_row + one)
    return kept, SpikeWindow(losses=losses, in_row=in_row, count=window.count + one)


def spike_metrics(window: SpikeWindow | None) -> dict[str, Array]:
    """The counts as metrics of a step; none where no spikes are looked for."""
    return {} if window is None else {"spikes": window.count, "spikes_in_row": window.in_row}
