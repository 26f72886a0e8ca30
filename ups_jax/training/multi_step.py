"""Several steps by one call of a compiled program: what a call costs the host is paid once for all of them.

The program has a loop whose number of turns is an argument, so that the steps of a training are the same to the bit
however they are shared out among calls: a run that was stopped anywhere goes on as if it had not been.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from ups_jax.config import Config
from ups_jax.data import Mixture
from ups_jax.distributed.mesh import batch_for_step, is_one_cpu
from ups_jax.models import Batch
from ups_jax.training.state import TrainState

# Of a call, and the bytes of its batches, which wait side by side.
_MOST_STEPS, _MOST_BYTES = 8, 2**20
# The batches of a call, one behind the other on a new first axis, and how many of them count.
Batches = tuple[Batch, np.int32 | Array]
Step = Callable[[TrainState, Batch, PyTree], tuple[TrainState, dict[str, Array]]]
StackedStep = Callable[[TrainState, Batches, PyTree], tuple[TrainState, dict[str, Array]]]


def steps_per_call(cfg: Config, data: Mixture, first: Batch, mesh: Mesh) -> int:
    """The most steps that one call makes: on one CPU, of one task with small batches, 8; elsewhere 1.

    A GPU waits for its host at every turn of such a loop, several devices or tasks have batches of their own kinds,
    and large batches belong to steps beside which a call costs nothing.
    """
    # What is not compiled has no calls that cost anything, and is to be looked into step by step.
    if not cfg.training.compile or not is_one_cpu(mesh) or len(data.tasks) > 1:
        return 1
    return max(1, min(_MOST_STEPS, _MOST_BYTES // first.nbytes))


def scan_steps(step: Step, most: int) -> StackedStep:
    """Return `step(state, batch, parents) -> (state, metrics)` as a function of stacked batches, whose metrics have
    `most` entries each; only those of the batches that count are computed."""

    def steps(state: TrainState, stacked: Batches, parents: PyTree) -> tuple[TrainState, dict[str, Array]]:
        batches, count = stacked

        def one(number: Array, carry: tuple[TrainState, dict[str, Array]]) -> tuple[TrainState, dict[str, Array]]:
            state, metrics = carry
            state, new_metrics = step(state, jax.tree.map(lambda values: values[number], batches), parents)
            return state, jax.tree.map(lambda values, new: values.at[number].set(new), metrics, new_metrics)

        first = jax.tree.map(lambda values: values[0], batches)
        shapes = jax.eval_shape(lambda state, batch: step(state, batch, parents)[1], state, first)
        metrics = jax.tree.map(lambda leaf: jnp.zeros((most, *leaf.shape), leaf.dtype), shapes)
        return jax.lax.fori_loop(0, count, one, (state, metrics))

    return steps


def stack_batches(batches: Sequence[Batch], most: int) -> Batches:
    """Up to `most` batches as `several` steps take them; the last one fills up the places of those that are not
    there."""
    filled = [*batches, *[batches[-1]] * (most - len(batches))]
    return jax.tree.map(lambda *rows: np.stack(rows), *filled), np.int32(len(batches))


def make_batch_transfer(mesh: Mesh, most: int) -> Callable[[Sequence[Batch]], Batch | Batches]:
    """What brings the batches of a call to the devices, for a step that makes `most` at once."""
    return partial(stack_batches, most=most) if most > 1 else lambda batches: batch_for_step(mesh, *batches)


def unstack_metrics(metrics: Mapping[str, Array], count: int) -> list[dict[str, float]]:
    """The metrics of a call of `count` steps as numbers, step by step; waits until the device has them."""
    values = {name: np.reshape(value, -1) for name, value in jax.device_get(metrics).items()}
    return [{name: float(value[number]) for name, value in values.items()} for number in range(count)]
