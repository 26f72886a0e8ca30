"""Pseudo-spectral solvers of the built-in tasks on periodic grids (exponax), in float64 on the CPU.

Trajectory i depends on the task, the seed and i only, not on the number of trajectories or on the training device.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import exponax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Key

from ups_jax.simulate.common import coefficient_at, cpu_device
from ups_jax.simulate.presets import Preset

# Number of trajectories in one compiled call, by the number of space axes.
_CHUNK_SIZES = {1: 32, 2: 8}


def solve(
    task: str, preset: Preset, seed: int, report: Callable[[str], None]
) -> tuple[Float32[np.ndarray, "n t *s"], Float32[np.ndarray, " n"]]:
    """Return random trajectories of a task, and the coefficient of each.

    Args:
        task: Name of the task, a key of `STEPPERS`.
        report: Receives progress lines.
    """
    with jax.default_device(cpu_device()), jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(task.encode()))
        run = jax.jit(jax.vmap(lambda index: _solve_trajectory(STEPPERS[task], preset, jax.random.fold_in(key, index))))
        fields, coefficients = [], []
        size = _CHUNK_SIZES[preset.dimensions]
        for start in range(0, preset.trajectories, size):
            # Full chunks only: one compilation, and the last trajectories do not depend on their number.
            chunk, values = jax.device_get(run(preset.first_index + jnp.arange(start, start + size)))
            fields.append(chunk.astype(np.float32))
            coefficients.append(values.astype(np.float32))
            report(f"{task}: {min(start + size, preset.trajectories)} of {preset.trajectories} trajectories")
    count = preset.trajectories
    return np.concatenate(fields)[:count], np.concatenate(coefficients)[:count]


def burgers(preset: Preset, nu: Float[Array, ""]) -> exponax.BaseStepper:
    """Return the stepper of u_t + (u²/2)_x = nu u_xx for one substep.

    The stepper has order 4. With order 2, an error of 1e-5 would need 5 times as many substeps.
    """
    return exponax.stepper.Burgers(*_stepper_arguments(preset), diffusivity=nu, order=4, conservative=True)


def advection(preset: Preset, beta: Float[Array, ""]) -> exponax.BaseStepper:
    """Return the stepper of u_t + beta u_x = 0 for one substep, exact for the grid's Fourier modes."""
    return exponax.stepper.Advection(*_stepper_arguments(preset), velocity=beta[None])


def kuramoto_sivashinsky(preset: Preset, convection: Float[Array, ""]) -> exponax.BaseStepper:
    """Return the mean-conserving stepper of u_t + convection (u²/2)_x + u_xx + u_xxxx = 0 for one substep."""
    return exponax.stepper.KuramotoSivashinskyConservative(
        *_stepper_arguments(preset), convection_scale=convection, order=4
    )


def navier_stokes(preset: Preset, nu: Float[Array, ""]) -> exponax.BaseStepper:
    """Return the stepper of w_t + v . grad w = nu Laplace(w) for one substep, with curl v = w."""
    return exponax.stepper.NavierStokesVorticity(
        *_stepper_arguments(preset),
        diffusivity=nu,
        # exponax solves Laplace(psi) = +w for the velocity (psi_y, -psi_x), whose curl is -w.
        vorticity_convection_scale=-1.0,
        order=4,
    )


STEPPERS: dict[str, Callable[[Preset, Float[Array, ""]], exponax.BaseStepper]] = {
    "burgers1d": burgers,
    "advection1d": advection,
    "ks1d": kuramoto_sivashinsky,
    "ns2d": navier_stokes,
}


def _stepper_arguments(preset: Preset) -> tuple[int, float, int, float]:
    """Return the first arguments of every stepper: number of axes, length of the domain, points per axis, time step."""
    return preset.dimensions, preset.extent, preset.solved_points, preset.dt / preset.substeps


def _solve_trajectory(
    stepper: Callable[[Preset, Float[Array, ""]], exponax.BaseStepper], preset: Preset, key: Key[Array, ""]
) -> tuple[Float[Array, "t *s"], Float[Array, ""]]:
    """Return the stored frames of a trajectory and its coefficient."""
    initial_key, coefficient_key = jax.random.split(key)
    series = exponax.ic.RandomTruncatedFourierSeries(preset.dimensions, cutoff=preset.modes, max_one=True)
    initial = preset.amplitude * series(preset.solved_points, key=initial_key)
    coefficient = coefficient_at(preset, jax.random.uniform(coefficient_key))
    step = exponax.RepeatedStepper(stepper(preset, coefficient), preset.substeps)
    if preset.burn_in:
        initial = exponax.repeat(step, preset.burn_in)(initial)
    frames = exponax.rollout(step, preset.steps, include_init=True)(initial)
    return _resample(frames[:, 0], preset), coefficient


def _resample(frames: Float[Array, "t *s"], preset: Preset) -> Float[Array, "t *p"]:
    """Return the solver's frames on the stored grid: every n-th point, or interpolated if the stored grid is finer."""
    refinement = max(1, preset.points // preset.solved_points)
    for axis in range(1, preset.dimensions + 1):
        frames = _refine(frames, axis, refinement)
    stored = slice(None, None, refinement * preset.solved_points // preset.points)
    return frames[(slice(None), *[stored] * preset.dimensions)]


def _refine(frames: Float[Array, "t *s"], axis: int, factor: int) -> Float[Array, "t *p"]:
    """Return frames with `factor` times as many points along an axis, interpolated with the Fourier series.

    The original points keep their values.
    """
    size = frames.shape[axis]
    shape = [-1 if other_axis == axis else 1 for other_axis in range(frames.ndim)]
    wavenumbers = jnp.arange(size // 2 + 1).reshape(shape)
    spectrum = jnp.fft.rfft(frames, axis=axis)
    shifts = (jnp.exp(2j * jnp.pi * wavenumbers * step / (factor * size)) for step in range(1, factor))
    shifted = [jnp.fft.irfft(spectrum * shift, size, axis=axis) for shift in shifts]
    refined_shape = [factor * points if other == axis else points for other, points in enumerate(frames.shape)]
    return jnp.stack([frames, *shifted], axis + 1).reshape(refined_shape)
