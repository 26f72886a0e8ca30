"""Pseudo-spectral solvers of the embedded tasks (exponax), in float64 on the CPU, a chunk of trajectories at a time.

Trajectory i is a function of (task, seed, i) alone: neither the number of trajectories nor a run's device moves it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import exponax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Key

from ups_jax.simulate.common import cpu, draw
from ups_jax.simulate.presets import Preset

# Trajectories solved together, by the number of space axes.
_CHUNKS = {1: 32, 2: 8}


def solve(
    task: str, preset: Preset, seed: int, report: Callable[[str], None]
) -> tuple[Float32[np.ndarray, "n t *s"], Float32[np.ndarray, " n"]]:
    """Trajectories and their coefficients, in float32. `report` is told how far it is, once a chunk."""
    with jax.default_device(cpu()), jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(task.encode()))
        run = jax.jit(jax.vmap(lambda index: _trajectory(STEPPERS[task], preset, jax.random.fold_in(key, index))))
        fields, coefficients = [], []
        size = _CHUNKS[preset.dimensions]
        for start in range(0, preset.trajectories, size):
            # Always a whole chunk: one compilation, and the last trajectories do not depend on how many there are.
            chunk, values = jax.device_get(run(preset.first + jnp.arange(start, start + size)))
            fields.append(chunk.astype(np.float32))
            coefficients.append(values.astype(np.float32))
            report(f"{task}: {min(start + size, preset.trajectories)} of {preset.trajectories} trajectories")
    count = preset.trajectories
    return np.concatenate(fields)[:count], np.concatenate(coefficients)[:count]


def burgers(preset: Preset, nu: Float[Array, ""]) -> exponax.BaseStepper:
    """One substep of u_t + (u²/2)_x = nu u_xx. Order 4 because order 2 needs 5 times the substeps for 1e-5."""
    return exponax.stepper.Burgers(*_domain(preset), diffusivity=nu, order=4, conservative=True)


def advection(preset: Preset, beta: Float[Array, ""]) -> exponax.BaseStepper:
    """One substep of u_t + beta u_x = 0, exact on the grid's modes."""
    return exponax.stepper.Advection(*_domain(preset), velocity=beta[None])


def kuramoto_sivashinsky(preset: Preset, convection: Float[Array, ""]) -> exponax.BaseStepper:
    """One substep of u_t + convection (u²/2)_x + u_xx + u_xxxx = 0, in the form that keeps the mean."""
    return exponax.stepper.KuramotoSivashinskyConservative(*_domain(preset), convection_scale=convection, order=4)


def navier_stokes(preset: Preset, nu: Float[Array, ""]) -> exponax.BaseStepper:
    """One substep of w_t + v . grad w = nu Laplace(w), with v the velocity whose curl is w."""
    return exponax.stepper.NavierStokesVorticity(
        *_domain(preset),
        diffusivity=nu,
        # exponax takes psi = +1 / Laplace(w) for (psi_y, -psi_x), whose curl is -w.
        vorticity_convection_scale=-1.0,
        order=4,
    )


STEPPERS: dict[str, Callable[[Preset, Float[Array, ""]], exponax.BaseStepper]] = {
    "burgers1d": burgers,
    "advection1d": advection,
    "ks1d": kuramoto_sivashinsky,
    "ns2d": navier_stokes,
}


def _domain(preset: Preset) -> tuple[int, float, int, float]:
    """Space axes, extent, points of an axis and substep, the first arguments of every stepper."""
    return preset.dimensions, preset.extent, preset.solved_points, preset.dt / preset.substeps


def _trajectory(
    stepper: Callable[[Preset, Float[Array, ""]], exponax.BaseStepper], preset: Preset, key: Key[Array, ""]
) -> tuple[Float[Array, "t *s"], Float[Array, ""]]:
    initial_key, coefficient_key = jax.random.split(key)
    series = exponax.ic.RandomTruncatedFourierSeries(preset.dimensions, cutoff=preset.modes, max_one=True)
    initial = preset.amplitude * series(preset.solved_points, key=initial_key)
    coefficient = draw(preset, jax.random.uniform(coefficient_key))
    step = exponax.RepeatedStepper(stepper(preset, coefficient), preset.substeps)
    if preset.burn_in:
        initial = exponax.repeat(step, preset.burn_in)(initial)
    frames = exponax.rollout(step, preset.steps, include_init=True)(initial)
    return _stored(frames[:, 0], preset), coefficient


def _stored(frames: Float[Array, "t *s"], preset: Preset) -> Float[Array, "t *p"]:
    """The solved frames at the stored points; those of a coarser preset of the same `solved_points` are among them."""
    between = max(1, preset.points // preset.solved_points)
    for axis in range(1, preset.dimensions + 1):
        frames = _refined(frames, axis, between)
    every = slice(None, None, between * preset.solved_points // preset.points)
    return frames[(slice(None), *[every] * preset.dimensions)]


def _refined(frames: Float[Array, "t *s"], axis: int, count: int) -> Float[Array, "t *p"]:
    """`count` points for each one of an axis: itself, and those after it from the Fourier series of the solved ones."""
    size = frames.shape[axis]
    wavenumbers = jnp.arange(size // 2 + 1).reshape([-1 if other == axis else 1 for other in range(frames.ndim)])
    spectrum = jnp.fft.rfft(frames, axis=axis)
    shifts = (jnp.exp(2j * jnp.pi * wavenumbers * step / (count * size)) for step in range(1, count))
    shifted = [jnp.fft.irfft(spectrum * shift, size, axis=axis) for shift in shifts]
    shape = [count * points if other == axis else points for other, points in enumerate(frames.shape)]
    return jnp.stack([frames, *shifted], axis + 1).reshape(shape)
