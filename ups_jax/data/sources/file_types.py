"""File types that are not read, recognised by their first bytes, and how to convert each."""

from __future__ import annotations

import string
import zipfile
from pathlib import Path

_TO_NPZ = "and save them with `np.savez`; then describe the arrays in a YAML file"
_DESCRIBE = "describe its arrays in a YAML file, and give that"
_TEXT = frozenset(string.printable.encode())
# First bytes of a file, what such a file is, and the remedy.
_SIGNATURES = (
    (
        b"MATLAB 5.0",
        "is a MATLAB file of version 5, which is not read",
        f"save it with `save -v7.3`, or load the arrays with scipy {_TO_NPZ}",
    ),
    (
        b"CDF",
        "is a netCDF 3 file, which is not read",
        'convert it to netCDF 4 with `nccopy -k nc4`, or with xarray: `to_netcdf(FILE, engine="h5netcdf")`',
    ),
    (b"\x93NUMPY", "is a NumPy array", _DESCRIBE),
    (
        b"\x80",
        "is a pickle, such as of PyTorch, which is not read",
        f"load the arrays with the program that wrote them {_TO_NPZ}",
    ),
    (b"\x1f\x8b", "is compressed with gzip", "decompress it with `gunzip`"),
    (b"\x28\xb5\x2f\xfd", "is compressed with Zstandard", "decompress it with `zstd -d`"),
    (
        b"GRIB",
        "is a GRIB file, which is not read",
        'convert it to netCDF 4 with xarray: `to_netcdf(FILE, engine="h5netcdf")`',
    ),
    (b"PAR1", "is a Parquet file, which is not read", f"load the arrays with pandas {_TO_NPZ}"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the data", "download the data with `git lfs pull`"),
    (b"<VTKFile", "is a single frame of VTK", "give a .pvd file that lists all frames"),
    (b"# vtk DataFile", "is a single frame of VTK", "give a .pvd file that lists all frames"),
    (b"<!DOCTYPE", "is a web page, not the data", "download the data again"),
    (b"<html", "is a web page, not the data", "download the data again"),
)


def file_type_and_remedy(path: Path) -> str:
    """Return what a file or folder is that cannot be read, and how to convert it; empty if its type is not known."""
    if path.is_dir():
        if any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zattrs")):
            return (
                "is a Zarr folder; convert it to netCDF 4 with xarray: "
                '`open_zarr(FOLDER).to_netcdf(FILE, engine="h5netcdf")`'
            )
        return "is a folder; give a file, or a folder with subfolders `train` and `test`"
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
            if any(name.endswith("data.pkl") for name in names):
                return f"is a PyTorch file, which is not read; load the tensors with `torch.load` {_TO_NPZ}"
            if any(name.endswith(".npy") for name in names):
                return (
                    f"is an .npz file of the arrays {', '.join(n.removesuffix('.npy') for n in names[:6])}; {_DESCRIBE}"
                )
            return "is a zip archive; unpack it"
        if path.stat().st_size == 0:
            return "is empty; copy, download or generate it again"
        with path.open("rb") as file:
            start = file.read(64).lstrip()
    except (OSError, zipfile.BadZipFile):
        return ""
    for signature, description, remedy in _SIGNATURES:
        if start.startswith(signature):
            return f"{description}; {remedy}"
    if start and all(byte in _TEXT for byte in start):
        return f"is a text file, not an HDF5 file; load the numbers with `numpy.loadtxt` {_TO_NPZ}"
    return ""
