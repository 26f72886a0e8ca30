"""A batch is a pytree whose task is a part of its structure."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from ups_jax.models.batch import Batch, as_jax_arrays, first_row, with_draws


def batch(task: int) -> Batch:
    return Batch(
        fields=np.ones((3, 2, 4, 1), np.float32), dt=np.ones(3, np.float32), mask=np.ones(3, np.float32), task=task
    )


def test_it_is_a_pytree_after_importing_its_name_alone() -> None:
    code = "from ups_jax import Batch; import jax; print(jax.tree.leaves(Batch(dt=1.0, mask=2.0)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[1.0, 2.0]"


def test_a_copied_or_extended_batch_keeps_its_task() -> None:
    original = batch(task=2)
    changed = [
        replace(original, mask=np.zeros(3, np.float32)),
        copy.copy(original),
        jax.tree.map(jnp.asarray, original),
        as_jax_arrays(original),
        first_row(original),
        with_draws(original, {"noise": jnp.zeros(3)}),
        jax.tree.unflatten(*reversed(jax.tree.flatten(original))),
    ]
    assert [item.task for item in changed] == [2] * len(changed)


def test_a_jitted_function_is_traced_once_for_each_task() -> None:
    traced: list[int] = []

    @jax.jit
    def total(rows: Batch) -> jax.Array:
        traced.append(rows.task)
        return rows.fields.sum()

    for task in (0, 1, 0, 1, 1):
        total(batch(task))
    assert traced == [0, 1]


def test_a_draw_that_is_there_is_kept() -> None:
    drawn = with_draws(batch(0), {"noise": jnp.zeros(3)})
    again = with_draws(drawn, {"noise": jnp.ones(3), "tau": jnp.ones(3)})
    assert again.draws.keys() == {"noise", "tau"} and not again.draws["noise"].any()
    assert drawn.num_rows == 3 and drawn.arrays.keys() == {"fields", "dt", "mask"}
