"""Registration of `ups_jax.data.batch.Batch` as a jax pytree: its arrays are leaves, its task number is static.

Code that passes batches to jax imports `Batch` from here (or from `ups_jax`), because `ups_jax.data` does not import
jax.
"""

from __future__ import annotations

from dataclasses import fields, replace

import jax
import jax.numpy as jnp

from ups_jax.data.batch import Batch

_STATIC = ("task",)
jax.tree_util.register_dataclass(
    Batch, data_fields=[item.name for item in fields(Batch) if item.name not in _STATIC], meta_fields=list(_STATIC)
)


def as_jax_arrays(batch: Batch) -> Batch:
    """Return the batch with its NumPy arrays converted to jax arrays."""
    return jax.tree.map(jnp.asarray, batch)


def first_row(batch: Batch) -> Batch:
    """Return a batch of the first row only, which suffices to derive the shapes of a model's parameters."""
    return jax.tree.map(lambda values: jnp.asarray(values)[:1], batch)


def with_draws(batch: Batch, draws: dict[str, jax.Array]) -> Batch:
    """Return the batch with random arrays added to `Batch.draws` by name; arrays that are already there are kept."""
    return replace(batch, draws=draws | dict(batch.draws))
