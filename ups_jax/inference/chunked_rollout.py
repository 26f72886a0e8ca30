"""Rollouts in chunks of fixed shape, so that any number of steps and samples needs one compilation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ups_jax.inference.inputs import array_dtype, make_conditions
from ups_jax.metrics.aggregate import fixed_size_chunks
from ups_jax.models import Conditions, PointSimulator, Simulator, normalize
from ups_jax.rollout.autoregressive import rollout_chunk
from ups_jax.rollout.correction import Correction

# Frames per chunk: large enough to amortize transfers to the host, small enough to fit into memory.
CHUNK_STEPS = 16


@dataclass(frozen=True, eq=False, kw_only=True)
class RolloutChunk:
    """Consecutive predicted frames of some samples of a batch.

    Attributes:
        rows: The samples, as a slice of the batch.
        first_frame: Index of the chunk's first frame among all predicted frames.
        frames: Fields in physical units, (members, samples, frames, *grid, channels).
    """

    rows: slice
    first_frame: int
    frames: Float[np.ndarray, "m b t *s c"]


@dataclass(frozen=True, eq=False, kw_only=True)
class ChunkedRollout:
    """A simulator whose rollouts are computed in chunks of `CHUNK_STEPS` frames.

    Attributes:
        weights: Parameters of `model`.
        correction: Correction of the predicted frames, or None.
        members: Number of rollouts of each sample, which differ by their random corrections.
        seed: Seed of the random corrections.
    """

    model: Simulator | PointSimulator
    weights: Any
    correction: Correction | None = None
    members: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.members < 1 or (self.members > 1 and self.correction is None):
            raise ValueError(f"members is {self.members}; it must be at least 1, and without a correction exactly 1")

    def iter_chunks(
        self,
        fields: Float[np.ndarray, "b k *s c"],
        cond: Float[np.ndarray, "b p"],
        cond_mask: Float[np.ndarray, "b p"],
        steps: int,
        batch_size: int,
        point_arrays: Mapping[str, np.ndarray] = MappingProxyType({}),
        weights: Any = None,
    ) -> Iterator[RolloutChunk]:
        """Yield the `steps` frames after `fields` in chunks, ordered by time and then by sample.

        Random corrections depend on the seed, the number of members and `batch_size`, but not on `steps`.

        Args:
            fields: Context frames in physical units.
            cond: Coefficients in physical units.
            cond_mask: Array that is 1 where a coefficient is given, otherwise 0.
            batch_size: Number of samples per chunk.
            point_arrays: Arrays of a batch of point clouds; empty for a grid.
            weights: Parameters to use instead of `self.weights`.
        """
        weights, dtype = self.weights if weights is None else weights, array_dtype(fields)
        batches = list(fixed_size_chunks(len(fields), batch_size))
        conditions = [
            make_conditions(
                self.model.task,
                cond[rows],
                cond_mask[rows],
                {name: values[rows] for name, values in point_arrays.items()},
            )
            for rows, _ in batches
        ]
        # Restored weights are committed to their device, and so is every window computed from them. An uncommitted
        # first window would cause a second compilation.
        device = jax.devices()[0]
        windows = [
            jax.device_put(self._initial_windows(jnp.asarray(fields[rows], dtype)), device) for rows, _ in batches
        ]
        keys = [self._member_keys(int(rows[0])) for rows, _ in batches]
        for first in range(0, steps, CHUNK_STEPS):
            frame_count = min(CHUNK_STEPS, steps - first)
            for index, (rows, row_count) in enumerate(batches):
                windows[index], frames = self._advance_chunk(
                    weights,
                    windows[index],
                    conditions[index],
                    keys[index],
                    jnp.asarray(first),
                    jnp.asarray(frame_count),
                )
                sample_slice = slice(int(rows[0]), int(rows[0]) + row_count)
                yield RolloutChunk(
                    rows=sample_slice, first_frame=first, frames=np.asarray(frames)[:, :row_count, :frame_count]
                )

    def compilation_count(self) -> int:
        """Return how often the function that advances one chunk has been compiled."""
        return self._advance_chunk._cache_size()

    def _member_keys(self, first_row: int) -> Key[Array, " m"]:
        """Return one random key per member, for the batch whose first sample is `first_row`."""
        return jax.random.split(jax.random.fold_in(jax.random.key(self.seed), first_row), self.members)

    @cached_property
    def _initial_windows(self) -> Callable[..., Any]:
        """The jitted function that normalizes context frames and repeats them for each member."""
        statistics = self.model.task.statistics
        return jax.jit(lambda fields: jnp.repeat(normalize(fields, statistics)[None], self.members, axis=0))

    @cached_property
    def _advance_chunk(self) -> Any:
        """The jitted function that advances the windows of all members by one chunk."""

        def advance_member(
            weights: Any, window: Array, cond: Conditions, key: Array, first: Int[Array, ""], count: Int[Array, ""]
        ) -> tuple[Array, Array]:
            return rollout_chunk(self.model, weights, window, cond, CHUNK_STEPS, first, count, self.correction, key)

        def advance_members(
            weights: Any,
            windows: Float[Array, "m b k *s c"],
            cond: Conditions,
            keys: Key[Array, " m"],
            first: Int[Array, ""],
            count: Int[Array, ""],
        ) -> tuple[Float[Array, "m b k *s c"], Float[Array, "m b t *s c"]]:
            if self.correction is None:
                # A single deterministic member needs no vmap.
                window, frames = advance_member(weights, windows[0], cond, keys[0], first, count)
                return window[None], frames[None]
            return jax.vmap(advance_member, in_axes=(None, 0, None, 0, None, None))(
                weights, windows, cond, keys, first, count
            )

        return jax.jit(advance_members)
