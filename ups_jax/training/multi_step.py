"""Several steps by one call of a compiled program: what a call costs the host is paid once for all of them.

The program has a loop whose number of turns is an argument, so that the steps of a training are the same to the bit
however they are shared out among calls: a run that was stopped anywhere goes on as if it had not been.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ups_jax.config import Config
from ups_jax.data import Mixture
from ups_jax.distributed.mesh import fed_rows
from ups_jax.losses import Batch

# Of a call, and the bytes of its batches, which wait side by side.
_MOST_STEPS, _MOST_BYTES = 8, 2**20
# The batches of a call, one behind the other on a new first axis, and how many of them count.
Batches = tuple[Batch, np.int32]


def steps_at_once(cfg: Config, data: Mixture, first: Batch, mesh: Mesh) -> int:
    """The most steps that one call makes: on one CPU, of one task with small batches, 8; elsewhere 1.

    A GPU waits for its host at every turn of such a loop, several devices or tasks have batches of their own kinds,
    and large batches belong to steps beside which a call costs nothing.
    """
    # What is not compiled has no calls that cost anything, and is to be looked into step by step.
    if not cfg.training.compile or mesh.size > 1 or mesh.devices.item().platform != "cpu" or len(data.tasks) > 1:
        return 1
    size = sum(np.asarray(values).nbytes for values in first.values())
    return max(1, min(_MOST_STEPS, _MOST_BYTES // size))


def several(step: Callable[..., Any], most: int) -> Callable[..., Any]:
    """`step(state, batch, ...) -> (state, metrics)` as a function of (state, `together` batches, ...), its metrics with
    `most` entries each, of which those of the batches that count are made."""

    def steps(state: Any, given: tuple[Any, Any], *rest: Any) -> tuple[Any, Any]:
        batches, count = given

        def one(number: Any, so_far: tuple[Any, Any]) -> tuple[Any, Any]:
            state, metrics = so_far
            state, own = step(state, jax.tree.map(lambda values: values[number], batches), *rest)
            return state, jax.tree.map(lambda every, new: every.at[number].set(new), metrics, own)

        first = jax.tree.map(lambda values: values[0], batches)
        shapes = jax.eval_shape(lambda state, batch: step(state, batch, *rest)[1], state, first)
        metrics = jax.tree.map(lambda leaf: jnp.zeros((most, *leaf.shape), leaf.dtype), shapes)
        return jax.lax.fori_loop(0, count, one, (state, metrics))

    return steps


def together(batches: Sequence[dict[str, np.ndarray]], most: int) -> Batches:
    """Up to `most` batches as `several` steps take them; the last one fills up the places of those that are not
    there."""
    filled = [*batches, *[batches[-1]] * (most - len(batches))]
    names = batches[0]
    return {name: np.stack([batch[name] for batch in filled]) for name in names}, np.int32(len(batches))


def as_given(mesh: Mesh, most: int) -> Callable[[Sequence[dict[str, np.ndarray]]], Any]:
    """What brings the batches of a call to the devices, for a step that makes `most` at once."""
    return partial(together, most=most) if most > 1 else lambda batches: fed_rows(mesh, *batches)


def each_of(metrics: dict[str, Any], count: int) -> list[dict[str, float]]:
    """The metrics of a call of `count` steps as numbers, step by step; waits until the device has them."""
    values = {name: np.reshape(value, -1) for name, value in jax.device_get(metrics).items()}
    return [{name: float(value[number]) for name, value in values.items()} for number in range(count)]
