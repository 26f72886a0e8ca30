"""The Gray-Scott reaction of two substances on a periodic square (exponax), in float64 on the CPU.

u_t = D_u Laplace(u) - u v^2 + feed (1 - u) and v_t = D_v Laplace(v) + u v^2 - (feed + kill) v. Depending on the rates,
spots of v grow into a pattern that keeps moving or stands still, or they die out and the fields become uniform.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import exponax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Key

from ups_jax.simulate.common import cpu_device
from ups_jax.simulate.presets import ReactionPreset

CHANNELS = ("u", "v")
# Number of trajectories in one compiled call.
_CHUNK_SIZE = 4
# Concentrations in the middle of a spot, and the range of a spot's radius in units of length.
_SPOT, _RADII = (0.5, 0.25), (2.0, 5.0)


def solve(
    task: str, preset: ReactionPreset, seed: int, report: Callable[[str], None]
) -> tuple[Float32[np.ndarray, "n t *s c"], dict[str, Float32[np.ndarray, " n"]]]:
    """Return random trajectories with the channels `CHANNELS`, and the rates `feed` and `kill` of each.

    Trajectory i depends on the task, the seed and i only.

    Args:
        task: Name of the task, from which random numbers are derived.
        report: Receives progress lines.
    """
    count = preset.trajectories
    with jax.default_device(cpu_device()), jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(task.encode()))
        run = jax.jit(jax.vmap(lambda index: _solve_trajectory(preset, jax.random.fold_in(key, index))))
        fields, rates = [], []
        for start in range(0, count, _CHUNK_SIZE):
            # Full chunks only: one compilation, and the last trajectories do not depend on their number.
            chunk, values = jax.device_get(run(jnp.arange(start, start + _CHUNK_SIZE)))
            fields.append(chunk.astype(np.float32))
            rates.append(values.astype(np.float32))
            report(f"{task}: {min(start + _CHUNK_SIZE, count)} of {count} trajectories")
    feed, kill = np.concatenate(rates)[:count].T
    return np.concatenate(fields)[:count], {"feed": feed, "kill": kill}


def make_stepper(
    preset: ReactionPreset, feed: Float[Array, ""], kill: Float[Array, ""], substeps: int
) -> exponax.BaseStepper:
    """Return the stepper of one of `substeps` equal parts of `preset.dt`."""
    return exponax.stepper.reaction.GrayScott(
        preset.dimensions,
        preset.extent,
        preset.solved_points,
        preset.dt / substeps,
        diffusivity_1=preset.diffusivities[0],
        diffusivity_2=preset.diffusivities[1],
        feed_rate=feed,
        kill_rate=kill,
        order=4,
    )


def initial_state(preset: ReactionPreset, key: Key[Array, ""]) -> Float[Array, "2 x y"]:
    """Return u = 1 and v = 0 with one to `preset.spots` smooth round spots of `_SPOT`."""
    centre_key, radius_key, count_key = jax.random.split(key, 3)
    line = preset.extent / preset.solved_points * jnp.arange(preset.solved_points)
    centres = preset.extent * jax.random.uniform(centre_key, (preset.spots, 2))
    radii = jax.random.uniform(radius_key, (preset.spots,), minval=_RADII[0], maxval=_RADII[1])
    exists = jnp.arange(preset.spots) < jax.random.randint(count_key, (), 1, preset.spots + 1)
    # Distances to the nearest periodic image.
    x, y = (
        (line[:, None] - centres[:, axis] + preset.extent / 2) % preset.extent - preset.extent / 2 for axis in (0, 1)
    )
    distances = jnp.hypot(x[:, None], y[None])
    spot = jnp.max(jnp.where(exists, 0.5 * (1 - jnp.tanh(distances - radii)), 0.0), axis=-1)
    return jnp.stack([1 - (1 - _SPOT[0]) * spot, _SPOT[1] * spot])


def _solve_trajectory(preset: ReactionPreset, key: Key[Array, ""]) -> tuple[Float[Array, "t *s 2"], Float[Array, " 2"]]:
    """Return the stored frames of a trajectory, and its feed and kill rates."""
    state_key, feed_key, kill_key = jax.random.split(key, 3)
    feed = jax.random.uniform(feed_key, minval=preset.feed_range[0], maxval=preset.feed_range[1])
    kill = jax.random.uniform(kill_key, minval=preset.kill_range[0], maxval=preset.kill_range[1])
    step = exponax.RepeatedStepper(make_stepper(preset, feed, kill, preset.substeps), preset.substeps)
    frames = exponax.rollout(step, preset.steps, include_init=True)(initial_state(preset, state_key))
    stored = slice(None, None, preset.solved_points // preset.points)
    return jnp.moveaxis(frames[:, :, stored, stored], 1, -1), jnp.stack([feed, kill])
