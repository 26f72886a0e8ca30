"""A batch of windows as a plain dataclass: what `batch_at` returns and losses, train steps and models take.

The arrays are NumPy on the host. `ups_jax.models.batch` registers the class with jax as a pytree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

# NumPy on the host, a jax array on a device, a tracer, or a shape in an abstract batch; jax is not imported here.
Rows = Any


@dataclass(frozen=True, eq=False, kw_only=True)
class Batch:
    """Rows of one task, each a window of a trajectory, in physical units. An array that the task lacks is None.

    Attributes:
        fields: (b, context + horizon, *space, channels), or (b, 1, *space, channels) of a steady task.
        latents: (b, time, *tokens, width), cached tokens in place of `fields` where a stage is trained on latents.
        targets: (b, time, *tokens, width), the part of the later tokens that is scored, with `latents` only.
        inputs: (b, *space, given fields) of a steady task or of points.
        coords: (b, points, axes), where the points of a mesh lie; no axes where they move.
        point_mask: (b, points), 1 for points that exist.
        mask: (b,), 1 for rows that count in the loss.
        time: (b, context + horizon), time of each frame.
        dt: (b,), time between frames.
        cond: (b, coefficients), PDE coefficients.
        cond_mask: (b, coefficients), 1 where a coefficient is known.
        bc: (b, dimensions, 2), type of each side.
        task_id: (b,), number of the task.
        trajectory_id: (b,), number of the trajectory in its file.
        draws: random numbers of each row, by name, that a loss has drawn; empty as read.
        task: Number of the task in `data.tasks`. It is part of the pytree's structure, so that a compiled function
            is compiled once per task.
    """

    # In the order of their names, which is the order of a pytree's leaves.
    bc: Rows = None
    cond: Rows = None
    cond_mask: Rows = None
    coords: Rows = None
    draws: Mapping[str, Rows] = field(default_factory=dict)
    dt: Rows = None
    fields: Rows = None
    inputs: Rows = None
    latents: Rows = None
    mask: Rows = None
    point_mask: Rows = None
    targets: Rows = None
    task_id: Rows = None
    time: Rows = None
    trajectory_id: Rows = None
    task: int = 0

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(next(iter(self.arrays.values())))

    @property
    def arrays(self) -> dict[str, Rows]:
        """The arrays that the batch has, by name, without `draws`."""
        names = (item.name for item in fields(self) if item.name not in ("draws", "task"))
        return {name: values for name in names if (values := getattr(self, name)) is not None}

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(np.asarray(values).nbytes for values in self.arrays.values())
