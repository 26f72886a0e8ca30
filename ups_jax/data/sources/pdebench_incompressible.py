"""PDEBench's incompressible flow files: `velocity` (N, T, X, Y, 2) and the tracer `particles` (N, T, X, Y, 1).

They have times `t` (N, T) but no coordinates: cells of the unit square, or of the `domain_size` in their `config`. The
steady `force` (N, X, Y, 2) is no channel, as it does not change. Seed groups have such `config` texts too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml
from jaxtyping import Float32, Int

from ups_jax.core.errors import DataError
from ups_jax.data.sources.base import Grid, selected, uniform, windows_of
from ups_jax.data.sources.hdf5 import HDF5Source, dataset_of, number_of, text_of

_PARTS = {"Vx": ("velocity", 0), "Vy": ("velocity", 1), "particles": ("particles", 0)}
_WIDTHS = {"velocity": 2, "particles": 1}
_MEND = "give a file of PDEBench's incompressible flow, with `velocity`, `particles` and `t`"
# libyaml's, where PyYAML has it: a file may hold ten thousand of these texts.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class IncompressibleSource(HDF5Source):
    """The channels `names` of Vx, Vy and particles, or all three. Raises `DataError` naming file and dataset.

    Where the simulation stopped early, only the frames up to `latestIndex` are read, and no further than times rise.
    """

    def __init__(self, path: str | Path, names: tuple[str, ...] | None = None) -> None:
        super().__init__(path, _MEND)
        with self.reading() as file:
            shape = _check(self.name, file)
            self.channel_names = selected(self.name, tuple(_PARTS), names)
            self.trajectories, self.frames = shape[0], _frames(file, shape[1])
            if self.frames < 2:
                raise DataError(f"{self.name}: holds {self.frames} complete frames, 2 are the least; write it again")
            text = text_of(file.attrs, "config")
            self._coefficients = _lower(numbers(text, self.name))
            self.grid = _grid(self.name, file, shape, self.frames, _extent(text, self.name))
        self.channels = len(self.channel_names)

    def windows(self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Float32[np.ndarray, "b t *s c"]:
        """The given frames of the given trajectories; frames are evenly spaced."""
        result = np.empty((*frames.shape, *self.grid.shape, self.channels), np.float32)
        parts = [_PARTS[name] for name in self.channel_names]
        with self.reading() as file:
            for dataset in dict.fromkeys(dataset for dataset, _ in parts):
                places = [place for place, (owner, _) in enumerate(parts) if owner == dataset]
                for row, index, times in windows_of(ids, frames):
                    # All components at once: they lie in one compressed chunk.
                    whole = file[dataset][index, times]
                    result[row][..., places] = whole[..., [parts[place][1] for place in places]]
        return result

    def found_coefficients(self) -> tuple[str, ...]:
        """None by itself: a file holds one set of numbers, most of them of the solver."""
        return ()

    def constants(self) -> dict[str, float]:
        """The numbers of the simulation's `config`."""
        return dict(self._coefficients)


def numbers(text: str, where: str) -> dict[str, float]:
    """Every number in it by its key: the last part alone where no other has that one, else the whole dotted key.

    Also numbers that YAML takes for words, such as `1e-3` and `1.e-8`. Raises `DataError` naming `where`.
    """
    try:
        values = yaml.load(text, Loader=_LOADER)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = " ".join(str(error).split())
        raise DataError(f"{where}: its attribute `config` is no YAML ({line}); write the file again") from None
    found = dict(_leaves(values, ()))
    short = [path[-1] for path in found]
    return {path[-1] if short.count(path[-1]) == 1 else ".".join(path): value for path, value in found.items()}


def _check(name: str, file: h5py.File) -> tuple[int, ...]:
    """The shape (N, T, X, Y) of every dataset."""
    for dataset, rank in (("velocity", 5), ("particles", 5), ("t", 2)):
        item = dataset_of(name, file, dataset, f"it holds {', '.join(list(file)[:6])}; {_MEND}")
        if item.ndim != rank or item.dtype.kind != "f":
            raise DataError(f"{name}: `{dataset}` has shape {item.shape} and type {item.dtype}; {_MEND}")
    shape: tuple[int, ...] = file["velocity"].shape[:4]
    for dataset, width in _WIDTHS.items():
        if file[dataset].shape != (*shape, width):
            raise DataError(f"{name}: `{dataset}` has shape {file[dataset].shape}, it must be {(*shape, width)}")
    if file["t"].shape != shape[:2]:
        raise DataError(f"{name}: `t` has shape {file['t'].shape}, it must be {shape[:2]}")
    return shape


def _frames(file: h5py.File, stored: int) -> int:
    latest = number_of(file.attrs, "latestIndex")
    rising = np.diff(np.asarray(file["t"], np.float64), axis=1) > 0
    complete = 1 + int(np.cumprod(rising.all(axis=0)).sum())
    return min(complete, stored if latest is None else int(latest) + 1)


def _grid(name: str, file: h5py.File, shape: tuple[int, ...], frames: int, extent: tuple[float, float]) -> Grid:
    times = np.asarray(file["t"][:, :frames])
    start, dt = uniform(times[0], f"{name}: `t`", "store frames at even times")
    if not np.allclose(times, times[0], rtol=1e-5, atol=1e-3 * dt):
        raise DataError(f"{name}: `t` differs between trajectories; give files of one time step")
    spacing = tuple(length / points for length, points in zip(extent, shape[2:], strict=True))
    origin = tuple(step / 2 for step in spacing)
    return Grid(shape=shape[2:], origin=origin, spacing=spacing, start=start, dt=dt)


def _extent(text: str, name: str) -> tuple[float, float]:
    found = re.search(r"domain_size:\s*\[?\s*-?\s*([0-9.eE+-]+)\s*[,\n]\s*-?\s*([0-9.eE+-]+)", text)
    if found is None:
        return 1.0, 1.0
    try:
        sizes = float(found[1]), float(found[2])
    except ValueError:
        sizes = 0.0, 0.0
    if not 0 < min(sizes) <= max(sizes) < math.inf:
        raise DataError(f"{name}: its attribute `config` has {' '.join(found[0].split())}; give two positive numbers")
    return sizes


def _lower(values: dict[str, float]) -> dict[str, float]:
    return {name.lower(): value for name, value in values.items()}


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, (*path, str(key)))
    elif path and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            yield path, float(value)
        except (ValueError, OverflowError):
            return
