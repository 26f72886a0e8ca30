"""The `Batch` dataclass: the rows that `batch_at` returns and that losses, train steps and models take.

Its arrays are NumPy arrays on the host. `ups_jax.models.batch` registers the class with jax as a pytree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

# A NumPy array on the host, a jax array on a device, a tracer, or the shape of an abstract batch. Any, because the data
# package does not import jax.
BatchArray = Any


@dataclass(frozen=True, eq=False, kw_only=True)
class Batch:
    """Rows of one task in physical units: each row is a window of frames of one trajectory. Absent arrays are None.

    Attributes:
        fields: (b, context + horizon, *space, channels); (b, 1, *space, channels) for a steady task.
        latents: (b, time, *tokens, width), cached latent tokens that replace `fields` when a stage trains on latents.
        targets: (b, time, *tokens, width), the true values for the loss of a stage that trains on latents: the patches
            of the frames that the stage predicts.
        inputs: (b, *space, input channels), the input fields of a steady task or of a point cloud.
        coords: (b, points, axes), coordinates of the points of a fixed mesh; axes = 0 if the points move.
        point_mask: (b, points), 1 for real points and 0 for padding.
        mask: (b,), 1 for rows that count in the loss.
        time: (b, context + horizon), time of each frame.
        dt: (b,), time between frames.
        cond: (b, coefficients), PDE coefficients.
        cond_mask: (b, coefficients), 1 where the value of the coefficient is available.
        bc: (b, dimensions, 2), code of the boundary type of each side.
        task_id: (b,), index of the task in `data.tasks`.
        trajectory_id: (b,), index of the trajectory in its source.
        draws: Random numbers that a loss has drawn for each row, by name; empty before that.
        task: Index of the task in `data.tasks`, as static pytree structure: a jitted function compiles once per task.
    """

    # In alphabetical order, which is the order of a pytree's leaves.
    bc: BatchArray = None
    cond: BatchArray = None
    cond_mask: BatchArray = None
    coords: BatchArray = None
    draws: Mapping[str, BatchArray] = field(default_factory=dict)
    dt: BatchArray = None
    fields: BatchArray = None
    inputs: BatchArray = None
    latents: BatchArray = None
    mask: BatchArray = None
    point_mask: BatchArray = None
    targets: BatchArray = None
    task_id: BatchArray = None
    time: BatchArray = None
    trajectory_id: BatchArray = None
    task: int = 0

    @property
    def num_rows(self) -> int:
        """The number of batch rows on this host."""
        return len(next(iter(self.arrays.values())))

    @property
    def arrays(self) -> dict[str, BatchArray]:
        """The arrays that are not None, by name, without `draws`."""
        names = (item.name for item in fields(self) if item.name not in ("draws", "task"))
        return {name: values for name in names if (values := getattr(self, name)) is not None}

    @property
    def nbytes(self) -> int:
        """The total size of the arrays in bytes."""
        return sum(np.asarray(values).nbytes for values in self.arrays.values())
