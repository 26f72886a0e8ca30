"""The description of one task after its data has been opened: grid, channels, time step, statistics, symmetries.

A `Task` is frozen and hashable. Models hold it as a constant, checkpoints store it as JSON, and it does not need jax.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

# Boundary types of a side of the grid; the index is the code in a batch. Models are built for MAX_BOUNDARY_TYPES.
BOUNDARIES = ("none", "open", "periodic")
MAX_BOUNDARY_TYPES = 8
_MOST_AXES = 3


@dataclass(frozen=True, kw_only=True)
class Symmetry:
    """A map of the fields that commutes with the dynamics, applied in the order of the attributes.

    Attributes:
        reflect: Axes that are reversed.
        negate: Channels whose sign is changed.
        swap: Two axes that are exchanged, or none.
        swap_channels: Two channels that are exchanged, or none.
    """

    reflect: tuple[int, ...] = ()
    negate: tuple[int, ...] = ()
    swap: tuple[int, ...] = ()
    swap_channels: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Coefficient:
    """A PDE coefficient that conditions the model.

    Attributes:
        name: Name of the coefficient.
        scale: `linear` or `log10`.
        mean: Mean over the training trajectories, of the logarithm if the scale is `log10`.
        std: Standard deviation of the same values as `mean`.
    """

    name: str
    scale: str = "linear"
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Input:
    """An input field, such as a permeability, with mean and standard deviation over the training trajectories."""

    name: str
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Statistics of each channel over the training trajectories.

    Attributes:
        mean: Mean of the field.
        std: Number by which fields are divided, with `data.normalize: zscore` their standard deviation.
        delta_std: Standard deviation of the field's change over one model step.
        scale: Standard deviation of the field, independent of `data.normalize`, which sets the floors of relative
            metrics; empty in records of older versions, which then use `std`.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    delta_std: tuple[float, ...]
    scale: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.scale:
            object.__setattr__(self, "scale", self.std)


@dataclass(frozen=True, kw_only=True)
class LossScales:
    """Typical sizes of the training fields, normalised by the task's statistics, in which loss terms are measured.

    Attributes:
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        square: Mean square over points, frames and channels.
        gradient: Sum over axes of the mean square first difference divided by the grid spacing, in units of the
            geometric mean of the domain's sides; 0 for a point cloud.
        bands: Mean square over channels of the Fourier modes in the low, middle and high band of wavenumbers; 0 for a
            point cloud.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    square: float
    gradient: float = 0.0
    bands: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Task:
    """The grid, channels and physics of one task, in physical units.

    Attributes:
        name: Name of the task.
        channels: Names of the predicted channels.
        axes: Names of the space axes.
        shape: Number of grid points of each axis; for a point cloud, the largest number of points of a trajectory.
        origin: Coordinates of the first grid point, or of the lower corner of a point cloud's box.
        spacing: Grid spacing of each axis.
        periodic: Whether each axis is periodic.
        partition: How a grid axis that the patch size of the model does not divide is split into patches: `full` into
            patches of nearly this size (`ups_jax.models.patches`), `divisor` into patches of the largest size that
            divides the axis, as in all runs whose record lacks this entry.
        dt: Time between two frames that the model steps through, time stride included; 1 for a steady task.
        coefficients: PDE coefficients of all tasks that the model is trained on.
        conserved: Indices of channels whose spatial mean is constant in time.
        symmetries: Maps of the fields that commute with the dynamics.
        statistics: Statistics of each channel; `delta_std` of a steady task is its `std`.
        kind: `transient` maps a frame to the next, `steady` maps input fields to a solution.
        inputs: Input fields of a steady task or of a point cloud.
        siblings: Names of all tasks that the model is trained on, this task included; empty for a single task.
        foreign: Names of those `coefficients` that this task's equation does not have.
        dt_unit: Time step by which a model of several tasks divides `dt`; None for a single task.
        box: Side lengths of a point cloud's box; empty on a grid.
        moving: Indices of the channels that are coordinates of moving points.
        loss_scales: Sizes of the training fields in which loss terms are measured; None in a task that was recorded
            without them, whose loss terms keep their former units and floors.
    """

    name: str
    channels: tuple[str, ...]
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    origin: tuple[float, ...]
    spacing: tuple[float, ...]
    periodic: tuple[bool, ...]
    partition: Literal["full", "divisor"] = "full"
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
    loss_scales: LossScales | None = None

    def __post_init__(self) -> None:
        sides = self.box if self.scattered else self.shape
        axes = {len(self.axes), len(sides), len(self.origin), len(self.spacing), len(self.periodic)}
        channels = {len(self.channels), *(len(values) for values in asdict(self.statistics).values())}
        if len(axes) != 1 or len(channels) != 1:
            raise ValueError(f"task {self.name}: its properties are for different numbers of axes or channels")
        if (self.kind == "steady") != bool(self.inputs) and not (self.scattered and self.kind == "transient"):
            raise ValueError(f"task {self.name}: a {self.kind} task cannot have {len(self.inputs)} input fields")
        if self.siblings and self.name not in self.siblings:
            raise ValueError(f"task {self.name}: `siblings` must contain this name")

    @property
    def num_points(self) -> int:
        """Number of grid points; for a point cloud, the largest number of points of a trajectory."""
        return math.prod(self.shape)

    @property
    def scattered(self) -> bool:
        """Whether the fields are on a point cloud instead of a grid."""
        return bool(self.box)

    @property
    def equation_coefficients(self) -> tuple[Coefficient, ...]:
        """Coefficients of this task's equation, without those that only other tasks have."""
        return tuple(item for item in self.coefficients if item.name not in self.foreign)

    @property
    def boundary_codes(self) -> tuple[tuple[int, int], ...]:
        """Boundary types of the two sides of each axis, as indices into `BOUNDARIES`."""
        codes = (BOUNDARIES.index("periodic" if wraps else "open") for wraps in self.periodic)
        return tuple((code, code) for code in codes)

    @property
    def task_embedding(self) -> tuple[float, ...]:
        """One-hot codes of the task among `siblings`, and of the boundary types of the six sides of three axes.

        It is empty if the model is trained on one task.
        """
        if not self.siblings:
            return ()
        one_hot = [float(name == self.name) for name in self.siblings]
        sides = [code for axis in self.boundary_codes for code in axis]
        sides += [BOUNDARIES.index("none")] * (2 * _MOST_AXES - len(sides))
        return (*one_hot, *(float(kind == code) for code in sides for kind in range(MAX_BOUNDARY_TYPES)))

    def to_dict(self) -> dict[str, Any]:
        """Return the task as JSON values; `Task.from_dict` is the inverse."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Task:
        """Return the task with the values from `to_dict`, in which tuples may have become lists in JSON."""
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        plain.setdefault("partition", "divisor")
        plain["coefficients"] = tuple(Coefficient(**item) for item in values["coefficients"])
        plain["symmetries"] = tuple(
            Symmetry(**{key: tuple(axes) for key, axes in item.items()}) for item in values["symmetries"]
        )
        plain["inputs"] = tuple(Input(**item) for item in values.get("inputs", ()))
        plain["statistics"] = Statistics(**{key: tuple(item) for key, item in values["statistics"].items()})
        if plain.get("loss_scales") is not None:
            scales = plain["loss_scales"]
            plain["loss_scales"] = LossScales(**scales | {key: tuple(scales[key]) for key in ("mean", "std", "bands")})
        return Task(**plain)
