"""Rollouts of any length and any number of samples in pieces of one shape, so that one compilation makes them all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ups_jax.inference.inputs import array_dtype, conditions
from ups_jax.metrics.aggregate import chunks
from ups_jax.models import Conditions, PointSimulator, Simulator, normalize
from ups_jax.rollout.autoregressive import advance
from ups_jax.rollout.correction import Correction

# Frames a piece: many enough that leaving and entering the device costs little, few enough to be held.
LENGTH = 16


@dataclass(frozen=True, eq=False, kw_only=True)
class Piece:
    """Frames `first`, `first` + 1, .. after the given ones, of the samples `rows`, of every member."""

    rows: slice
    first: int
    frames: Float[np.ndarray, "m b t *s c"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Stepper:
    """A simulator and its parameters. With a `correction` it gives `members` rollouts of each sample, by `seed`."""

    model: Simulator | PointSimulator
    weights: Any
    correction: Correction | None = None
    members: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.members < 1 or (self.members > 1 and self.correction is None):
            raise ValueError(f"{self.members} members; without a correction there is one, and with it at least one")

    def pieces(
        self,
        fields: Float[np.ndarray, "b k *s c"],
        cond: Float[np.ndarray, "b p"],
        cond_mask: Float[np.ndarray, "b p"],
        steps: int,
        rows: int,
        places: Mapping[str, np.ndarray] = MappingProxyType({}),
        weights: Any = None,
    ) -> Iterator[Piece]:
        """The `steps` frames after `fields`, physical units, `rows` samples at a time: all samples, then later frames.

        `places` are a set of points' entries of a batch; `weights` take the place of the stepper's. What is random
        depends on the seed, the number of members and `rows`, not on `steps`.
        """
        weights, dtype = self.weights if weights is None else weights, array_dtype(fields)
        parts = list(chunks(len(fields), rows))
        given = [
            conditions(
                self.model.task, cond[part], cond_mask[part], {name: values[part] for name, values in places.items()}
            )
            for part, _ in parts
        ]
        # Restored weights are bound to their device, as is what they make; a window that is not would compile anew.
        device = jax.devices()[0]
        windows = [jax.device_put(self._start(jnp.asarray(fields[part], dtype)), device) for part, _ in parts]
        keys = [self._keys(int(part[0])) for part, _ in parts]
        for first in range(0, steps, LENGTH):
            count = min(LENGTH, steps - first)
            for index, (part, kept) in enumerate(parts):
                windows[index], frames = self._advance(
                    weights, windows[index], given[index], keys[index], jnp.asarray(first), jnp.asarray(count)
                )
                where = slice(int(part[0]), int(part[0]) + kept)
                yield Piece(rows=where, first=first, frames=np.asarray(frames)[:, :kept, :count])

    def compilations(self) -> int:
        """How many programs have been compiled to make the pieces so far."""
        return self._advance._cache_size()

    def _keys(self, row: int) -> Key[Array, " m"]:
        return jax.random.split(jax.random.fold_in(jax.random.key(self.seed), row), self.members)

    @cached_property
    def _start(self) -> Any:
        """Fields -> a normalised window for each member."""
        statistics = self.model.task.statistics
        return jax.jit(lambda fields: jnp.repeat(normalize(fields, statistics)[None], self.members, axis=0))

    @cached_property
    def _advance(self) -> Any:
        def one(
            weights: Any, window: Array, cond: Conditions, key: Array, first: Int[Array, ""], count: Int[Array, ""]
        ) -> tuple[Array, Array]:
            return advance(self.model, weights, window, cond, LENGTH, first, count, self.correction, key)

        def all_members(
            weights: Any,
            windows: Float[Array, "m b k *s c"],
            cond: Conditions,
            keys: Key[Array, " m"],
            first: Int[Array, ""],
            count: Int[Array, ""],
        ) -> tuple[Float[Array, "m b k *s c"], Float[Array, "m b t *s c"]]:
            if self.correction is None:
                # One member and nothing random: the plain program, without an axis to vmap over.
                window, frames = one(weights, windows[0], cond, keys[0], first, count)
                return window[None], frames[None]
            return jax.vmap(one, in_axes=(None, 0, None, 0, None, None))(weights, windows, cond, keys, first, count)

        return jax.jit(all_members)
