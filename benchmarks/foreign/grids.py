"""Cases of grids: symmetries of steady tasks, and numbers of points that no patch divides."""

from __future__ import annotations

import h5py
import numpy as np

from foreign.case import GRID, INSPECT, SYMMETRY, case
from foreign.content import TINY
from foreign.fields import line_waves, plane_waves, poisson, write_tensor


def _validate(path: str, symmetry: str) -> str:
    task = f"{{name: mine, path: {path}, kind: steady, symmetries: [{symmetry}]}}"
    return f"validate --config tiny_steady --stage steady_prior 'data.tasks=[{task}]'"


@case(
    SYMMETRY,
    "solutions at every 4th of 41 points: a reflection maps the points onto themselves",
    _validate("even.hdf5", "{reflect: [x]}"),
    "valid",
)
@case(
    SYMMETRY,
    "solutions at every 3rd of 41 points, which leave out one wall",
    _validate("uneven.hdf5", "{reflect: [x]}"),
    "symmetries.0",
    code=3,
)
@case(
    SYMMETRY,
    "solutions at every 3rd of 41 points, which leave out one wall",
    _validate("uneven.hdf5", "{swap: [x, y]}"),
    "valid",
)
def steady() -> None:
    for name, step in (("even", 4), ("uneven", 3)):
        source, solution = (values[:, ::step, ::step] for values in poisson())
        with h5py.File(f"{name}.hdf5", "w") as file:
            file["nu"], file["tensor"] = source.astype("f4"), solution[:, None].astype("f4")
            for axis, points in zip("xy", source.shape[1:], strict=True):
                file[f"{axis}-coordinate"] = step / 40 * (0.5 + np.arange(points))


def _train(name: str) -> str:
    return f"train --config tiny --run-dir {name}_run 'data.tasks=[{{name: mine, path: {name}.hdf5}}]' {TINY}"


@case(GRID, "101 points on a line", _train("line"), "101 points", "persistence", lacks=("do not divide",))
@case(GRID, "5 x 7 points", _train("small"), "5 x 7 points", "do not divide")
@case(GRID, "53 x 31 points", f"{INSPECT} plane.hdf5", "axis x      53 points", "axis y      31 points")
@case(GRID, "7 x 11 x 5 points", f"{INSPECT} box.hdf5", "axis z      5 points")
def primes() -> None:
    write_tensor("line.hdf5", line_waves(points=101))
    write_tensor("plane.hdf5", plane_waves(shape=(53, 31)))
    write_tensor("box.hdf5", plane_waves(shape=(7, 11, 5)))
    write_tensor("small.hdf5", plane_waves(shape=(5, 7)))
