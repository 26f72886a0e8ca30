"""Solved trajectories as an HDF5 file in PDEBench's tensor layout: written atomically, and recognised again."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Float

from ups_jax.errors import DataError, StorageError
from ups_jax.simulate.presets import Preset

# To be raised by whoever changes a number that the solvers write.
VERSION = "1"
CHECKED = ("task", "preset", "generator_version", "seed", "trajectories")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a file comes from; two files of the same origin hold the same bytes."""

    task: str
    preset: str
    seed: int
    trajectories: int

    @property
    def command(self) -> str:
        """The command line that writes this file again, without its folder."""
        return f"python scripts/generate_data.py --task {self.task} --preset {self.preset} --seed {self.seed}"


def write(
    path: Path,
    origin: Origin,
    preset: Preset,
    fields: Float[np.ndarray, "n t x"],
    coefficients: Float[np.ndarray, " n"],
) -> None:
    """Write under the final name only what is whole and on the disk. Raises `StorageError`."""
    content = _encode(origin, preset, fields, coefficients)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another folder (data.root, --out)"
        ) from None


def check(path: Path, origin: Origin, what: Sequence[str] = CHECKED) -> None:
    """Refuse a file of another origin or version in `what`. Raises `DataError` with the command that replaces it."""
    mend = f"replace it: {origin.command} --out {path.parent} --overwrite"
    expected = {
        "task": origin.task,
        "preset": origin.preset,
        "seed": origin.seed,
        "generator_version": VERSION,
        "trajectories": origin.trajectories,
    }
    try:
        with h5py.File(path, "r", locking=False) as file:
            found = {name: file.attrs.get(name) for name in expected if name != "trajectories"}
            found["trajectories"] = len(file["tensor"])
    except (OSError, KeyError) as error:
        raise DataError(f"{path}: is damaged or no data file of this generator ({error}); {mend}") from None
    for name in what:
        if found[name] != expected[name]:
            raise DataError(f"{path}: has {name} {found[name]}, not {expected[name]}; {mend}")


def _encode(
    origin: Origin,
    preset: Preset,
    fields: Float[np.ndarray, "n t x"],
    coefficients: Float[np.ndarray, " n"],
) -> bytes:
    # HDF5 answers a full disk in many ways, plain bytes in one.
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["tensor"] = np.ascontiguousarray(fields, np.float32)
        file["x-coordinate"] = preset.origin + np.arange(preset.points) * (preset.extent / preset.points)
        # PDEBench stores one time more than there are frames.
        file["t-coordinate"] = np.arange(preset.steps + 2) * preset.dt
        file[f"parameters/{preset.coefficient}"] = np.asarray(coefficients, np.float32)
        file.attrs["task"] = origin.task
        file.attrs["preset"] = origin.preset
        file.attrs["seed"] = origin.seed
        file.attrs["generator_version"] = VERSION
        file.attrs["boundary"] = "periodic"
    return buffer.getvalue()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
