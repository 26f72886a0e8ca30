"""PDEBench's incompressible flow files: `velocity` (N, T, X, Y, 2) and the tracer `particles` (N, T, X, Y, 1).

They have times `t` (N, T) but no coordinates: the grid points are the centres of cells in a square of side 1, or in a
domain of the size `domain_size`, if the YAML text in the attribute `config` contains this key. The force (N, X, Y, 2)
does not change in time and is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import Float32, Int

from ups_jax.core.errors import DataError
from ups_jax.data.sources.base import Grid, iterate_windows, same_coordinates, select_channels, start_and_step
from ups_jax.data.sources.hdf5 import HDF5Source, get_dataset, number_attribute
from ups_jax.data.sources.hdf5_values import Group, Values, text_attribute

# Dataset and component of each channel.
_COMPONENTS = {"Vx": ("velocity", 0), "Vy": ("velocity", 1), "particles": ("particles", 0)}
_WIDTHS = {"velocity": 2, "particles": 1}
_HINT = "give a file of PDEBench's incompressible flow, with `velocity`, `particles` and `t`"
# libyaml if PyYAML was built with it: files may have ten thousand of these texts.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class IncompressibleSource(HDF5Source):
    """A file of incompressible flow with the channels Vx, Vy and particles; `channel_names` selects some of them.

    If the simulation stopped early, only complete frames are read: up to the frame in the attribute `latestIndex`, and
    only as long as the times increase. Raises `DataError` if a dataset or the attribute `config` is invalid.
    """

    def __init__(self, path: str | Path, channel_names: tuple[str, ...] | None = None) -> None:
        super().__init__(path, _HINT)
        with self.open() as file:
            shape = _read_shape(self.name, file)
            self.channel_names = select_channels(self.name, tuple(_COMPONENTS), channel_names)
            self.trajectories, self.frames = shape[0], _count_complete_frames(file, shape[1])
            if self.frames < 2:
                raise DataError(
                    f"{self.name}: has {self.frames} complete frames; run the simulation again for at least 2"
                )
            text = text_attribute(file.attrs, "config")
            self._coefficients = dict(parse_numbers(text, self.name))
            self._note_constant_fields([name for name in ("force",) if isinstance(file.get(name), Values)])
            self.grid = _read_grid(self.name, file, shape, self.frames, _parse_domain_size(text, self.name))
        self.channels = len(self.channel_names)

    def read(self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Float32[np.ndarray, "b t *s c"]:
        """Return the evenly spaced frames `frames[i]` of trajectory `ids[i]` for each window i."""
        result = np.empty((*frames.shape, *self.grid.shape, self.channels), np.float32)
        components = [_COMPONENTS[name] for name in self.channel_names]
        with self.open() as file:
            for dataset in dict.fromkeys(dataset for dataset, _ in components):
                channels = [channel for channel, (owner, _) in enumerate(components) if owner == dataset]
                for row, index, times in iterate_windows(ids, frames):
                    # All components in one read: they lie in one compressed chunk.
                    values = file[dataset][index, times]
                    result[row][..., channels] = values[..., [components[channel][1] for channel in channels]]
        return result

    def coefficient_names(self) -> tuple[str, ...]:
        """Return no names: the numbers in `config` are mostly solver settings and the same for all trajectories."""
        return ()

    def constants(self) -> dict[str, float]:
        """Return the numbers in the YAML text of the attribute `config`, by name."""
        return dict(self._coefficients)


def parse_numbers(text: str, label: str) -> dict[str, float]:
    """Return all numbers in a nested YAML text by name.

    The name of the number 1 in `a: {b: 1}` is `b`, or `a.b` if `b` occurs more than once in the text. Numbers that YAML
    reads as strings, such as `1e-3` and `1.e-8`, are included.

    Raises `DataError` if the text is not YAML; the message begins with `label`.
    """
    try:
        content = yaml.load(text, Loader=_LOADER)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{label}: attribute `config` is not YAML ({reason}); write the file again") from None
    numbers = dict(_iterate_numbers(content, ()))
    innermost = [keys[-1] for keys in numbers]
    return {keys[-1] if innermost.count(keys[-1]) == 1 else ".".join(keys): value for keys, value in numbers.items()}


def _read_shape(file_name: str, file: Group) -> tuple[int, ...]:
    """Return the lengths of the axes (N, T, X, Y) that both datasets share. Raises `DataError` if they differ."""
    for dataset, rank in (("velocity", 5), ("particles", 5), ("t", 2)):
        item = get_dataset(file_name, file, dataset, f"it contains {', '.join(list(file)[:6])}; {_HINT}")
        if item.ndim != rank or item.dtype.kind != "f":
            raise DataError(f"{file_name}: `{dataset}` has shape {item.shape} and type {item.dtype}; {_HINT}")
    shape: tuple[int, ...] = file["velocity"].shape[:4]
    for dataset, width in _WIDTHS.items():
        if file[dataset].shape != (*shape, width):
            raise DataError(f"{file_name}: `{dataset}` has shape {file[dataset].shape}; give {(*shape, width)}")
    if file["t"].shape != shape[:2]:
        raise DataError(f"{file_name}: `t` has shape {file['t'].shape}; give {shape[:2]}")
    return shape


def _count_complete_frames(file: Group, stored_frames: int) -> int:
    """Return the number of frames up to `latestIndex`, and before the first time that does not increase."""
    latest = number_attribute(file.attrs, "latestIndex")
    is_increasing = np.diff(np.asarray(file["t"], np.float64), axis=1) > 0
    increasing = 1 + int(np.cumprod(is_increasing.all(axis=0)).sum())
    return min(increasing, stored_frames if latest is None else int(latest) + 1)


def _read_grid(
    file_name: str, file: Group, shape: tuple[int, ...], frames: int, domain_size: tuple[float, float]
) -> Grid:
    times = np.asarray(file["t"][:, :frames])
    start, dt = start_and_step(times[0], f"{file_name}: `t`", "store frames at evenly spaced times")
    if not same_coordinates(times, times[0]):
        raise DataError(
            f"{file_name}: `t` differs between trajectories; store trajectories with the same times in a file"
        )
    spacing = tuple(length / points for length, points in zip(domain_size, shape[2:], strict=True))
    origin = tuple(step / 2 for step in spacing)
    return Grid(shape=shape[2:], origin=origin, spacing=spacing, start=start, dt=dt)


def _parse_domain_size(text: str, file_name: str) -> tuple[float, float]:
    """Return the value of the key `domain_size` in the text of the attribute `config`; (1, 1) without the key."""
    match = re.search(r"domain_size:\s*\[?\s*-?\s*([0-9.eE+-]+)\s*[,\n]\s*-?\s*([0-9.eE+-]+)", text)
    if match is None:
        return 1.0, 1.0
    try:
        domain_size = float(match[1]), float(match[2])
    except ValueError:
        domain_size = 0.0, 0.0
    if not 0 < min(domain_size) <= max(domain_size) < math.inf:
        raise DataError(
            f"{file_name}: attribute `config` contains `{' '.join(match[0].split())}`; set `domain_size` to two "
            "positive numbers"
        )
    return domain_size


def _iterate_numbers(value: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    """Yield (path, number) for each number in the YAML value at the path `keys`; a path is a tuple of nested keys."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _iterate_numbers(item, (*keys, str(key)))
    elif keys and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            yield keys, float(value)
        except (ValueError, OverflowError):
            return
