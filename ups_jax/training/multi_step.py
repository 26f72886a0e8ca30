"""Several train steps per call of a compiled program, so that the overhead of a call on the host is paid once.

The number of steps of a call is an argument of the program. A training is therefore bit-identical however its steps are
divided into calls, and can be stopped and resumed at any step.
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

# Limits of a call: its steps, and the bytes of its stacked batches.
_MAX_STEPS, _MAX_BYTES = 8, 2**20
# Batches of a call, stacked along a new first axis, and how many of them are used.
Batches = tuple[Batch, np.int32 | Array]
Step = Callable[[TrainState, Batch, PyTree], tuple[TrainState, dict[str, Array]]]
StackedStep = Callable[[TrainState, Batches, PyTree], tuple[TrainState, dict[str, Array]]]


def steps_per_call(cfg: Config, data: Mixture, first: Batch, mesh: Mesh) -> int:
    """Return the maximum number of steps per call: up to 8 for one task on one CPU device, otherwise 1.

    Several steps per call are not possible or not faster otherwise: batches of several tasks differ in shape; on a GPU,
    every iteration of a loop synchronises with the host; for large batches, the overhead of a call is negligible.

    Args:
        first: A batch of the stage; its size in bytes limits the number of steps.
    """
    # Without compilation a call has no overhead, and single steps are easier to debug.
    if not cfg.training.compile or not is_one_cpu(mesh) or len(data.tasks) > 1:
        return 1
    return max(1, min(_MAX_STEPS, _MAX_BYTES // first.nbytes))


def scan_steps(step: Step, max_steps: int) -> StackedStep:
    """Return a function that calls `step` once for each used batch of a stack.

    Args:
        step: Train step (state, batch, parents) -> (state, metrics).
        max_steps: Number of batches in a stack, used and unused.

    Returns:
        A function (state, stacked batches, parents) -> (state, metrics). Each metric has `max_steps` entries, which are
        zero for unused batches.
    """

    # Traced once, for the shapes of the metrics and for the body of the loop, and inlined in both.
    traced_step = jax.jit(step, inline=True)

    def run_steps(state: TrainState, stacked: Batches, parents: PyTree) -> tuple[TrainState, dict[str, Array]]:
        batches, count = stacked

        def run_step(number: Array, carry: tuple[TrainState, dict[str, Array]]) -> tuple[TrainState, dict[str, Array]]:
            state, metrics = carry
            state, new_metrics = traced_step(state, jax.tree.map(lambda values: values[number], batches), parents)
            return state, jax.tree.map(lambda values, new: values.at[number].set(new), metrics, new_metrics)

        first = jax.tree.map(lambda values: values[0], batches)
        shapes = jax.eval_shape(lambda state, batch: traced_step(state, batch, parents)[1], state, first)
        metrics = jax.tree.map(lambda leaf: jnp.zeros((max_steps, *leaf.shape), leaf.dtype), shapes)
        return jax.lax.fori_loop(0, count, run_step, (state, metrics))

    return run_steps


def stack_batches(batches: Sequence[Batch], max_steps: int) -> Batches:
    """Stack batches along a new first axis, as one call of a train step with `steps_per_call` > 1 takes them.

    Args:
        batches: One to `max_steps` batches of the same shape.
        max_steps: `steps_per_call` of the train step; copies of the last batch fill the stack.

    Returns:
        The stacked batches, and the number of batches without the copies.
    """
    filled = [*batches, *[batches[-1]] * (max_steps - len(batches))]
    return jax.tree.map(lambda *rows: np.stack(rows), *filled), np.int32(len(batches))


def make_batch_transfer(mesh: Mesh, max_steps: int) -> Callable[[Sequence[Batch]], Batch | Batches]:
    """Return the function that turns the batches of one call into the argument `batch` of the train step."""
    if max_steps > 1:
        return partial(stack_batches, max_steps=max_steps)
    return lambda batches: batch_for_step(mesh, *batches)


def unstack_metrics(metrics: Mapping[str, Array], count: int) -> list[dict[str, float]]:
    """Return the metrics of each of the `count` steps of a call as floats; this waits until the call has ended."""
    values = {name: np.reshape(value, -1) for name, value in jax.device_get(metrics).items()}
    return [{name: float(value[number]) for name, value in values.items()} for number in range(count)]
