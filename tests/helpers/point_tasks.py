"""Tasks of points for tests: fields at points that rest between walls, and particles in a periodic box."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from ups_jax.core.task import Coefficient, Input, Statistics, Task
from ups_jax.models import Conditions, Geometry


def still_task(points: int = 11, axes: int = 2) -> Task:
    """One channel at points that rest, with a given field and a coefficient."""
    one = (1.0,) * axes
    return Task(
        name="still", channels=("u",), axes=("x", "y", "z")[:axes], shape=(points,), origin=(0.0,) * axes,
        spacing=(0.3,) * axes, periodic=(False,) * axes, dt=0.1, coefficients=(Coefficient(name="kappa"),),
        statistics=Statistics(mean=(0.5,), std=(2.0,), delta_std=(0.4,)), inputs=(Input(name="source", std=2.0),),
        box=one,
    )  # fmt: skip


def swarm_task(points: int = 11) -> Task:
    """Positions and velocities of particles in a periodic box."""
    return Task(
        name="swarm", channels=("x", "y", "u", "v"), axes=("x", "y"), shape=(points,), origin=(0.0, 0.0),
        spacing=(0.3, 0.3), periodic=(True, True), dt=0.1, coefficients=(Coefficient(name="nu"),),
        statistics=Statistics(mean=(0.5, 1.0, 0.0, 0.0), std=(0.3, 0.6, 1.0, 1.0), delta_std=(0.1, 0.1, 0.2, 0.2)),
        box=(1.0, 2.0), moving=(0, 1),
    )  # fmt: skip


def conditions(task: Task, rng, batch: int = 2, geometry: Geometry | None = None, like: Conditions | None = None):
    """Conditions of random points, or those of `like` with another geometry."""
    if like is not None:
        return Conditions(dt=like.dt, coefficients=like.coefficients, mask=like.mask, geometry=geometry)
    axes = 0 if task.moving else len(task.axes)
    where = Geometry(
        coords=jnp.asarray(rng.random((batch, task.num_points, axes)), jnp.float32),
        mask=jnp.ones((batch, task.num_points)),
        inputs=jnp.asarray(rng.normal(size=(batch, task.num_points, len(task.inputs))), jnp.float32),
    )
    return Conditions(
        dt=jnp.full(batch, task.dt),
        coefficients=jnp.asarray(rng.normal(size=(batch, 1)), jnp.float32),
        mask=jnp.ones((batch, 1)),
        geometry=where,
    )


def example(task: Task, context: int = 1, seed: int = 0):
    """Random frames of two samples and their conditions."""
    rng = np.random.default_rng(seed)
    fields = rng.normal(size=(2, context, task.num_points, len(task.channels))).astype(np.float32)
    return jnp.asarray(fields), conditions(task, rng)
