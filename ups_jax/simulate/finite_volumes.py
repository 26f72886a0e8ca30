"""Second-order finite volumes on uniform grids: limited slopes, HLL fluxes, Heun's steps; in float64 on the CPU.

Trajectory i is a function of (task, seed, i) alone. What is stored are averages over the cells of the coarser grid.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Key

from ups_jax.simulate import compressible, shallow_water
from ups_jax.simulate.common import cpu, draw
from ups_jax.simulate.presets import VolumePreset

# Trajectories solved together, by the number of space axes.
_CHUNKS = {1: 32, 2: 8}


@dataclass(frozen=True, kw_only=True)
class Flow:
    """A system of conservation laws, on states (channels, *space).

    `initial` draws a state, `rate` is its time derivative, `fields` are the channels that are stored of cell averages.
    """

    initial: Callable[[VolumePreset, Key[Array, ""]], Float[Array, "c *s"]]
    rate: Callable[[VolumePreset, Float[Array, ""], Float[Array, "c *s"]], Float[Array, "c *s"]]
    fields: Callable[[Float[Array, "c *s"]], Float[Array, "c *s"]]


FLOWS = {
    "cfd1d": Flow(initial=compressible.initial, rate=compressible.rate, fields=compressible.fields),
    "swe2d": Flow(initial=shallow_water.initial, rate=shallow_water.rate, fields=shallow_water.fields),
}


def solve(
    task: str, preset: VolumePreset, seed: int, report: Callable[[str], None]
) -> tuple[Float32[np.ndarray, "n t *s c"], Float32[np.ndarray, " n"]]:
    """Trajectories and their coefficients, in float32. `report` is told how far it is, once a chunk."""
    flow, count = FLOWS[task], preset.trajectories
    with jax.default_device(cpu()), jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(task.encode()))
        run = jax.jit(jax.vmap(lambda index: _trajectory(flow, preset, jax.random.fold_in(key, index))))
        fields, coefficients = [], []
        size = _CHUNKS[preset.dimensions]
        for start in range(0, count, size):
            # Always a whole chunk: one compilation, and the last trajectories do not depend on how many there are.
            chunk, values = jax.device_get(run(jnp.arange(start, start + size)))
            fields.append(chunk.astype(np.float32))
            coefficients.append(values.astype(np.float32))
            report(f"{task}: {min(start + size, count)} of {count} trajectories")
    return np.concatenate(fields)[:count], np.concatenate(coefficients)[:count]


def _trajectory(
    flow: Flow, preset: VolumePreset, key: Key[Array, ""]
) -> tuple[Float[Array, "t *s c"], Float[Array, ""]]:
    initial_key, coefficient_key = jax.random.split(key)
    coefficient = draw(preset, jax.random.uniform(coefficient_key))
    state, step = flow.initial(preset, initial_key), preset.dt / preset.substeps

    def substep(_: Any, state: Float[Array, "c *s"]) -> Float[Array, "c *s"]:
        # Heun's second-order method that keeps the total variation (Shu and Osher 1988).
        first = state + step * flow.rate(preset, coefficient, state)
        return 0.5 * (state + first + step * flow.rate(preset, coefficient, first))

    def frame(state: Float[Array, "c *s"], _: None) -> tuple[Float[Array, "c *s"], Float[Array, "c *s"]]:
        state = jax.lax.fori_loop(0, preset.substeps, substep, state)
        return state, state

    _, frames = jax.lax.scan(frame, state, length=preset.steps)
    every = jnp.concatenate([state[None], frames])
    stored = jax.vmap(lambda state: flow.fields(_averages(state, preset.points)))(every)
    return jnp.moveaxis(stored, 1, -1), coefficient


def _averages(state: Float[Array, "c *s"], points: int) -> Float[Array, "c *p"]:
    """Averages of the conserved quantities over `points` cells an axis."""
    for axis in range(1, state.ndim):
        size = state.shape[axis] // points
        state = state.reshape(*state.shape[:axis], points, size, *state.shape[axis + 1 :]).mean(axis=axis + 1)
    return state
