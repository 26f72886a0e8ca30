"""Base classes and helpers for HDF5 layouts: file handles, coordinates and PDE coefficients.

Each process opens its own handle of a file: a pickled source does not contain one. Values are read through the classes
of `hdf5_values`.
"""

from __future__ import annotations

import os
import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float, Float32, Int

from ups_jax.core.errors import DataError
from ups_jax.data.sources.base import (
    AXES,
    Grid,
    coordinate_line,
    match_name,
    origin_and_spacing,
    per_trajectory,
    start_and_step,
)
from ups_jax.data.sources.file_types import file_type_and_remedy
from ups_jax.data.sources.hdf5_values import Group, Values

_COPY_HINT = "which is not opened; copy the values into this file"
# A number in a file name: the decimal point may be a `p`. Atomic, so that no part of `nu0.01x` or `nu01` is a number.
_NUMBER = (
    r"((?>(?:0|[1-9][0-9]*)(?:[.p][0-9]+|[.](?=[eE][-+]?[0-9]))?(?:[eE][-+]?[0-9]+)?))"
    # Not part of a longer number, of a word such as `2d`, or of a range such as `0.01-0.1`.
    r"(?![0-9A-Za-z,]|[-._][0-9]|_[eE][-+]?[0-9])"
)
_SUFFIXES = (".hdf5", ".h5", ".hdf", ".nc", ".mat", ".npz", ".npy", ".yaml", ".yml", ".zarr", ".pvd")
# Names of numbers that count or place trajectories, times and points, or describe how a file was produced.
_NO_COEFFICIENT = re.compile(
    r"[txyz]|(?i:times?|d[txyz]|n[txyz]|samples?|batch|traj(ectory|ectories)?|runs?|steps?|iterations?|frames?|mask"
    r"|(.*[_-])?(seeds?|ids?|idx)|((sample|sim|simulation|traj|trajectory|run|file|time)[_-]?)?(index|indices)"
    r"|latestindex|members|given_frames|checkpoint_step)"
)


class HDF5File:
    """An HDF5 file that several threads and processes read. Raises `DataError` if it does not exist.

    Error messages end with `hint`, which says how to fix the file.
    """

    def __init__(self, path: str | Path, hint: str) -> None:
        self.path = Path(path)
        self.name = str(path)
        self._hint = hint
        self._handle: h5py.File | None = None
        self._process = -1
        self._is_self_contained = False
        self._notes: dict[str, str] = {}
        self._lock = threading.Lock()
        if not self.path.is_file():
            is_folder = self.path.is_dir()
            raise DataError(f"{path}: {file_type_and_remedy(self.path) if is_folder else f'does not exist; {hint}'}")

    @property
    def notes(self) -> tuple[str, ...]:
        """Messages about how the file is read and what is left out."""
        return tuple(f"{self.name}: {text}" for text in self._notes.values())

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that are read."""
        return (self.path,)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handle": None, "_process": -1, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"_lock": threading.Lock()})

    @contextmanager
    def open(self) -> Iterator[Group]:
        """Open the file for reading and yield its root.

        Only one thread at a time has it open. Errors of h5py become a `DataError`.
        """
        with self._lock:
            try:
                # A handle inherited through a fork shares its file position with the parent process.
                if self._handle is None or self._process != os.getpid():
                    handle = h5py.File(self.path, "r", locking=False)
                    # Pickled with the source: the check takes long for files with many groups.
                    if not self._is_self_contained:
                        _check_self_contained(self.path, handle)
                        self._is_self_contained = True
                    self._handle, self._process = handle, os.getpid()
                yield Group(self._handle, self._notes)
            except Exception as error:
                # h5py raises OSError, RuntimeError, KeyError or ValueError for damaged files.
                if not is_hdf5_error(error):
                    raise
                raise DataError(f"{self.path}: {_error_reason(self.path, error, self._hint)}") from None


class HDF5Source(HDF5File):
    """Base class of sources in HDF5 files, with lookup of coefficients; subclasses may add input fields."""

    trajectories: int
    grid: Grid
    input_channels: tuple[str, ...] = ()
    # Coefficients listed by `coefficient_names` if the file name contains them; PDEBench writes these.
    file_name_coefficients: tuple[str, ...] = ("nu", "beta", "rho", "eta", "zeta")

    def __init__(self, path: str | Path, hint: str) -> None:
        super().__init__(path, hint)
        self._coefficients: dict[str, Any] = {}
        # Shapes of the numeric datasets that are neither coefficients nor fields.
        self._other_shapes: dict[str, tuple[int, ...]] = {}

    def read_input_fields(self, ids: Int[np.ndarray, " b"]) -> Float32[np.ndarray, "b *s i"]:
        """Return an array without input fields: its last axis has length 0."""
        return np.empty((len(ids), *self.grid.shape, 0), np.float32)

    def coefficient(self, name: str) -> Float[np.ndarray, " n"] | None:
        """Return the values of a coefficient for all trajectories, or None if the source lacks it.

        The value is read from a dataset, else from a root attribute, else from the file name, such as 0.01 for `nu`
        in `burgers_nu0.01.hdf5`. Names are matched as in `match_name`. Raises `DataError` if several names match, or if
        the dataset does not have one number, or one for each trajectory.
        """
        match = match_name(f"{self.name}: coefficients", name, self._coefficients)
        if match is not None:
            return np.broadcast_to(np.asarray(self._coefficients[match], np.float64), (self.trajectories,))
        other = match_name(self.name, name, self._other_shapes)
        if other is not None:
            raise DataError(
                f"{self.name}: coefficient {name} is the dataset `{other}` with the shape {self._other_shapes[other]}; "
                f"store one number for each trajectory, in the shape ({self.trajectories},)"
            )
        value = number_in_file_name(self.path, name)
        return None if value is None else np.full(self.trajectories, value)

    def coefficient_names(self) -> tuple[str, ...]:
        """Return the names of the numbers in the file and in its name that are probably PDE coefficients."""
        stored = {name.lower() for name in (*self._coefficients, *self._other_shapes)}
        in_name = (
            name
            for name in self.file_name_coefficients
            if name.lower() not in stored and number_in_file_name(self.path, name) is not None
        )
        return (*filter(is_coefficient_name, self._coefficients), *in_name)

    def _read_coefficients(self, file: Group, fields: Iterable[str]) -> None:
        """Read all numbers that may be coefficients, and note constant fields that are left out.

        These are root attributes and root datasets with one number or one for each trajectory, and the datasets in the
        group `parameters`, in this order; if a name occurs again, its last value counts. `trajectories` and `grid` must
        be set.

        Args:
            fields: Names of the root datasets of fields, which are no coefficients.

        Raises:
            DataError: A dataset in `parameters` does not have one number, or one for each trajectory.
        """
        for key, value in file.attrs.items():
            numbers = np.asarray(value)
            if numbers.dtype.kind in "fiu" and numbers.size in (1, self.trajectories):
                self._coefficients[key] = (
                    float(numbers.item()) if numbers.size == 1 else per_trajectory(numbers.ravel(), self.trajectories)
                )
        constant_fields = []
        space = self.grid.shape
        for group in (file, file.get("parameters")):
            for key, item in group.items() if isinstance(group, Group) else ():
                is_field = group is file and (key in fields or key.endswith("-coordinate"))
                if is_field or not isinstance(item, Values) or item.dtype.kind not in "fiub" or item.is_null:
                    continue
                # Only arrays of the right shape are read: others may be large.
                if tuple(points for points in item.shape if points != 1) in ((), (self.trajectories,)):
                    self._coefficients[key] = per_trajectory(item[()], self.trajectories)
                elif group is not file:
                    raise DataError(
                        f"{self.name}: `parameters/{key}` has shape {item.shape}; "
                        f"give shape ({self.trajectories},), one value for each trajectory"
                    )
                else:
                    self._other_shapes[key] = item.shape
                    # A vector has an axis of its components at the end.
                    for shape in (item.shape, item.shape[:-1]):
                        if shape == (self.trajectories, *space) or (shape == space and len(space) > 1):
                            constant_fields.append(key)
                            break
        self._note_constant_fields(constant_fields)

    def _note_constant_fields(self, names: Sequence[str]) -> None:
        """Add a note that the fields `names` do not change in time and are left out, if there are any."""
        if names:
            subject = f"the field{'s' if len(names) > 1 else ''} {', '.join(f'`{name}`' for name in names)}"
            verb = "do" if len(names) > 1 else "does"
            self._notes["constant fields"] = (
                f"{subject} {verb} not change in time and {'are' if len(names) > 1 else 'is'} left out: the model does "
                "not receive constant fields on a grid"
            )


def is_coefficient_name(name: str) -> bool:
    """Return whether a number with this name is probably a PDE coefficient, unlike `t`, `seed` or `sample_id`."""
    return _NO_COEFFICIENT.fullmatch(name) is None


def get_dataset(file_name: str, file: Group, key: str, hint: str) -> Values:
    """Return the dataset `key` of a file. Raises `DataError` if it does not exist or has no values."""
    dataset = file.get(key)
    if not isinstance(dataset, Values) or dataset.is_null:
        raise DataError(f"{file_name}: has no dataset `{key}`; {hint}")
    return dataset


def number_attribute(attributes: h5py.AttributeManager, key: str) -> float | None:
    """Return the attribute `key` as a number, or None if there is no such attribute or no single finite number."""
    value = np.asarray(attributes.get(key, ""))
    is_number = value.size == 1 and value.dtype.kind in "fiub" and bool(np.isfinite(value).all())
    return float(value.item()) if is_number else None


def read_coordinate(file_name: str, file: Group, dataset: str, hint: str) -> Float[np.ndarray, " n"]:
    """Return the coordinates or times in a dataset as one line of floating-point numbers; see `coordinate_line`.

    Raises `DataError` if the dataset does not exist or contains no numbers. The message for a missing one ends with
    `hint`.
    """
    values = get_dataset(file_name, file, dataset, hint)[()]
    if values.dtype.kind == "M":
        file.notes[dataset] = f"`{dataset}` contains dates; times are in seconds from the first one, {values.flat[0]}"
    return coordinate_line(values, f"{file_name}: `{dataset}`")


def _read_coordinate_of_length(
    file_name: str, file: Group, dataset: str, lengths: tuple[int, ...], reason: str
) -> Float[np.ndarray, " n"]:
    """Return coordinates as `read_coordinate` does. Raises `DataError` if their number is not in `lengths`.

    Then the message states only the first of the `lengths`, followed by `reason`, which explains it.
    """
    values = read_coordinate(file_name, file, dataset, "add the coordinates")
    if values.ndim != 1 or len(values) not in lengths:
        raise DataError(
            f"{file_name}: `{dataset}` has shape {file[dataset].shape}; give {lengths[0]} entries ({reason})"
        )
    return values


def read_grid(file_name: str, file: Group, dataset: str, shape: tuple[int, ...]) -> Grid:
    """Return the grid and times of a PDEBench file from its datasets `t-coordinate`, `x-coordinate` and so on.

    PDEBench stores one time more than there are frames: the end of the last step.

    Raises `DataError` if coordinates are missing, are not evenly spaced, or do not match `shape`, which is the shape
    (N, T, *S) of the dataset called `dataset`.
    """
    axes = [f"{axis}-coordinate" for axis in AXES if f"{axis}-coordinate" in file]
    if not axes:
        raise DataError(f"{file_name}: has no dataset `x-coordinate`; add the coordinates of the grid points")
    if "t-coordinate" not in file:
        raise DataError(
            f"{file_name}: has no dataset `t-coordinate`; add the times of the frames, or set `kind: steady` if the "
            "data are steady"
        )
    if len(shape) != 2 + len(axes):
        expected = ", ".join(["N", "T", "X", "Y", "Z"][: 2 + len(axes)])
        change = "remove the others" if len(shape) < 2 + len(axes) else "add the coordinates of its other axes"
        raise DataError(
            f"{file_name}: `{dataset}` has shape {shape}, but the file has the coordinates {' and '.join(axes)}; "
            f"reshape `{dataset}` to ({expected}), or {change}"
        )
    reason = f"`{dataset}` has shape {shape}"
    lengths = [read_coordinate(file_name, file, name, "").size for name in ("t-coordinate", *axes)]
    orders = [(lengths[0] - more, *lengths[1:]) for more in (0, 1)]
    if shape[1:] not in orders and any(Counter(order) <= Counter(shape) for order in orders):
        named = ", ".join(f"{name} {length}" for name, length in zip(("t-coordinate", *axes), lengths, strict=True))
        raise DataError(
            f"{file_name}: {reason}, but the lengths of the coordinates are {named}; transpose `{dataset}` to "
            f"({', '.join(['N', 'T', 'X', 'Y', 'Z'][: len(shape)])})"
        )
    origin, spacing = read_origin_and_spacing(file_name, file, axes, shape[2:], reason)
    start, dt = read_start_and_step(file_name, file, "t-coordinate", shape[1], reason)
    return Grid(shape=shape[2:], origin=origin, spacing=spacing, start=start, dt=dt)


def read_start_and_step(file_name: str, file: Group, dataset: str, frames: int, reason: str) -> tuple[float, float]:
    """Return the first time and the time step from a dataset with `frames` times, or one more.

    Raises `DataError` as `read_origin_and_spacing` does.
    """
    times = _read_coordinate_of_length(file_name, file, dataset, (frames, frames + 1), f"or one more; {reason}")
    label, hint = f"{file_name}: `{dataset}`", "store frames at evenly spaced times"
    return _exact_line(file[dataset], start_and_step(times[:frames], label, hint))


def read_origin_and_spacing(
    file_name: str, file: Group, datasets: Sequence[str], shape: tuple[int, ...], reason: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the origin and the spacing of the grid of this `shape` from one dataset of coordinates for each axis.

    The spacing of a descending axis is negative. Raises `DataError` if a dataset is missing, is not evenly spaced or
    does not match `shape`. A message about such a mismatch contains `reason`, a text about where `shape` comes from.
    """
    lines = []
    for dataset, points in zip(datasets, shape, strict=True):
        values = _read_coordinate_of_length(file_name, file, dataset, (points,), reason)
        label, hint = f"{file_name}: `{dataset}`", "interpolate the fields to a uniform grid"
        lines.append(_exact_line(file[dataset], origin_and_spacing(values, label, hint)))
    return tuple(first for first, _ in lines), tuple(step for _, step in lines)


def _exact_line(dataset: Values, measured: tuple[float, float]) -> tuple[float, float]:
    """Return the attributes `start` and `step` of a dataset of coordinates if they agree with the `measured` numbers.

    If the dataset has attributes `start` and `step` that agree with its `values`, these attributes are returned: they
    have more digits than differences of rounded coordinates. Otherwise, `start_and_step` is called.
    """
    start, step = number_attribute(dataset.attrs, "start"), number_attribute(dataset.attrs, "step")
    tolerance = 1e-6 * abs(measured[1])
    if start is None or step is None or not np.allclose((start, step), measured, rtol=1e-6, atol=tolerance):
        return measured
    return start, step


def _check_self_contained(path: Path, file: h5py.File) -> None:
    """Raise `DataError` if a file refers to another file, or contains a name that is not UTF-8.

    HDF5 would open the other file, and h5py would return the name as bytes instead of text.
    """

    def find_fault(name: bytes, link: Any) -> str | None:
        """Return what is wrong with the link `name`, or None to continue with the next link."""
        if not _is_utf8(name):
            return f"the name {name!r:.200} is not UTF-8; write the file again with another name"
        if link.type == h5py.h5l.TYPE_SOFT:
            # A soft link leads to another name in this file.
            return None
        label = f"`{name.decode()}`"
        if link.type != h5py.h5l.TYPE_HARD:
            return f"{label} is a link to another file, {_COPY_HINT}"
        item = h5py.h5o.open(file.id, name)
        if not isinstance(item, h5py.h5d.DatasetID):
            return None
        properties = item.get_create_plist()
        if properties.get_external_count():
            return f"{label} has its values in another file, {_COPY_HINT}"
        is_virtual = properties.get_layout() == h5py.h5d.VIRTUAL
        # "." is the file itself.
        if is_virtual and any(properties.get_virtual_filename(i) != "." for i in range(properties.get_virtual_count())):
            return f"{label} is a virtual dataset of other files, {_COPY_HINT}"
        return None

    fault = file.id.links.visit(find_fault, info=True)
    if fault is not None:
        file.close()
        raise DataError(f"{path}: {fault}")


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def number_in_file_name(path: Path, name: str) -> float | None:
    """Return the number that follows `name` in a file name (0.01 for `nu` in `burgers_nu0.01.hdf5`), or None.

    The decimal point may be a `p`. Letter case is ignored unless the file name contains `name` in the same case. The
    result is None if two different numbers follow the name, or if it is unclear where the number ends.
    """
    stem = path.stem if path.suffix.lower() in _SUFFIXES else path.name
    pattern = rf"(?<![a-zA-Z]){re.escape(name)}[=_]?{_NUMBER}"
    for flags in (re.NOFLAG, re.IGNORECASE):
        numbers = {float(re.sub("p", ".", text, flags=flags)) for text in re.findall(pattern, stem, flags)}
        if numbers:
            return numbers.pop() if len(numbers) == 1 else None
    return None


def is_hdf5_error(error: BaseException) -> bool:
    """Return whether an exception comes from the operating system or h5py, which means that a file is at fault."""
    if isinstance(error, OSError):
        return True
    trace = error.__traceback__
    names = []
    while trace is not None:
        names.append(trace.tb_frame.f_code.co_filename)
        trace = trace.tb_next
    return "h5py" in names[-1]


def _error_reason(path: Path, error: Exception, hint: str) -> str:
    """Return what is wrong with a file that cannot be read and how to fix it, from the exception of h5py."""
    text = " ".join(str(error).split())
    if isinstance(error, PermissionError) or "Permission denied" in text:
        return "cannot be read by this user (permission denied); change its permissions"
    if "truncated" in text:
        return "is truncated; copy, download or generate it again"
    if path.is_file() and not h5py.is_hdf5(path):
        return file_type_and_remedy(path) or f"is not an HDF5 file; {hint}"
    return f"is damaged ({text}); copy, download or generate it again"
