"""What the embedded generator can make: a table of tasks and of presets for each. Plain numbers, no solver."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from ups_jax.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One data set: `steps` frames of `dt` after the first, on `points` of a grid that is solved on `solved_points`.

    Each `dt` takes `substeps` of the solver. The coefficient is drawn for each trajectory between `low` and `high`.
    """

    trajectories: int
    points: int
    solved_points: int
    steps: int
    dt: float
    substeps: int
    modes: int
    coefficient: str
    low: float
    high: float
    scale: Literal["linear", "log10"]
    origin: float = -1.0
    extent: float = 2.0


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

PRESETS: dict[str, dict[str, Preset]] = {
    "burgers1d": {
        "default": _BURGERS,
        "tiny": replace(_BURGERS, trajectories=40, points=64, steps=20, solved_points=256, low=0.02),
    },
    "advection1d": {
        "default": _ADVECTION,
        "tiny": replace(_ADVECTION, trajectories=40, points=64, steps=20, solved_points=64),
    },
}


def find(task: str, preset: str) -> Preset:
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
