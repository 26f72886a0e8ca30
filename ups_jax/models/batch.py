"""`ups_jax.data.batch.Batch`, registered with jax as a pytree: its arrays are leaves, its task number is static.

Code that passes batches to jax imports the class from here (`ups_jax.Batch`), because `ups_jax.data` does not import
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


def on_device(batch: Batch) -> Batch:
    """Return the batch with jax arrays in place of NumPy's."""
    return jax.tree.map(jnp.asarray, batch)


def first_row(batch: Batch) -> Batch:
    """Return the first row of a batch as a batch of one row, from which a model's parameter shapes are derived."""
    return jax.tree.map(lambda values: jnp.asarray(values)[:1], batch)


def with_draws(batch: Batch, draws: dict[str, jax.Array]) -> Batch:
    """Return the batch with further random draws; existing draws of the same name are kept."""
    return replace(batch, draws=draws | dict(batch.draws))
