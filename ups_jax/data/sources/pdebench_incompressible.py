"""PDEBench's incompressible flow files: `velocity` (N, T, X, Y, 2) and the tracer `particles` (N, T, X, Y, 1).

They have times `t` (N, T) but no coordinates: the grid is that of cell centres on the unit square, or on the
`domain_size` in the YAML text of the attribute `config`. The force (N, X, Y, 2) does not change in time and is not
read. `parse_numbers` is also used for the `config` texts of seed groups.
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
from ups_jax.data.sources.base import Grid, iterate_windows, select_channels, uniform_spacing
from ups_jax.data.sources.hdf5 import HDF5Source, get_dataset, number_attribute, text_attribute

# Dataset and component of each channel.
_COMPONENTS = {"Vx": ("velocity", 0), "Vy": ("velocity", 1), "particles": ("particles", 0)}
_WIDTHS = {"velocity": 2, "particles": 1}
_HINT = "give a file of PDEBench's incompressible flow, with `velocity`, `particles` and `t`"
# libyaml if PyYAML was built with it: files may have ten thousand of these texts.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class IncompressibleSource(HDF5Source):
    """A file of incompressible flow with the channels Vx, Vy and particles.

    If the simulation stopped early, only the complete frames are read: those up to the attribute `latestIndex` whose
    times increase.

    Args:
        path: The file.
        channel_names: Channels to read; None reads all three.

    Raises:
        DataError: Naming file and dataset, if a dataset or the attribute `config` is invalid.
    """

    def __init__(self, path: str | Path, channel_names: tuple[str, ...] | None = None) -> None:
        super().__init__(path, _HINT)
        with self.reading() as file:
            shape = _check_shapes(self.name, file)
            self.channel_names = select_channels(self.name, tuple(_COMPONENTS), channel_names)
            self.trajectories, self.frames = shape[0], _complete_frames(file, shape[1])
            if self.frames < 2:
                raise DataError(
                    f"{self.name}: has {self.frames} complete frames; at least 2 are needed: run the simulation again"
                )
            text = text_attribute(file.attrs, "config")
            self._coefficients = {name.lower(): value for name, value in parse_numbers(text, self.name).items()}
            self.grid = _read_grid(self.name, file, shape, self.frames, _parse_extent(text, self.name))
        self.channels = len(self.channel_names)

    def windows(self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Float32[np.ndarray, "b t *s c"]:
        """Return the evenly spaced frames `frames` of the trajectories `ids`."""
        result = np.empty((*frames.shape, *self.grid.shape, self.channels), np.float32)
        components = [_COMPONENTS[name] for name in self.channel_names]
        with self.reading() as file:
            for dataset in dict.fromkeys(dataset for dataset, _ in components):
                channels = [channel for channel, (owner, _) in enumerate(components) if owner == dataset]
                for row, index, times in iterate_windows(ids, frames):
                    # All components in one read: they lie in one compressed chunk.
                    values = file[dataset][index, times]
                    result[row][..., channels] = values[..., [components[channel][1] for channel in channels]]
        return result

    def coefficient_names(self) -> tuple[str, ...]:
        """Return no names: the numbers in `config` are the same for all trajectories and mostly solver settings."""
        return ()

    def constants(self) -> dict[str, float]:
        """Return the numbers in the simulation's `config`, by name."""
        return dict(self._coefficients)


def parse_numbers(text: str, label: str) -> dict[str, float]:
    """Return all numbers in a YAML text by their keys.

    A key is the innermost one if it is unique in the text, otherwise all nested keys joined by dots. Numbers that YAML
    reads as strings, such as `1e-3` and `1.e-8`, are included.

    Args:
        text: The YAML text of the attribute `config`.
        label: File and group, with which messages begin.

    Raises:
        DataError: If the text is not YAML.
    """
    try:
        content = yaml.load(text, Loader=_LOADER)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{label}: attribute `config` is not YAML ({reason}); write the file again") from None
    numbers = dict(_iterate_numbers(content, ()))
    innermost = [path[-1] for path in numbers]
    return {path[-1] if innermost.count(path[-1]) == 1 else ".".join(path): value for path, value in numbers.items()}


def _check_shapes(file_name: str, file: h5py.File) -> tuple[int, ...]:
    """Return the shape (N, T, X, Y) of the trajectories, after a check that all datasets have it."""
    for dataset, rank in (("velocity", 5), ("particles", 5), ("t", 2)):
        item = get_dataset(file_name, file, dataset, f"it contains {', '.join(list(file)[:6])}; {_HINT}")
        if item.ndim != rank or item.dtype.kind != "f":
            raise DataError(f"{file_name}: `{dataset}` has shape {item.shape} and type {item.dtype}; {_HINT}")
    shape: tuple[int, ...] = file["velocity"].shape[:4]
    for dataset, width in _WIDTHS.items():
        if file[dataset].shape != (*shape, width):
            raise DataError(f"{file_name}: `{dataset}` has shape {file[dataset].shape}; it must be {(*shape, width)}")
    if file["t"].shape != shape[:2]:
        raise DataError(f"{file_name}: `t` has shape {file['t'].shape}; it must be {shape[:2]}")
    return shape


def _complete_frames(file: h5py.File, stored_frames: int) -> int:
    """Return the number of frames up to `latestIndex` whose times increase in all trajectories."""
    latest = number_attribute(file.attrs, "latestIndex")
    is_increasing = np.diff(np.asarray(file["t"], np.float64), axis=1) > 0
    increasing = 1 + int(np.cumprod(is_increasing.all(axis=0)).sum())
    return min(increasing, stored_frames if latest is None else int(latest) + 1)


def _read_grid(
    file_name: str, file: h5py.File, shape: tuple[int, ...], frames: int, extent: tuple[float, float]
) -> Grid:
    times = np.asarray(file["t"][:, :frames])
    start, dt = uniform_spacing(times[0], f"{file_name}: `t`", "store frames at evenly spaced times")
    if not np.allclose(times, times[0], rtol=1e-5, atol=1e-3 * dt):
        raise DataError(f"{file_name}: `t` differs between trajectories; give files with one time step")
    spacing = tuple(length / points for length, points in zip(extent, shape[2:], strict=True))
    origin = tuple(step / 2 for step in spacing)
    return Grid(shape=shape[2:], origin=origin, spacing=spacing, start=start, dt=dt)


def _parse_extent(text: str, file_name: str) -> tuple[float, float]:
    """Return the lengths of the domain from `domain_size` in the `config` text; 1 and 1 without that key."""
    match = re.search(r"domain_size:\s*\[?\s*-?\s*([0-9.eE+-]+)\s*[,\n]\s*-?\s*([0-9.eE+-]+)", text)
    if match is None:
        return 1.0, 1.0
    try:
        extent = float(match[1]), float(match[2])
    except ValueError:
        extent = 0.0, 0.0
    if not 0 < min(extent) <= max(extent) < math.inf:
        raise DataError(
            f"{file_name}: attribute `config` contains `{' '.join(match[0].split())}`; `domain_size` must be two "
            "positive numbers"
        )
    return extent


def _iterate_numbers(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    """Yield the nested keys and the value of each number in parsed YAML."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _iterate_numbers(item, (*path, str(key)))
    elif path and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            yield path, float(value)
        except (ValueError, OverflowError):
            return
