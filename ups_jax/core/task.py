"""What is known about one task once its data has been opened: grid, channels, time step, statistics, symmetries.

A `Task` is plain, frozen and hashable: models close over it, checkpoints store it as JSON, nothing in it needs jax.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

# What a side of the grid may be; its number is its code in a batch. The model has room for `BOUNDARY_ROOM` of them.
BOUNDARIES = ("none", "open", "periodic")
BOUNDARY_ROOM = 8
_MOST_AXES = 3


@dataclass(frozen=True, kw_only=True)
class Symmetry:
    """A map of the fields that commutes with the dynamics: flip the `reflect` axes and negate the `negate` channels,
    then swap the two axes of `swap` and the two channels of `swap_channels`.
    """

    reflect: tuple[int, ...] = ()
    negate: tuple[int, ...] = ()
    swap: tuple[int, ...] = ()
    swap_channels: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Coefficient:
    """A PDE coefficient that conditions the model, with the train split's mean and std on its scale."""

    name: str
    scale: str = "linear"
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Input:
    """A given field of a steady task, such as a permeability, with the train split's mean and std."""

    name: str
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Per channel, from the train split only: mean and std of the field, std of its one-step difference."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    delta_std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Task:
    """Facts of one task. `dt` is the physical time between two frames that the model sees (stride included).

    A steady task maps the fields of `inputs` to those of `channels`; its `dt` is 1 and its `delta_std` the std.

    Of several tasks that one model is trained on, `siblings` names all, this one included; `coefficients` are those of
    all, `foreign` the names of those that are others' alone, and `dt_unit` is what their time steps are measured by.

    Of a set of points instead of a grid, `shape` is the one number of points that a row has room for, and `box` the
    sides of the box that `origin` is the lower corner of; it may be given `inputs`. `moving` are the channels that are
    the coordinates of points that move.
    """

    name: str
    channels: tuple[str, ...]
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    origin: tuple[float, ...]
    spacing: tuple[float, ...]
    periodic: tuple[bool, ...]
    dt: float
    coefficients: tuple[Coefficient, ...] = ()
    conserved: tuple[int, ...] = ()
    symmetries: tuple[Symmetry, ...] = ()
    statistics: Statistics
    kind: Literal["transient", "steady"] = "transient"
    inputs: tuple[Input, ...] = ()
    siblings: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    dt_unit: float | None = None
    box: tuple[float, ...] = ()
    moving: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        sides = self.box if self.scattered else self.shape
        axes = {len(self.axes), len(sides), len(self.origin), len(self.spacing), len(self.periodic)}
        channels = {len(self.channels), *(len(values) for values in asdict(self.statistics).values())}
        if len(axes) != 1 or len(channels) != 1:
            raise ValueError(f"task {self.name}: lengths of the per-axis or per-channel facts differ")
        if (self.kind == "steady") != bool(self.inputs) and not (self.scattered and self.kind == "transient"):
            raise ValueError(f"task {self.name}: is {self.kind} with {len(self.inputs)} input channels")
        if self.siblings and self.name not in self.siblings:
            raise ValueError(f"task {self.name}: is not among its siblings")

    @property
    def points(self) -> int:
        """Number of grid points, or of a set's."""
        return math.prod(self.shape)

    @property
    def scattered(self) -> bool:
        """Whether its fields are on a set of points and on no grid."""
        return bool(self.box)

    @property
    def own_coefficients(self) -> tuple[Coefficient, ...]:
        """The coefficients of its own equation."""
        return tuple(item for item in self.coefficients if item.name not in self.foreign)

    @property
    def boundary(self) -> tuple[tuple[int, int], ...]:
        """The codes, by `BOUNDARIES`, of the two sides of each axis."""
        codes = (BOUNDARIES.index("periodic" if wraps else "open") for wraps in self.periodic)
        return tuple((code, code) for code in codes)

    @property
    def task_embedding(self) -> tuple[float, ...]:
        """What tells it from its siblings: a one for its own place among them, and a one for the boundary type of each
        side of three axes. None of a task that is alone, which is told from nothing."""
        if not self.siblings:
            return ()
        own = [float(name == self.name) for name in self.siblings]
        sides = [code for axis in self.boundary for code in axis]
        sides += [BOUNDARIES.index("none")] * (2 * _MOST_AXES - len(sides))
        return (*own, *(float(kind == code) for code in sides for kind in range(BOUNDARY_ROOM)))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; `Task.from_dict` is its inverse."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Task:
        """Inverse of `to_dict`, also after a trip through JSON (lists become tuples)."""
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        plain["coefficients"] = tuple(Coefficient(**item) for item in values["coefficients"])
        plain["symmetries"] = tuple(
            Symmetry(**{key: tuple(axes) for key, axes in item.items()}) for item in values["symmetries"]
        )
        plain["inputs"] = tuple(Input(**item) for item in values.get("inputs", ()))
        plain["statistics"] = Statistics(**{key: tuple(item) for key, item in values["statistics"].items()})
        return Task(**plain)
