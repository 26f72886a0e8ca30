"""Cases of axes and coordinates: their names, order, spacing and types."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from foreign.case import INSPECT, LAYOUT, case, validate
from foreign.fields import DT, NAMED_LINE, line_waves, plane_waves, write_description, write_tensor


@case(
    LAYOUT,
    "coordinates as integers and a descending axis",
    f"{INSPECT} rows.hdf5",
    "axis x is stored descending",
    "0.5 apart",
    "axis x      16 points from 0",
)
@case(LAYOUT, "times that descend", f"{INSPECT} backwards.hdf5", "descends", "order of their times", code=3)
@case(LAYOUT, "times as integers: the numbers of the frames", f"{INSPECT} numbered.hdf5", "time        from 10, dt 5")
def coordinates() -> None:
    waves = plane_waves()
    for name in ("rows", "backwards", "numbered"):
        write_tensor(f"{name}.hdf5", waves)
    with h5py.File("rows.hdf5", "a") as file:
        for axis, line in (("x", np.arange(15, -1, -1)), ("y", np.arange(12) / 2)):
            del file[f"{axis}-coordinate"]
            file[f"{axis}-coordinate"] = line
    for name, times in (("backwards", -DT * np.arange(8)), ("numbered", 10 + 5 * np.arange(8))):
        with h5py.File(f"{name}.hdf5", "a") as file:
            del file["t-coordinate"]
            file["t-coordinate"] = times


@case(LAYOUT, "dates (datetime64 in a NumPy archive)", f"{INSPECT} dates.yaml", "dt 3600")
@case(LAYOUT, "times that count days since a date", f"{INSPECT} days.yaml", "days since 2000-01-01", "dt 0.25")
@case(LAYOUT, "a time in single precision, far from 0", f"{INSPECT} rounded.yaml", "float64", code=3)
@case(LAYOUT, "an axis called `lon`", f"{INSPECT} lon.yaml", "an axis cannot be called 'lon'", "call it x", code=3)
@case(LAYOUT, "an axis called `batch`", f"{INSPECT} batch.yaml", "call it trajectory", code=3)
@case(LAYOUT, "coordinates as a mesh grid", f"{INSPECT} mesh.yaml", "axis x      16 points", "axis y      12 points")
@case(
    LAYOUT,
    "image order: rows are y, the channels come first",
    f"{INSPECT} image.yaml",
    "axis x      16 points",
    "axis y      12 points",
    "channel     v",
)
@case(LAYOUT, "a curvilinear grid", f"{INSPECT} curved.yaml", "(16, 12)", "uniform grid", code=3)
@case(LAYOUT, "trajectories with different times", f"{INSPECT} different.yaml", "(12, 8)", code=3)
@case(LAYOUT, "UTF-8 with a byte order mark, and names in Greek", f"{INSPECT} greek.yaml", "channel     ψ")
@case(LAYOUT, "complex numbers", f"{INSPECT} complex.yaml", "complex64", "the real and the imaginary part", code=3)
@case(LAYOUT, "integers as a field", f"{INSPECT} integers.yaml", "int64", code=3)
@case(LAYOUT, "capital letters in a suffix", f"{INSPECT} CAPITALS.YAML", "12 trajectories")
@case(
    LAYOUT,
    "Fortran order, big-endian, half precision",
    f"{INSPECT} endian.yaml",
    "16 points from 0, 0.0625 apart",
    "channel     h",
)
def descriptions() -> None:
    waves = plane_waves().astype("f4")
    x, y, times = np.arange(16) / 16, np.arange(12) / 12, DT * np.arange(8)
    grid_x, grid_y = np.meshgrid(x, y, indexing="ij")
    arrays: dict[str, Any] = {
        "u": waves,
        "image": np.stack([waves, 2 * waves], 1).swapaxes(-1, -2),
        "dates": np.datetime64("2026-01-01T00") + np.arange(8) * np.timedelta64(1, "h"),
        "rounded": (1e6 + times).astype("f4"),
        "x": x,
        "y": y,
        "grid_x": grid_x,
        "grid_y": grid_y,
        "curved_x": grid_x + 0.01 * np.sin(7 * grid_y),
        "different": times * (1 + np.arange(12)[:, None]),
        "psi": waves,
        "complex": waves * (1 + 1j),
        "integers": np.round(waves).astype(int),
        "endian": np.asfortranarray(waves.astype(">f4")),
        "half": waves.astype("f2"),
        "x_half": x.astype("f2"),
    }
    np.savez("arrays.npz", **arrays)
    with h5py.File("days.nc", "w") as file:
        file["u"], file["x"], file["y"], file["time"] = waves, x, y, 0.25 * np.arange(8)
        file["time"].attrs["units"] = "days since 2000-01-01"
    line = ("time: [0, 0.05]", "x: x", "y: y")
    for name, file_name, fields, lines, axes in (
        ("dates", "arrays.npz", "{u: u}", ("time: dates", *line[1:]), "trajectory, time, x, y"),
        ("days", "days.nc", "{u: u}", ("time: time", *line[1:]), "trajectory, time, x, y"),
        ("rounded", "arrays.npz", "{u: u}", ("time: rounded", *line[1:]), "trajectory, time, x, y"),
        ("lon", "arrays.npz", "{u: u}", ("time: [0, 0.05]", "lon: x", "y: y"), "trajectory, time, lon, y"),
        ("batch", "arrays.npz", "{u: u}", line, "batch, time, x, y"),
        ("mesh", "arrays.npz", "{u: u}", (line[0], "x: grid_x", "y: grid_y"), "trajectory, time, x, y"),
        ("image", "arrays.npz", "image", (*line, "channels: [u, v]"), "trajectory, channel, time, y, x"),
        ("curved", "arrays.npz", "{u: u}", (line[0], "x: curved_x", "y: grid_y"), "trajectory, time, x, y"),
        ("different", "arrays.npz", "{u: u}", ("time: different", *line[1:]), "trajectory, time, x, y"),
        ("greek", "arrays.npz", "{ψ: psi}", line, "trajectory, time, x, y"),
        ("complex", "arrays.npz", "{u: complex}", line, "trajectory, time, x, y"),
        ("integers", "arrays.npz", "{u: integers}", line, "trajectory, time, x, y"),
        ("endian", "arrays.npz", "{u: endian, h: half}", (line[0], "x: x_half", "y: y"), "trajectory, time, x, y"),
    ):
        write_description(f"{name}.yaml", file_name, f"fields: {fields}", *lines, axes=axes)
    Path("greek.yaml").write_text("\ufeff" + Path("greek.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    shutil.copy("arrays.npz", "ARRAYS.NPZ")
    write_description("CAPITALS.YAML", "ARRAYS.NPZ", "fields: {u: u}", *line, axes="trajectory, time, x, y")


@case(LAYOUT, "coordinates of the edges of the cells", f"{INSPECT} edges.hdf5", "33", "give 32 entries", code=3)
@case(
    LAYOUT,
    "the first point repeated at the end of a periodic axis",
    validate("closed.hdf5", "periodic: [x]"),
    "repeats the first",
    code=3,
)
@case(LAYOUT, "frames written twice by a restart", f"{INSPECT} restart.hdf5", "not evenly spaced", code=3)
@case(
    LAYOUT, "netCDF dimension without coordinates", f"{INSPECT} bare.yaml", "`x` has no values", "[start, step]", code=3
)
def lines() -> None:
    waves = line_waves()
    for name in ("edges", "restart"):
        write_tensor(f"{name}.hdf5", waves)
    write_tensor("closed.hdf5", np.concatenate([waves, waves[:, :, :1]], 2))
    with h5py.File("edges.hdf5", "a") as file:
        del file["x-coordinate"]
        file["x-coordinate"] = np.arange(33.0)
    with h5py.File("restart.hdf5", "a") as file:
        file["t-coordinate"][6:] = DT * np.arange(5, 10)
    with h5py.File("bare.nc", "w") as file:
        file["u"], file["time"], file["x"] = waves, DT * np.arange(11), np.zeros(32, "f4")
        file["x"].make_scale("This is a netCDF dimension but not a netCDF variable.        32")
    write_description("bare.yaml", "bare.nc", *NAMED_LINE)
