"""What the embedded generator can make: a table of tasks and of presets for each. Plain numbers, no solver."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeVar

from ups_jax.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Trajectories on a periodic grid: `points` an axis, solved on `solved_points`, `steps` frames of `dt` after one.

    Where there are more `points` than solved ones, the field between those is the trigonometric interpolation.
    Each `dt` takes `substeps` of the solver. Initial fields hold `modes` Fourier modes an axis and `amplitude` is their
    largest value; the first `burn_in` frames are not stored. The coefficient is drawn for each trajectory between `low`
    and `high`; without a name it is the constant `low` of the equation and is not stored. Trajectory `first` is the
    first: a preset whose numbers another one does not hold shares no trajectory with it.
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
    first: int = 0
    coefficient: str | None = None
    low: float = 1.0
    high: float = 1.0
    scale: Literal["linear", "log10"] = "linear"
    origin: float = -1.0
    extent: float = 2.0
    boundary: ClassVar[str] = "periodic"


@dataclass(frozen=True, kw_only=True)
class DarcyPreset:
    """Steady fields on the unit square: cell averages of `points` cells an axis, solved on `solved_points`.

    The permeability is `high` where a Gaussian random field is positive and `low` elsewhere.
    """

    trajectories: int
    points: int
    solved_points: int
    low: float = 3.0
    high: float = 12.0
    boundary: ClassVar[str] = "dirichlet"


@dataclass(frozen=True, kw_only=True)
class VolumePreset:
    """Trajectories of a flow in cells: averages over `points` cells an axis of a solution in `solved_points` cells.

    Each of the `steps` frames after the first takes `substeps` steps. What `modes` and `amplitude` are of is said where
    the flow is; the coefficient is drawn for each trajectory between `low` and `high`.
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
    """Heat on triangles of edge `spacing`: the unit square without a disc of radius `hole`, at 0 on all sides.

    The mesh is one for all trajectories; where `meshes` is `each`, every trajectory has a hole at a place of its own.
    Each of the `steps` frames after the first takes `substeps` implicit steps. The diffusivity `kappa` is drawn between
    `low` and `high`, and so is a source of heat that does not change in time, up to `source`.
    """

    trajectories: int
    spacing: float
    steps: int
    dt: float
    substeps: int
    meshes: Literal["one", "each"] = "one"
    hole: float = 0.15
    source: float = 1.0
    low: float = 0.01
    high: float = 0.05
    scale: Literal["linear", "log10"] = "log10"
    boundary: ClassVar[str] = "dirichlet"


@dataclass(frozen=True, kw_only=True)
class ParticlePreset:
    """`points` particles in a periodic box of length 2 pi that a Taylor-Green flow carries.

    The flow's speed is drawn between `slow` and `fast` and its viscosity `nu` between `low` and `high`; a mean flow of
    up to `drift` an axis is laid on it. Each of the `steps` frames after the first takes `substeps` steps.
    """

    trajectories: int
    points: int
    steps: int
    dt: float
    substeps: int
    slow: float = 0.5
    fast: float = 1.5
    drift: float = 0.3
    low: float = 0.005
    high: float = 0.05
    scale: Literal["linear", "log10"] = "log10"
    boundary: ClassVar[str] = "periodic"


@dataclass(frozen=True, kw_only=True)
class TransportPreset:
    """Fields on a periodic grid of three axes, `points` an axis, that a uniform flow carries while they spread.

    They hold `modes` Fourier modes an axis. Each trajectory has a diffusivity `nu` between `low` and `high`, on a scale
    of powers of ten, and a velocity `beta` of up to `speed` along each axis. The solution is exact at any `dt`.
    """

    trajectories: int
    points: int
    steps: int
    dt: float
    modes: int
    speed: float = 1.0
    low: float = 0.005
    high: float = 0.05
    origin: float = -1.0
    extent: float = 2.0
    boundary: ClassVar[str] = "periodic"


# Worst relative error of a frame at the smallest viscosities, against 2048 points and 50 substeps: 8.6e-6 at 10
# substeps (1.9e-5 at 8, 1.3e-5 on 512 points), and 8e-8 after 40 steps. In float32 round-off makes that 1.5e-5.
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
# The spectral solution of advection is exact at any step length; the grid only has to hold the six modes.
_ADVECTION = replace(_BURGERS, solved_points=128, substeps=1, coefficient="beta", low=0.1, high=1.0, scale="linear")
# Near the smallest viscosity a front is 0.004 wide: with 8192 points and 100 substeps as reference 4.1e-6 (9.3e-6 at 40
# substeps, 5.2e-5 at 25), worst in the frames where the fronts form.
_BURGERS_FINE = replace(_BURGERS, trajectories=320, points=1024, solved_points=4096, substeps=50, low=0.001)
# Starts on the attractor: the rms is stationary from t = 30 on. The Lyapunov time is 13, 26 frames. Against 512 points
# and 80 substeps: 8e-8 after one frame, 2.4e-7 after ten (2.7e-6 at 10 substeps), 1.2e-4 after the last.
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
# Against 256 points and 60 substeps: 1e-5 after one frame, 3e-4 where filaments are thinnest (no less with 40
# substeps; 1.3e-2 on 64 points with 25), 3e-6 after the last.
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

_COMPRESSIBLE = VolumePreset(
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
_SHALLOW_WATER = VolumePreset(
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
_ADVECTION_DIFFUSION = TransportPreset(trajectories=200, points=16, steps=20, dt=0.05, modes=3)
# Corners of regions leave 2.1e-3 against a grid four times finer under the same permeability (5.6e-3 when solved on 64
# cells).
_DARCY = DarcyPreset(trajectories=1200, points=16, solved_points=128)
_DARCY_TINY = replace(_DARCY, trajectories=40, solved_points=32)
_HEAT = MeshPreset(trajectories=200, spacing=0.05, steps=20, dt=0.05, substeps=4)
_HEAT_TINY = replace(_HEAT, trajectories=20, spacing=0.12, steps=6)
_PARTICLES = ParticlePreset(trajectories=200, points=256, steps=20, dt=0.1, substeps=4)

AnyPreset = Preset | VolumePreset | TransportPreset | DarcyPreset | MeshPreset | ParticlePreset
P = TypeVar("P", Preset, VolumePreset, TransportPreset)


def _with_doubles(**presets: P) -> dict[str, AnyPreset]:
    """Return the presets, and each on twice the points along each axis: `double` of `default`, else `NAME_double`."""
    doubles = {
        "double" if name == "default" else f"{name}_double": replace(preset, points=2 * preset.points)
        for name, preset in presets.items()
    }
    return {**presets, **doubles}


PRESETS: dict[str, dict[str, AnyPreset]] = {
    "burgers1d": _with_doubles(
        default=_BURGERS,
        fine=_BURGERS_FINE,
        tiny=replace(_BURGERS, trajectories=40, points=64, solved_points=256, steps=20, low=0.02),
    ),
    "advection1d": _with_doubles(
        default=_ADVECTION, tiny=replace(_ADVECTION, trajectories=40, points=64, solved_points=64, steps=20)
    ),
    "ks1d": _with_doubles(
        default=_KURAMOTO_SIVASHINSKY,
        tiny=replace(
            _KURAMOTO_SIVASHINSKY, trajectories=40, points=64, solved_points=128, steps=20, substeps=5, burn_in=100
        ),
    ),
    "ns2d": _with_doubles(
        default=_NAVIER_STOKES,
        # For tests alone: until the correlation with the truth is lost takes longer than the 20 frames of the others.
        long=replace(_NAVIER_STOKES, trajectories=32, steps=60, first=100_000),
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
    "cfd1d": _with_doubles(
        default=_COMPRESSIBLE,
        tiny=replace(_COMPRESSIBLE, trajectories=40, points=32, solved_points=64, steps=8, substeps=20, modes=2),
    ),
    "swe2d": _with_doubles(
        default=_SHALLOW_WATER,
        tiny=replace(_SHALLOW_WATER, trajectories=20, points=16, solved_points=32, steps=8, substeps=4),
    ),
    "advection_diffusion3d": _with_doubles(
        default=_ADVECTION_DIFFUSION, tiny=replace(_ADVECTION_DIFFUSION, trajectories=20, points=8, steps=8, modes=2)
    ),
    # `fine` has the fields of `default` on twice the points along each axis.
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


def find(task: str, preset: str) -> AnyPreset:
    """The preset of a task. Raises `ConfigError` that names what there is."""
    if task not in PRESETS:
        raise ConfigError(
            f"no embedded task {task!r}{_near(task, PRESETS)}; there are {', '.join(PRESETS)}. "
            f"For data of your own give its file: data.tasks.{task}.path=FILE"
        )
    presets = PRESETS[task]
    if preset not in presets:
        raise ConfigError(f"{task} has no preset {preset!r}{_near(preset, presets)}; there are {', '.join(presets)}")
    return presets[preset]


def _near(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f", did you mean {near[0]!r}?" if near else ""
