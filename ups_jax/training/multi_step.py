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

    On a GPU, every iteration of the loop synchronises with the host. Batches of several tasks differ in shape. With
    large batches, the overhead of a call is negligible.

    Args:
        cfg: Configuration.
        data: Data of the run.
        first: A batch of the stage, for its size in bytes.
        mesh: Mesh of the run.
    """
    # Without compilation a call has no overhead, and single steps are easier to debug.
    if not cfg.training.compile or not is_one_cpu(mesh) or len(data.tasks) > 1:
        return 1
    return max(1, min(_MAX_STEPS, _MAX_BYTES // first.nbytes))


def scan_steps(step: Step, max_steps: int) -> StackedStep:
    """Return a function that makes several steps of `step`, one for each used batch of a stack.

    Args:
        step: Train step (state, batch, parents) -> (state, metrics).
        max_steps: Number of batches in a stack.

    Returns:
        A function (state, stacked batches, parents) -> (state, metrics), whose metrics have `max_steps` entries each;
        those of unused batches are zero.
    """

    def steps(state: TrainState, stacked: Batches, parents: PyTree) -> tuple[TrainState, dict[str, Array]]:
        batches, count = stacked

        def body(number: Array, carry: tuple[TrainState, dict[str, Array]]) -> tuple[TrainState, dict[str, Array]]:
            state, metrics = carry
            state, new_metrics = step(state, jax.tree.map(lambda values: values[number], batches), parents)
            return state, jax.tree.map(lambda values, new: values.at[number].set(new), metrics, new_metrics)

        first = jax.tree.map(lambda values: values[0], batches)
        shapes = jax.eval_shape(lambda state, batch: step(state, batch, parents)[1], state, first)
        metrics = jax.tree.map(lambda leaf: jnp.zeros((max_steps, *leaf.shape), leaf.dtype), shapes)
        return jax.lax.fori_loop(0, count, body, (state, metrics))

    return steps


def stack_batches(batches: Sequence[Batch], max_steps: int) -> Batches:
    """Return batches in the form that a step with `steps_per_call` > 1 takes.

    Args:
        batches: One to `max_steps` batches of the same shape.
        max_steps: `steps_per_call` of the train step; copies of the last batch fill the stack.

    Returns:
        The batches, stacked along a new first axis, and their number before filling.
    """
    filled = [*batches, *[batches[-1]] * (max_steps - len(batches))]
    return jax.tree.map(lambda *rows: np.stack(rows), *filled), np.int32(len(batches))


def make_batch_transfer(mesh: Mesh, max_steps: int) -> Callable[[Sequence[Batch]], Batch | Batches]:
    """Return the function that prepares the batches of a call for a train step with `max_steps` steps per call."""
    if max_steps > 1:
        return partial(stack_batches, max_steps=max_steps)
    return lambda batches: batch_for_step(mesh, *batches)


def unstack_metrics(metrics: Mapping[str, Array], count: int) -> list[dict[str, float]]:
    """Return the metrics of each step of a call as Python floats; this blocks until the device has computed them.

    Args:
        metrics: Metrics of the call.
        count: Number of steps of the call.
    """
    values = {name: np.reshape(value, -1) for name, value in jax.device_get(metrics).items()}
    return [{name: float(value[number]) for name, value in values.items()} for number in range(count)]
