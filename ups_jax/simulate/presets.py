"""The tasks of the built-in generator and the presets of each task: the parameters of the solvers, as plain numbers."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeVar

from ups_jax.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Parameters of a pseudo-spectral solver of trajectories on a periodic grid.

    Attributes:
        trajectories: Number of trajectories.
        points: Number of stored points along each axis. If it exceeds `solved_points`, fields are interpolated with
            their Fourier series.
        solved_points: Number of points of the solver along each axis.
        steps: Number of frames after the first.
        dt: Time between two frames.
        substeps: Solver steps for each `dt`.
        modes: Number of Fourier modes of the initial field along each axis.
        dimensions: Number of space axes.
        amplitude: Largest absolute value of the initial field.
        burn_in: Number of frames that are solved and discarded before the first stored one.
        first_index: Index of the first trajectory. A trajectory's index determines its random numbers: presets with
            disjoint ranges of indices have no trajectory in common.
        coefficient: Name of the PDE coefficient, which is drawn for each trajectory. If None, the coefficient is the
            constant `low` and is not stored.
        low: Smallest coefficient.
        high: Largest coefficient.
        scale: Scale on which the coefficient is uniformly distributed.
        origin: Coordinate of the first point along each axis.
        extent: Length of the domain along each axis.
        boundary: Kind of boundary, stored in the file.
    """

    trajectories: int
    points: int
    solved_points: int
    steps: int
    dt: float
    substeps: int
    modes: int
    dimensions: int = 1
    amplitude: float = 1.0
    burn_in: int = 0
    first_index: int = 0
    coefficient: str | None = None
    low: float = 1.0
    high: float = 1.0
    scale: Literal["linear", "log10"] = "linear"
    origin: float = -1.0
    extent: float = 2.0
    boundary: ClassVar[str] = "periodic"


@dataclass(frozen=True, kw_only=True)
class DarcyPreset:
    """Parameters of a solver of steady Darcy flow on the unit square.

    Attributes:
        trajectories: Number of solutions.
        points: Number of stored cells along each axis; each contains the average of several solved cells.
        solved_points: Number of cells of the solver along each axis.
        low: Permeability where a Gaussian random field is not positive.
        high: Permeability where this random field is positive.
        boundary: Kind of boundary, stored in the file.
    """

    trajectories: int
    points: int
    solved_points: int
    low: float = 3.0
    high: float = 12.0
    boundary: ClassVar[str] = "dirichlet"


@dataclass(frozen=True, kw_only=True)
class FiniteVolumePreset:
    """Parameters of a finite-volume solver of a flow.

    Attributes:
        trajectories: Number of trajectories.
        points: Number of stored cells along each axis; each contains the average of several solved cells.
        solved_points: Number of cells of the solver along each axis.
        steps: Number of frames after the first.
        dt: Time between two frames.
        substeps: Solver steps for each `dt`.
        dimensions: Number of space axes.
        coefficient: Name of the PDE coefficient that is drawn for each trajectory.
        low: Smallest coefficient.
        high: Largest coefficient.
        boundary: Kind of boundary, stored in the file.
        modes: Number of Fourier modes of the initial state; used in `compressible`.
        amplitude: Largest initial velocity in `compressible`; largest height of a water column in `shallow_water`.
        scale: Scale on which the coefficient is uniformly distributed.
        origin: Lower end of the domain along each axis.
        extent: Length of the domain along each axis.
    """

    trajectories: int
    points: int
    solved_points: int
    steps: int
    dt: float
    substeps: int
    dimensions: int
    coefficient: str
    low: float
    high: float
    boundary: str
    modes: int = 1
    amplitude: float = 1.0
    scale: Literal["linear", "log10"] = "linear"
    origin: float = -1.0
    extent: float = 2.0


@dataclass(frozen=True, kw_only=True)
class MeshPreset:
    """Parameters of heat conduction in a square with a round hole, on triangle meshes; the boundary has temperature 0.

    Attributes:
        trajectories: Number of trajectories.
        spacing: Edge length of the triangles.
        steps: Number of frames after the first.
        dt: Time between two frames.
        substeps: Implicit solver steps for each `dt`.
        meshes: `one` mesh for all trajectories, or one for `each` trajectory, with the hole in a random position.
        hole: Radius of the hole.
        max_source: Largest amplitude of the heat source, which is drawn for each trajectory and constant in time.
        low: Smallest diffusivity `kappa`, which is drawn for each trajectory.
        high: Largest diffusivity.
        scale: Scale on which the diffusivity is uniformly distributed.
        boundary: Kind of boundary, stored in the file.
    """

    trajectories: int
    spacing: float
    steps: int
    dt: float
    substeps: int
    meshes: Literal["one", "each"] = "one"
    hole: float = 0.15
    max_source: float = 1.0
    low: float = 0.01
    high: float = 0.05
    scale: Literal["linear", "log10"] = "log10"
    boundary: ClassVar[str] = "dirichlet"


@dataclass(frozen=True, kw_only=True)
class ParticlePreset:
    """Parameters of particles that a Taylor-Green flow advects in a periodic box of length 2 pi.

    Attributes:
        trajectories: Number of trajectories.
        points: Number of particles.
        steps: Number of frames after the first.
        dt: Time between two frames.
        substeps: Solver steps for each `dt`.
        min_speed: Smallest speed of the vortices; the speed is drawn for each trajectory.
        max_speed: Largest speed of the vortices.
        max_drift: Largest absolute component of the mean flow, which is drawn for each trajectory.
        low: Smallest viscosity `nu`, which is drawn for each trajectory.
        high: Largest viscosity.
        scale: Scale on which the viscosity is uniformly distributed.
        boundary: Kind of boundary, stored in the file.
    """

    trajectories: int
    points: int
    steps: int
    dt: float
    substeps: int
    min_speed: float = 0.5
    max_speed: float = 1.5
    max_drift: float = 0.3
    low: float = 0.005
    high: float = 0.05
    scale: Literal["linear", "log10"] = "log10"
    boundary: ClassVar[str] = "periodic"


@dataclass(frozen=True, kw_only=True)
class TransportPreset:
    """Parameters of exact solutions of the advection-diffusion equation on a periodic grid with three axes.

    Attributes:
        trajectories: Number of trajectories.
        points: Number of points along each axis.
        steps: Number of frames after the first.
        dt: Time between two frames.
        modes: Number of Fourier modes of the fields along each axis.
        max_speed: Largest absolute component of the velocity `beta`, which is drawn for each trajectory.
        low: Smallest diffusivity `nu`, whose logarithm is drawn uniformly for each trajectory.
        high: Largest diffusivity.
        origin: Coordinate of the first point along each axis.
        extent: Length of the domain along each axis.
        boundary: Kind of boundary, stored in the file.
    """

    trajectories: int
    points: int
    steps: int
    dt: float
    modes: int
    max_speed: float = 1.0
    low: float = 0.005
    high: float = 0.05
    origin: float = -1.0
    extent: float = 2.0
    boundary: ClassVar[str] = "periodic"


@dataclass(frozen=True, kw_only=True)
class ReactionPreset:
    """Parameters of a pseudo-spectral solver of the Gray-Scott reaction on a periodic grid with two axes.

    Attributes:
        trajectories: Number of trajectories.
        points: Number of stored points along each axis.
        solved_points: Number of points of the solver along each axis, a multiple of `points`.
        steps: Number of frames after the first.
        dt: Time between two frames.
        substeps: Solver steps for each `dt`.
        extent: Length of the domain along each axis.
        feed_range: Smallest and largest feed rate, which is drawn for each trajectory.
        kill_range: Smallest and largest kill rate, which is drawn for each trajectory.
        diffusivities: Diffusivities of the two substances.
        spots: Largest number of spots of the second substance in the initial state.
        dimensions: Number of space axes.
        origin: Coordinate of the first point along each axis.
        boundary: Kind of boundary, stored in the file.
    """

    trajectories: int
    points: int
    solved_points: int
    steps: int
    dt: float
    substeps: int
    extent: float
    feed_range: tuple[float, float] = (0.02, 0.06)
    kill_range: tuple[float, float] = (0.05, 0.066)
    diffusivities: tuple[float, float] = (0.16, 0.08)
    spots: int = 4
    dimensions: ClassVar[int] = 2
    origin: ClassVar[float] = 0.0
    boundary: ClassVar[str] = "periodic"


# Largest relative error of a frame at the smallest viscosities, against 2048 points and 50 substeps: 8.6e-6 with 10
# substeps (1.9e-5 with 8; 1.3e-5 on 512 points). It is 8e-8 after 40 steps, or 1.5e-5 with the round-off of float32.
_BURGERS = Preset(
    trajectories=640,
    points=128,
    solved_points=1024,
    steps=40,
    dt=0.05,
    substeps=10,
    modes=6,
    coefficient="nu",
    low=0.005,
    high=0.05,
    scale="log10",
)
# The spectral solution of advection is exact for any step; the grid only has to resolve the six modes.
_ADVECTION = replace(_BURGERS, solved_points=128, substeps=1, coefficient="beta", low=0.1, high=1.0, scale="linear")
# Near the smallest viscosity a front is 0.004 wide. Largest relative error, against 8192 points and 100 substeps:
# 4.1e-6 (9.3e-6 with 40 substeps, 5.2e-5 with 25), in the frames in which the fronts form.
_BURGERS_FINE = replace(_BURGERS, trajectories=320, points=1024, solved_points=4096, substeps=50, low=0.001)
# The first frame lies on the attractor: the rms is stationary from t = 30 on. The Lyapunov time is 13, or 26 frames.
# Relative error, against 512 points and 80 substeps: 8e-8 after one frame, 2.4e-7 after ten (2.7e-6 with 10 substeps)
# and 1.2e-4 in the last frame.
_KURAMOTO_SIVASHINSKY = Preset(
    trajectories=640,
    points=128,
    solved_points=256,
    steps=100,
    dt=0.5,
    substeps=20,
    modes=10,
    burn_in=200,
    origin=0.0,
    extent=20 * math.pi,
)
# Relative error, against 256 points and 60 substeps: 1e-5 after one frame, 3e-4 where filaments are thinnest (the same
# with 40 substeps; 1.3e-2 on 64 points with 25), 3e-6 in the last frame.
_NAVIER_STOKES = Preset(
    trajectories=248,
    points=64,
    solved_points=128,
    steps=20,
    dt=0.5,
    substeps=10,
    modes=6,
    dimensions=2,
    amplitude=4.0,
    low=5e-3,
    origin=0.0,
    extent=2 * math.pi,
)

_COMPRESSIBLE = FiniteVolumePreset(
    trajectories=240,
    points=128,
    solved_points=256,
    steps=20,
    dt=0.05,
    substeps=64,
    dimensions=1,
    modes=4,
    amplitude=0.3,
    coefficient="eta",
    low=5e-4,
    high=5e-3,
    scale="log10",
    boundary="periodic",
)
_SHALLOW_WATER = FiniteVolumePreset(
    trajectories=100,
    points=32,
    solved_points=64,
    steps=16,
    dt=0.1,
    substeps=8,
    dimensions=2,
    coefficient="gravity",
    low=0.5,
    high=1.5,
    origin=-2.5,
    extent=5.0,
    boundary="wall",
)
# Half of the trajectories become uniform. Largest error of a frame, in deviations of the field, against twice the
# points and substeps: 4e-3 on 32 stored points.
_REACTION_DIFFUSION = ReactionPreset(
    trajectories=100, points=64, solved_points=128, steps=20, dt=40.0, substeps=20, extent=64.0
)
_ADVECTION_DIFFUSION = TransportPreset(trajectories=200, points=16, steps=20, dt=0.05, modes=3)
# Relative error, against a grid four times finer with the same permeability: 2.1e-3 (5.6e-3 if solved on 64 cells). It
# comes from the corners of the regions of constant permeability.
_DARCY = DarcyPreset(trajectories=1200, points=16, solved_points=128)
_DARCY_TINY = replace(_DARCY, trajectories=40, solved_points=32)
_HEAT = MeshPreset(trajectories=200, spacing=0.05, steps=20, dt=0.05, substeps=4)
_HEAT_TINY = replace(_HEAT, trajectories=20, spacing=0.12, steps=6)
_PARTICLES = ParticlePreset(trajectories=200, points=256, steps=20, dt=0.1, substeps=4)

AnyPreset = Preset | ReactionPreset | FiniteVolumePreset | TransportPreset | DarcyPreset | MeshPreset | ParticlePreset
P = TypeVar("P", Preset, FiniteVolumePreset, TransportPreset)


def _with_doubled_points(**presets: P) -> dict[str, AnyPreset]:
    """Return the presets and, for each, a copy with twice the points along each axis.

    The copy of `default` is named `double`, the copy of another preset `NAME_double`.
    """
    doubles = {
        "double" if name == "default" else f"{name}_double": replace(preset, points=2 * preset.points)
        for name, preset in presets.items()
    }
    return {**presets, **doubles}


PRESETS: dict[str, dict[str, AnyPreset]] = {
    "burgers1d": _with_doubled_points(
        default=_BURGERS,
        fine=_BURGERS_FINE,
        tiny=replace(_BURGERS, trajectories=40, points=64, solved_points=256, steps=20, low=0.02),
    ),
    "advection1d": _with_doubled_points(
        default=_ADVECTION, tiny=replace(_ADVECTION, trajectories=40, points=64, solved_points=64, steps=20)
    ),
    "ks1d": _with_doubled_points(
        default=_KURAMOTO_SIVASHINSKY,
        tiny=replace(
            _KURAMOTO_SIVASHINSKY, trajectories=40, points=64, solved_points=128, steps=20, substeps=5, burn_in=100
        ),
    ),
    "ns2d": _with_doubled_points(
        default=_NAVIER_STOKES,
        # For tests of long rollouts: the correlation with the truth decays over more than the other presets' 20 frames.
        long=replace(_NAVIER_STOKES, trajectories=32, steps=60, first_index=100_000),
        tiny=replace(
            _NAVIER_STOKES,
            trajectories=20,
            points=32,
            solved_points=64,
            steps=8,
            dt=0.25,
            substeps=6,
            modes=3,
            low=0.02,
        ),
    ),
    "cfd1d": _with_doubled_points(
        default=_COMPRESSIBLE,
        tiny=replace(_COMPRESSIBLE, trajectories=40, points=32, solved_points=64, steps=8, substeps=20, modes=2),
    ),
    "swe2d": _with_doubled_points(
        default=_SHALLOW_WATER,
        tiny=replace(_SHALLOW_WATER, trajectories=20, points=16, solved_points=32, steps=8, substeps=4),
    ),
    "reaction_diffusion2d": {
        "default": _REACTION_DIFFUSION,
        "tiny": replace(_REACTION_DIFFUSION, trajectories=40, points=32, solved_points=64, extent=32.0),
    },
    "advection_diffusion3d": _with_doubled_points(
        default=_ADVECTION_DIFFUSION, tiny=replace(_ADVECTION_DIFFUSION, trajectories=20, points=8, steps=8, modes=2)
    ),
    # `fine` contains the fields of `default` on twice the cells along each axis.
    "darcy2d": {
        "default": _DARCY,
        "fine": replace(_DARCY, points=32),
        "tiny": _DARCY_TINY,
        "tiny_fine": replace(_DARCY_TINY, points=32),
    },
    "heat_mesh": {
        "default": _HEAT,
        "varied": replace(_HEAT, meshes="each"),
        "tiny": _HEAT_TINY,
        "tiny_varied": replace(_HEAT_TINY, meshes="each"),
    },
    "particles": {"default": _PARTICLES, "tiny": replace(_PARTICLES, trajectories=20, points=48, steps=6)},
}


def get_preset(task: str, preset: str) -> AnyPreset:
    """Return a preset of a built-in task. Raises `ConfigError` if there is no such task or preset."""
    if task not in PRESETS:
        raise ConfigError(
            f"no built-in task {task!r}{_suggestion(task, PRESETS)}; choose from {', '.join(PRESETS)}, or set "
            f"`data.tasks.{task}.path` to a file of your own"
        )
    presets = PRESETS[task]
    if preset not in presets:
        raise ConfigError(
            f"{task} has no preset {preset!r}{_suggestion(preset, presets)}; choose from {', '.join(presets)}"
        )
    return presets[preset]


def _suggestion(word: str, valid: Iterable[str]) -> str:
    """Return " (did you mean ...?)" with the closest valid word, or an empty string if none is close."""
    matches = difflib.get_close_matches(word, valid, n=1, cutoff=0.5)
    return f" (did you mean {matches[0]!r}?)" if matches else ""
