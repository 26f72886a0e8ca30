"""Cases of formats: netCDF, MATLAB, NumPy, and formats that are not read."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import h5py
import numpy as np
import scipy.io

from foreign.case import INSPECT, LAYOUT, case
from foreign.fields import DT, NAMED_LINE, UNIFORM_LINE, line_waves, write_coordinates, write_description, write_tensor


@case(
    LAYOUT, "netCDF, missing points stored as `_FillValue` 1e20", f"{INSPECT} large.yaml", "NaN or Inf", "land", code=3
)
@case(
    LAYOUT, "netCDF, missing points stored as `_FillValue` -9999", f"{INSPECT} fill.yaml", "NaN or Inf", "land", code=3
)
def fill_values() -> None:
    waves = line_waves().astype("f4")
    for name, fill in (("fill", -9999), ("large", 1e20)):
        waves[:, :, 20:23] = fill
        with h5py.File(f"{name}.nc", "w") as file:
            file["u"] = waves
            file["u"].attrs["_FillValue"] = np.array([fill], "f4")
            file["time"], file["x"] = DT * np.arange(11), np.arange(32) / 32
        write_description(f"{name}.yaml", f"{name}.nc", *NAMED_LINE)


@case(
    LAYOUT,
    "netCDF, int16 with `scale_factor`, `add_offset` and an unlimited, compressed dimension; values are 273 to 277 K",
    f"{INSPECT} packed.yaml",
    "channel     u  min 27",
    check=lambda output: "" if "std 0." in output or "std 1." in output else "the deviation is not of the field",
)
def packed() -> None:
    waves = line_waves()
    with h5py.File("packed.nc", "w") as file:
        data = file.create_dataset(
            "u", waves.shape, "i2", chunks=(1, 4, 32), maxshape=(None, None, 32), compression="gzip", shuffle=True
        )
        data[:] = np.round(waves / 0.001)
        data.attrs.update(scale_factor=0.001, add_offset=275.0, _FillValue=np.int16(-32768))
        file["time"], file["x"] = DT * np.arange(11), np.arange(32) / 32
    write_description("packed.yaml", "packed.nc", *NAMED_LINE)


@case(
    LAYOUT,
    "MATLAB v7.3: axes in MATLAB's order, row and column vectors, a number (1, 1)",
    f"{INSPECT} matlab.yaml",
    "12 trajectories of 11 frames",
    "axis x      32 points",
    "nu 0.001 to 0.01",
    "MATLAB stores axes in reverse order",
)
@case(
    LAYOUT,
    "MATLAB v7.3 without a description",
    f"{INSPECT} mine.mat",
    "u (12, 11, 32)",
    "has no supported layout",
    code=3,
)
@case(LAYOUT, "MATLAB v7.3: fields of a struct", f"{INSPECT} struct.yaml", "12 trajectories of 11 frames")
def matlab() -> None:
    waves = line_waves()
    arrays = {
        "u": waves,
        "t": DT * np.arange(11)[None],
        "x": np.arange(32)[:, None] / 32,
        "nu": np.geomspace(1e-3, 1e-2, 12)[:, None],
        "rho": np.array([[1.5]]),
        "s/u": waves,
        # MATLAB keeps the elements of cell arrays in a group of this name.
        **{f"#refs#/{letter}": np.ones((1, 1)) for letter in "abcdefgh"},
    }
    with h5py.File("mine.mat", "w", userblock_size=512) as file:
        for name, values in arrays.items():
            file[name] = values.transpose()
            file[name].attrs["MATLAB_class"] = np.bytes_("double")
        file["s"].attrs["MATLAB_class"] = np.bytes_("struct")
    lines = ("time: t", "x: x", "coefficients: {nu: nu, rho: rho}")
    write_description("matlab.yaml", "mine.mat", "fields: {u: u}", *lines)
    write_description("struct.yaml", "mine.mat", "fields: {u: s/u}", *lines)


@case(
    LAYOUT, "MATLAB v5", f"{INSPECT} old.mat old.yaml", "MATLAB file of version 5", "-v7.3", code=3, lacks=("damaged",)
)
@case(LAYOUT, "netCDF 3", f"{INSPECT} old.nc nc3.yaml", "is a netCDF 3 file", "h5netcdf", code=3)
@case(LAYOUT, "NumPy archive without a description", f"{INSPECT} mine.npz", "arrays coeff, sol", "YAML", code=3)
@case(LAYOUT, "PyTorch", f"{INSPECT} mine.pt pt.yaml", "is a PyTorch file", "np.savez", code=3)
@case(LAYOUT, "pickle", f"{INSPECT} mine.pkl", "is a pickle", "np.savez", code=3)
@case(LAYOUT, "Zarr on a grid", f"{INSPECT} zarr.yaml", "is a Zarr folder", "to_netcdf", code=3)
@case(LAYOUT, "a steady set, described without a time axis", f"{INSPECT} steady.yaml", "steady", "Darcy layout", code=3)
@case(LAYOUT, "numbers as text", f"{INSPECT} mine.csv", "is a text file", "np.savez", code=3)
def other_formats() -> None:
    waves = line_waves()
    scipy.io.savemat("old.mat", {"a": waves[:, 0], "u": waves[:, -1]})
    with scipy.io.netcdf_file("old.nc", "w") as file:
        for name, size in zip(("sample", "time", "x"), waves.shape, strict=True):
            file.createDimension(name, size)
        file.createVariable("u", "f4", ("sample", "time", "x"))[:] = waves
    np.savez("mine.npz", coeff=np.ones((4, 8, 8)), sol=np.ones((4, 8, 8)))
    with zipfile.ZipFile("mine.pt", "w") as archive:
        archive.writestr("mine/data.pkl", b"\x80\x02}.")
    np.savetxt("mine.csv", waves[0], delimiter=",")
    Path("mine.pkl").write_bytes(pickle.dumps({"u": [1.0]}))
    Path("mine.zarr").mkdir()
    Path("mine.zarr", "zarr.json").write_text('{"node_type": "group", "zarr_format": 3}')
    for name, data in (("old", "old.mat"), ("nc3", "old.nc"), ("pt", "mine.pt"), ("zarr", "mine.zarr")):
        write_description(f"{name}.yaml", data, "fields: {u: u}", *UNIFORM_LINE)
    write_description(
        "steady.yaml", "mine.npz", "fields: {sol: sol}", "x: [0, 1]", "y: [0, 1]", axes="trajectory, x, y"
    )


@case(
    LAYOUT,
    "HDF5 with a compression that is not installed",
    f"{INSPECT} blosc.hdf5",
    "filter 32999",
    "hdf5plugin",
    code=3,
    lacks=("damaged",),
)
def missing_filter() -> None:
    with h5py.File("blosc.hdf5", "w") as file:
        write_coordinates(file, (4, 5, 8))
        space = h5py.h5s.create_simple((4, 5, 8))
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((1, 5, 8))
        # Optional, so that the library stores the dataset although no program has this filter.
        properties.set_filter(32999, h5py.h5z.FLAG_OPTIONAL, ())
        dataset = h5py.h5d.create(file.id, b"tensor", h5py.h5t.IEEE_F32LE, space, properties)
        for index in range(4):
            dataset.write_direct_chunk((index, 0, 0), bytes(160), 0)


@case(LAYOUT, "netCDF attributes written as text", f"{INSPECT} text.hdf5", "min 27")
@case(LAYOUT, "an empty file", f"{INSPECT} empty.hdf5", "is empty", code=3)
@case(LAYOUT, "a file that was not copied to its end", f"{INSPECT} part.hdf5", "truncated", code=3)
@case(LAYOUT, "NumPy archive with a dictionary beside the arrays", f"{INSPECT} meta.yaml", "12 trajectories")
@case(LAYOUT, "MATLAB's complex numbers", f"{INSPECT} spectral.yaml", "real and the imaginary", code=3)
def encodings() -> None:
    waves = line_waves()
    for name in ("text", "part"):
        write_tensor(f"{name}.hdf5", waves)
    with h5py.File("text.hdf5", "a") as file:
        file["tensor"].attrs.update(add_offset="275.0", scale_factor="0.1")
    Path("empty.hdf5").write_bytes(b"")
    content = Path("part.hdf5").read_bytes()
    Path("part.hdf5").write_bytes(content[: len(content) // 2])
    np.savez("meta.npz", u=waves, settings=np.array({"solver": "spectral"}, object))
    write_description("meta.yaml", "meta.npz", "fields: {u: u}", *UNIFORM_LINE)
    with h5py.File("spectral.mat", "w") as file:
        file["u"] = np.zeros(waves.shape[::-1], [("real", "f8"), ("imag", "f8")])
        file["u"].attrs["MATLAB_class"] = np.bytes_("double")
    write_description("spectral.yaml", "spectral.mat", "fields: {u: u}", *UNIFORM_LINE)
