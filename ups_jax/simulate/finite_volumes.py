"""Second-order finite volumes on uniform grids: limited slopes, HLL fluxes and Heun's method, in float64 on the CPU.

Trajectory i depends on the task, the seed and i only. It is solved on a finer grid and averaged over the stored cells.
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
from ups_jax.simulate.common import coefficient_at, cpu_device
from ups_jax.simulate.presets import FiniteVolumePreset

# Number of trajectories in one compiled call, by the number of space axes.
_CHUNK_SIZES = {1: 32, 2: 8}


@dataclass(frozen=True, kw_only=True)
class ConservationLaw:
    """A system of conservation laws. Its states (channels, *space) are cell averages of the conserved variables.

    Attributes:
        initial_state: Function (preset, random key) -> random state.
        time_derivative: Function (preset, coefficient, state) -> time derivative of the state.
        to_primitive: Function from a state to its primitive variables, which are stored.
    """

    initial_state: Callable[[FiniteVolumePreset, Key[Array, ""]], Float[Array, "c *s"]]
    time_derivative: Callable[[FiniteVolumePreset, Float[Array, ""], Float[Array, "c *s"]], Float[Array, "c *s"]]
    to_primitive: Callable[[Float[Array, "c *s"]], Float[Array, "c *s"]]


CONSERVATION_LAWS = {
    "cfd1d": ConservationLaw(
        initial_state=compressible.initial_state,
        time_derivative=compressible.time_derivative,
        to_primitive=compressible.to_primitive,
    ),
    "swe2d": ConservationLaw(
        initial_state=shallow_water.initial_state,
        time_derivative=shallow_water.time_derivative,
        to_primitive=shallow_water.to_primitive,
    ),
}


def solve(
    task: str, preset: FiniteVolumePreset, seed: int, report: Callable[[str], None]
) -> tuple[Float32[np.ndarray, "n t *s c"], Float32[np.ndarray, " n"]]:
    """Return random trajectories of a conservation law, and the coefficient of each.

    Args:
        task: Name of the task, a key of `CONSERVATION_LAWS`.
        report: Receives progress lines.
    """
    law, count = CONSERVATION_LAWS[task], preset.trajectories
    with jax.default_device(cpu_device()), jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(task.encode()))
        run = jax.jit(jax.vmap(lambda index: _solve_trajectory(law, preset, jax.random.fold_in(key, index))))
        fields, coefficients = [], []
        size = _CHUNK_SIZES[preset.dimensions]
        for start in range(0, count, size):
            # Full chunks only: one compilation, and the last trajectories do not depend on their number.
            chunk, values = jax.device_get(run(jnp.arange(start, start + size)))
            fields.append(chunk.astype(np.float32))
            coefficients.append(values.astype(np.float32))
            report(f"{task}: {min(start + size, count)} of {count} trajectories")
    return np.concatenate(fields)[:count], np.concatenate(coefficients)[:count]


def _solve_trajectory(
    law: ConservationLaw, preset: FiniteVolumePreset, key: Key[Array, ""]
) -> tuple[Float[Array, "t *s c"], Float[Array, ""]]:
    """Return the stored frames of a trajectory and its coefficient."""
    initial_key, coefficient_key = jax.random.split(key)
    coefficient = coefficient_at(preset, jax.random.uniform(coefficient_key))
    state, dt = law.initial_state(preset, initial_key), preset.dt / preset.substeps

    def advance_substep(_: Any, state: Float[Array, "c *s"]) -> Float[Array, "c *s"]:
        # Heun's method of second order, which is total variation diminishing (Shu and Osher 1988).
        first = state + dt * law.time_derivative(preset, coefficient, state)
        return 0.5 * (state + first + dt * law.time_derivative(preset, coefficient, first))

    def advance_frame(state: Float[Array, "c *s"], _: None) -> tuple[Float[Array, "c *s"], Float[Array, "c *s"]]:
        state = jax.lax.fori_loop(0, preset.substeps, advance_substep, state)
        return state, state

    _, frames = jax.lax.scan(advance_frame, state, length=preset.steps)
    all_frames = jnp.concatenate([state[None], frames])
    stored = jax.vmap(lambda state: law.to_primitive(_coarsen(state, preset.points)))(all_frames)
    return jnp.moveaxis(stored, 1, -1), coefficient


def _coarsen(state: Float[Array, "c *s"], cells: int) -> Float[Array, "c *p"]:
    """Return the averages of a state over the cells of a coarser grid, with `cells` cells along each axis."""
    for axis in range(1, state.ndim):
        size = state.shape[axis] // cells
        state = state.reshape(*state.shape[:axis], cells, size, *state.shape[axis + 1 :]).mean(axis=axis + 1)
    return state
