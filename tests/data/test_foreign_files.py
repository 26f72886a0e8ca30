"""Files as xarray, MATLAB and other programs write them give the values that these programs show, or say what to do."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray
from hypothesis import given
from hypothesis import strategies as st
from travelling_waves import DT, SPACING, waves
from written_layouts import N, T, random, write_cfd, write_incompressible, write_seeds, write_well

from ups_jax.config import yaml
from ups_jax.core.errors import DataError
from ups_jax.data import open_dataset
from ups_jax.data.inspection import describe, inspect
from ups_jax.data.shards.writer import ShardSizes, convert_to_shards
from ups_jax.data.sources import ConcatenatedSource, open_file
from ups_jax.data.sources.base import read_trajectories
from ups_jax.data.sources.hdf5 import is_coefficient_name, number_in_file_name

DESCRIPTION = "fields: {u: u}\naxes: [trajectory, time, x]\n"


def everything(path: Path, kind: str = "transient", channels: tuple[str, ...] | None = None) -> np.ndarray:
    source = pickle.loads(pickle.dumps(open_file(path, kind, channels)))
    return read_trajectories(source, np.arange(source.trajectories))


def described(tmp_path: Path, file: str, rest: str = "time: time\nx: x\n", name: str = "mine.yaml") -> Path:
    path = tmp_path / name
    path.write_text(f"file: {file}\n{DESCRIPTION}{rest}")
    return path


ENCODINGS = {
    "fill value": {"_FillValue": np.float32(-9999)},
    "large fill value": {"_FillValue": np.float32(1e20)},
    "missing value": {"missing_value": np.float32(-1e30)},
    "packed": {"dtype": "int16", "scale_factor": 0.01, "add_offset": 5.0, "_FillValue": -32768},
    "unsigned": {"dtype": "uint8", "scale_factor": 0.05, "add_offset": -4.0, "_FillValue": 255, "_Unsigned": "true"},
    "float64": {"dtype": "float64", "scale_factor": 3.0},
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encoded_values_of_netcdf_are_those_that_xarray_shows(tmp_path: Path, encoding: str) -> None:
    fields = random(N, T, 8)
    fields[:, :, 5:7] = np.nan
    settings = dict(ENCODINGS[encoding])
    unsigned = settings.pop("_Unsigned", None)
    if unsigned:
        settings |= {"dtype": "int8", "_FillValue": -1, "_Unsigned": unsigned}
    data = xarray.Dataset(
        {"u": (("sample", "time", "x"), fields)}, coords={"time": np.arange(T) * 0.5, "x": np.arange(8)}
    )
    data.to_netcdf(tmp_path / "mine.nc", engine="h5netcdf", encoding={"u": settings})
    with xarray.open_dataset(tmp_path / "mine.nc", engine="h5netcdf") as shown:
        expected = shown["u"].to_numpy().astype(np.float32)
    values = everything(described(tmp_path, "mine.nc"))[..., 0]
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-6)
    if "FillValue" in str(settings) or "missing_value" in settings:
        assert np.isnan(values[:, :, 5:7]).all() and np.isfinite(values[:, :, :5]).all()


def test_fill_values_are_missing_values_in_every_hdf5_layout(tmp_path: Path) -> None:
    path = tmp_path / "flow.hdf5"
    velocity = random(N, T, 8)
    velocity[1, 2, 3] = -9999
    write_cfd(path, 1, Vx=velocity)
    with h5py.File(path, "a") as file:
        file["Vx"].attrs["_FillValue"] = np.float32([-9999])
    values = everything(path)[..., 2]
    assert np.isnan(values[1, 2, 3]) and np.isnan(values).sum() == 1
    inspection = inspect(path)
    assert not inspection.is_usable and inspection.channels[2].minimum > -100


def test_what_netcdf_never_wrote_is_missing(tmp_path: Path) -> None:
    fill = np.float32(9.969209968386869e36)
    with h5py.File(tmp_path / "flow.hdf5", "w") as file:
        file.create_dataset("tensor", (N, T, 8), "f4", fillvalue=fill)
        file["tensor"][:2] = 1.0
        file["tensor"].attrs["long_name"] = "u"
        file["x-coordinate"], file["t-coordinate"] = np.arange(8.0), np.arange(float(T))
    values = everything(tmp_path / "flow.hdf5")
    assert np.isnan(values[2:]).all() and (values[:2] == 1).all()


def write_matlab(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays as MATLAB's `save -v7.3` does: axes in reverse order, everything with at least two axes."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in arrays.items():
            file[name] = np.atleast_2d(values).transpose()
            file[name].attrs["MATLAB_class"] = np.bytes_("double")


def test_axes_of_matlab_files_are_in_the_order_of_matlab(tmp_path: Path) -> None:
    fields = random(N, T, 8).astype(np.float64)
    nu = np.linspace(0.1, 0.4, N)
    write_matlab(tmp_path / "mine.mat", u=fields, t=0.5 * np.arange(T), x=np.arange(8.0), nu=nu, rho=np.float64(2.0))
    path = described(tmp_path, "mine.mat", "time: t\nx: x\ncoefficients: {nu: nu, rho: rho}\n")
    source = open_file(path, "transient", None)
    np.testing.assert_array_equal(everything(path)[..., 0], fields.astype(np.float32))
    windows = source.read(np.array([2, 0]), np.array([[1, 3], [0, 2]]))[..., 0]
    np.testing.assert_array_equal(windows, fields[[[2], [0]], [[1, 3], [0, 2]]].astype(np.float32))
    np.testing.assert_array_equal(source.coefficient("nu"), nu)
    np.testing.assert_array_equal(source.coefficient("rho"), np.full(N, 2.0))
    assert len(source.notes) == 1 and "MATLAB" in source.notes[0] and str((N, T, 8)) in source.notes[0]
    assert sum(line.startswith("note ") for line in describe(inspect(path))) == 1


def test_descending_axes_are_flipped_with_their_fields_and_named(tmp_path: Path, write, configure) -> None:
    fields = np.random.default_rng(0).normal(size=(12, 6, 8, 10)).astype(np.float32)
    rising = write(fields, "rising.hdf5")
    falling = write(
        fields[:, :, ::-1], "falling.hdf5", x__coordinate=(-1 + SPACING * np.arange(8)[::-1]).astype(np.float32)
    )
    first, second = (open_file(path, "transient", None) for path in (rising, falling))
    np.testing.assert_array_equal(everything(rising), everything(falling))
    assert second.grid.shape == first.grid.shape
    np.testing.assert_allclose(second.grid.origin, first.grid.origin, rtol=1e-6)
    np.testing.assert_allclose(second.grid.spacing, first.grid.spacing, rtol=1e-6)
    assert first.notes == () and len(second.notes) == 1 and "axis x is stored descending" in second.notes[0]
    # Both kinds of files are one task, and the note is said when training starts.
    other = write(np.random.default_rng(1).normal(size=(12, 6, 8, 10)), "other.hdf5")
    dataset = open_dataset(configure(path=[str(other), str(falling)]))
    assert [note for note in dataset.notes if "descending" in note] == list(second.notes)


def test_descending_axes_of_steady_and_described_data(tmp_path: Path) -> None:
    solution, permeability = random(N, 1, 8, 6), random(N, 8, 6, seed=1)
    with h5py.File(tmp_path / "darcy.hdf5", "w") as file:
        file["tensor"], file["nu"] = solution, permeability
        file["x-coordinate"], file["y-coordinate"] = np.arange(8.0), np.arange(6.0)[::-1]
    source = open_file(tmp_path / "darcy.hdf5", "steady", None)
    np.testing.assert_array_equal(source.read_input_fields(np.arange(N))[..., 0], permeability[..., ::-1])
    np.testing.assert_array_equal(everything(tmp_path / "darcy.hdf5", "steady")[..., 0], solution[..., ::-1])
    fields = random(N, T, 8)
    np.savez(tmp_path / "mine.npz", u=fields)
    path = described(tmp_path, "mine.npz", "time: [0, 1]\nx: [7, -1]\n")
    np.testing.assert_array_equal(everything(path)[..., 0], fields[:, :, ::-1])
    assert open_file(path, "transient", None).grid.origin == (0.0,)


def test_seed_groups_with_a_descending_axis_are_still_split_as_seed_groups(tmp_path: Path, configure) -> None:
    keys = tuple(f"{index:04d}" for index in range(10))
    write_seeds(tmp_path / "rising.h5", 1, 1, keys)
    write_seeds(tmp_path / "falling.h5", 1, 1, keys)
    with h5py.File(tmp_path / "falling.h5", "a") as file:
        for key in keys:
            file[f"{key}/grid/x"][...] = file[f"{key}/grid/x"][()][::-1]
    tests = [
        open_dataset(configure(path=str(tmp_path / name), data={"split": {"method": "pdebench"}})).splits.test.tolist()
        for name in ("rising.h5", "falling.h5")
    ]
    assert tests[0] == tests[1] and 9 in tests[0]


@pytest.mark.parametrize("kind", ["integers", "dates", "rows"])
def test_coordinates_of_any_type_are_numbers(tmp_path: Path, kind: str) -> None:
    times = {
        "integers": 3 * np.arange(T),
        "dates": np.datetime64("2026-12-01") + np.arange(T) * np.timedelta64(3, "s"),
        "rows": np.tile(3.0 * np.arange(T), (N, 1)),
    }[kind]
    np.savez(tmp_path / "mine.npz", u=random(N, T, 8), time=times, x=np.arange(8))
    source = open_file(described(tmp_path, "mine.npz"), "transient", None)
    assert (source.grid.start, source.grid.dt, source.grid.spacing) == (0.0, 3.0, (1.0,))
    if kind == "rows":
        times[1] *= 2
        np.savez(tmp_path / "mine.npz", u=random(N, T, 8), time=times, x=np.arange(8))
        with pytest.raises(DataError, match="`time` differs between trajectories"):
            open_file(described(tmp_path, "mine.npz"), "transient", None)


def test_integer_coordinates_in_a_layout_of_pdebench(write) -> None:
    fields, _ = waves()
    source = open_file(write(fields, x__coordinate=2 * np.arange(32)), "transient", None)
    assert (source.grid.origin, source.grid.spacing) == ((0.0,), (2.0,))


def test_the_unit_of_encoded_times_is_said(tmp_path: Path) -> None:
    dates = np.datetime64("2026-12-01") + np.arange(T) * np.timedelta64(6, "h")
    data = xarray.Dataset({"u": (("sample", "time", "x"), random(N, T, 8))}, coords={"time": dates, "x": np.arange(8)})
    data.to_netcdf(tmp_path / "mine.nc", engine="h5netcdf")
    source = open_file(described(tmp_path, "mine.nc"), "transient", None)
    with h5py.File(tmp_path / "mine.nc", "r", locking=False) as file:
        assert source.grid.dt == float(file["time"][1] - file["time"][0])
    assert len(source.notes) == 1 and "hours since 2026-12-01" in source.notes[0]


def test_channels_whose_names_differ_in_case_are_told_apart(tmp_path: Path) -> None:
    path, fields = tmp_path / "flow.hdf5", random(N, T, 8)
    write_cfd(path, 1, density=None, pressure=None, Vx=None, U=100 * fields, u=fields, P=3 * fields)
    np.testing.assert_array_equal(everything(path, channels=("U", "u")), np.stack([100 * fields, fields], -1))
    np.testing.assert_array_equal(everything(path, channels=("u",))[..., 0], fields)
    np.testing.assert_array_equal(everything(path, channels=("p",))[..., 0], 3 * fields)
    write_cfd(path, 1, density=None, pressure=None, Vx=None, Ux=fields, uX=fields)
    with pytest.raises(DataError, match="'Ux' and 'uX', but no 'ux'"):
        open_file(path, "transient", ("ux",))
    with pytest.raises(DataError, match="repeats"):
        open_file(path, "transient", ("Ux", "Ux"))


@pytest.mark.parametrize("kind", ["tensor", "described", "memory", "shards", "seeds"])
def test_coefficients_whose_names_differ_in_case_are_told_apart(tmp_path: Path, write, configure, kind: str) -> None:
    fields, beta = waves()
    large, small = beta, 100 * beta
    path = write(fields, parameters_K=large, parameters_k=small)
    if kind == "described":
        np.savez(tmp_path / "mine.npz", u=fields, K=large, k=small)
        path = described(tmp_path, "mine.npz", f"time: [0, {DT}]\nx: [0, 1]\ncoefficients: {{K: K, k: k}}\n")
    if kind == "shards":
        convert_to_shards(path, tmp_path / "shards", ShardSizes())
        path = tmp_path / "shards"
    if kind == "seeds":
        path = tmp_path / "groups.h5"
        write_seeds(path, 1, 1, tuple(f"{index:04d}" for index in range(len(beta))))
        with h5py.File(path, "a") as file:
            for index, key in enumerate(sorted(file)[: len(beta)]):
                file[key].attrs["config"] = f"K: {float(large[index])!r}\nk: {float(small[index])!r}\n"
    source = open_file(path, "transient", None)
    if kind == "memory":
        dataset = open_dataset(configure(path=str(path), coefficients={"K": "linear"}))
        np.testing.assert_allclose(dataset.conditions[:, 0], large, rtol=1e-6)
        assert any("coefficient k that the model does not receive" in note for note in dataset.notes)
        source = dataset.source
    np.testing.assert_array_equal(source.coefficient("K"), large)
    np.testing.assert_array_equal(source.coefficient("k"), small)
    assert set(source.coefficient_names()) == {"K", "k"}


@pytest.mark.parametrize("name", ["t", "time", "seed", "SEED", "id", "sample_id", "sim_index", "dt", "x", "nx"])
def test_numbers_that_count_or_place_are_no_coefficients(write, configure, name: str) -> None:
    fields, beta = waves()
    source = open_file(write(fields, **{name: beta}), "transient", None)
    assert source.coefficient_names() == () and not is_coefficient_name(name)
    # A configuration that declares the name reads it nevertheless.
    dataset = open_dataset(configure(path=source.name, coefficients={name: "linear"}))
    np.testing.assert_allclose(dataset.conditions[:, 0], beta, rtol=1e-6)


@pytest.mark.parametrize("name", ["nu", "T", "refractive_index", "reynolds_number", "cooling_time", "Re", "M", "n"])
def test_names_of_coefficients(name: str) -> None:
    assert is_coefficient_name(name)


@pytest.mark.parametrize("kind", ["pdebench", "parameters", "described"])
def test_a_coefficient_is_a_column_or_one_number(tmp_path: Path, write, kind: str) -> None:
    fields, beta = waves()
    if kind == "described":
        np.savez(tmp_path / "mine.npz", u=fields, nu=beta[:, None], rho=np.array([[1.5]]))
        path = described(tmp_path, "mine.npz", "time: [0, 1]\nx: [0, 1]\ncoefficients: {nu: nu, rho: rho}\n")
    else:
        prefix = "parameters_" * (kind == "parameters")
        path = write(fields, **{f"{prefix}nu": beta[:, None], f"{prefix}rho": 1.5})
    source = open_file(path, "transient", None)
    np.testing.assert_array_equal(source.coefficient("nu"), beta)
    np.testing.assert_array_equal(source.coefficient("rho"), np.full(len(beta), 1.5))


def test_a_declared_coefficient_of_another_shape_is_refused_with_its_shape(write, configure) -> None:
    fields, _ = waves()
    path = write(fields, nu=np.ones((12, 3)))
    assert open_file(path, "transient", None).coefficient_names() == ()
    with pytest.raises(DataError, match=r"nu.*\(12, 3\).*\(12,\)"):
        open_dataset(configure(path=str(path), coefficients={"nu": "linear"}))


def test_constant_fields_are_named_as_left_out(tmp_path: Path, write, configure) -> None:
    fields, _ = waves()
    write_well(tmp_path / "well.hdf5")
    write_incompressible(tmp_path / "incompressible.h5")
    plane = np.random.default_rng(0).normal(size=(12, 4, 6, 8)).astype(np.float32)
    paths = {
        "mask": tmp_path / "well.hdf5",
        "force": tmp_path / "incompressible.h5",
        "speed": write(fields, "line.hdf5", speed=np.ones((12, 32))),
        "depth": write(plane, "plane.hdf5", depth=np.ones((6, 8))),
    }
    for field, path in paths.items():
        notes = open_file(path, "transient", None).notes
        assert len(notes) == 1 and f"`{field}` does not change in time and is left out" in notes[0], field
        assert any(f"`{field}`" in line for line in describe(inspect(path)) if line.startswith("note "))
    dataset = open_dataset(configure(path=str(paths["speed"])))
    assert any("`speed`" in note for note in dataset.notes)
    # Shards say it too, and many files say it once.
    convert_to_shards(paths["speed"], tmp_path / "shards", ShardSizes())
    assert "`speed`" in open_file(tmp_path / "shards", "transient", None).notes[0]
    source = open_file(paths["speed"], "transient", None)
    notes = ConcatenatedSource((source, source, source)).notes
    assert len(notes) == 1 and f"{paths['speed']} and 2 more files: " in notes[0]


def test_a_missing_filter_is_named_and_not_called_damage(tmp_path: Path) -> None:
    path = tmp_path / "zstd.hdf5"
    with h5py.File(path, "w") as file:
        file["x-coordinate"], file["t-coordinate"] = np.arange(8.0), np.arange(float(T))
        space = h5py.h5s.create_simple((N, T, 8))
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((1, T, 8))
        # A filter that no program has; written as optional, so that the library stores the dataset.
        properties.set_filter(32999, h5py.h5z.FLAG_OPTIONAL, ())
        dataset = h5py.h5d.create(file.id, b"tensor", h5py.h5t.IEEE_F32LE, space, properties)
        for index in range(N):
            # Filter mask 0: the chunk is marked as compressed.
            dataset.write_direct_chunk((index, 0, 0), bytes(4 * T * 8), 0)
    source = open_file(path, "transient", None)
    with pytest.raises(DataError, match=r"`tensor`.*filter 32999.*hdf5plugin") as error:
        read_trajectories(source, np.arange(N))
    assert "damaged" not in str(error.value) and "\n" not in str(error.value)


def torch_file(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02.")


FORMATS = {
    "a.mat": (lambda path: path.write_bytes(b"MATLAB 5.0 MAT-file, Platform: posix" + bytes(200)), "v7.3.*np.savez"),
    "a.nc": (lambda path: path.write_bytes(b"CDF\x01" + bytes(200)), "netCDF 3.*h5netcdf"),
    "a.pt": (torch_file, "PyTorch.*np.savez"),
    "old.pt": (lambda path: path.write_bytes(pickle.dumps({"u": 1})), "pickle.*np.savez"),
    "a.npz": (lambda path: np.savez(path, u=np.ones(3), v=np.ones(3)), "arrays u, v.*YAML"),
    "a.npy": (lambda path: np.save(path, np.ones(3)), "NumPy.*YAML"),
    "a.hdf5": (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "b.hdf5": (lambda path: path.write_bytes(b"<!DOCTYPE html><html>"), "web page"),
    "a.hdf5.gz": (lambda path: path.write_bytes(b"\x1f\x8b" + bytes(100)), "gunzip"),
    "text.hdf5": (lambda path: path.write_bytes(b"a,b\n1,2\n"), "not an HDF5 file"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_that_is_not_read_is_named_with_its_remedy(tmp_path: Path, name: str) -> None:
    write_file, message = FORMATS[name]
    write_file(tmp_path / name)
    paths = [tmp_path / name]
    if name not in ("a.npz", "a.npy"):
        paths.append(described(tmp_path, name))
    for path in paths:
        with pytest.raises(DataError, match=message) as error:
            open_file(path, "transient", None)
        assert name in str(error.value) and "\n" not in str(error.value)


def test_arrays_of_different_lengths_are_named(tmp_path: Path) -> None:
    ragged = np.empty(2, object)
    ragged[:] = [np.ones((3, 4)), np.ones((5, 4))]
    np.save(tmp_path / "ragged.npy", ragged, allow_pickle=True)
    with pytest.raises(DataError, match="different lengths"):
        open_file(described(tmp_path, "ragged.npy"), "transient", None)


@given(
    st.recursive(
        st.text() | st.floats(allow_nan=False) | st.integers() | st.booleans() | st.none(),
        lambda item: st.lists(item, max_size=3) | st.dictionaries(st.text(), item, max_size=3),
        max_leaves=6,
    )
)
def test_any_value_comes_back_from_its_yaml_text(value: object) -> None:
    for flow in (False, None, True):
        assert yaml.parse(yaml.dump({"key": value}, flow=flow)) == {"key": value}


@pytest.mark.parametrize("name", ["1e-3", "1e5", "0x10", "on", "null", "2026-12-01", "1_000", "~", ".5", "1:30", "yes"])
def test_names_that_look_like_other_types_are_strings(name: str) -> None:
    assert yaml.parse(yaml.dump({"name": name})) == {"name": name}


def test_a_mesh_grid_of_coordinates_is_read_and_a_curvilinear_grid_is_not(tmp_path: Path) -> None:
    fields, x, y = random(N, T, 8, 6), 1 + 0.5 * np.arange(8), 0.25 * np.arange(6)
    grid_x, grid_y = np.meshgrid(x, y, indexing="ij")
    arrays = {"x": grid_x, "y": grid_y, "curved": grid_x + 0.1 * grid_y, "x3": grid_x[None, :, :, None]}
    np.savez(tmp_path / "mine.npz", u=fields, **arrays)
    axes = DESCRIPTION.replace("x]", "x, y]")
    for name, lines in (("a", "x: x"), ("b", "x: x3"), ("c", "x: curved")):
        (tmp_path / f"{name}.yaml").write_text(f"file: mine.npz\n{axes}time: [0, 1]\n{lines}\ny: y\n")
    for name in "ab":
        grid = open_file(tmp_path / f"{name}.yaml", "transient").grid
        assert (grid.origin, grid.spacing) == ((1.0, 0.0), (0.5, 0.25))
    with pytest.raises(DataError, match=r"`curved`.*several axes"):
        open_file(tmp_path / "c.yaml", "transient")


def test_coordinates_whose_rounding_hides_their_step_are_refused(tmp_path: Path) -> None:
    exact = 0.05 * np.arange(21)
    arrays = {"near": (100 + exact).astype("f4"), "far": (1e6 + exact).astype("f4"), "double": 1e6 + exact}
    np.savez(tmp_path / "mine.npz", u=random(N, 21, 8), **arrays)
    for name in ("near", "double"):
        source = open_file(described(tmp_path, "mine.npz", f"time: {name}\nx: [0, 1]\n"), "transient")
        assert source.grid.dt == pytest.approx(0.05, rel=1e-3)
    with pytest.raises(DataError, match=r"`far`.*float64"):
        open_file(described(tmp_path, "mine.npz", "time: far\nx: [0, 1]\n"), "transient")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nu0.01-0.1", None),
        ("nu0.01.2", None),
        ("nu0_01", None),
        ("nu1_e-3", None),
        ("nu0.01-train", 0.01),
        ("nu=1e-2", 0.01),
        ("nu_1E-02_v2", 0.01),
    ],
)
def test_a_number_in_a_file_name_is_not_the_start_of_a_range(tmp_path: Path, name: str, value: float | None) -> None:
    assert number_in_file_name(tmp_path / f"{name}.hdf5", "nu") == value


def test_a_root_attribute_with_one_number_for_each_trajectory_is_a_coefficient(write) -> None:
    path = write(waves(trajectories=6)[0])
    with h5py.File(path, "a") as file:
        file.attrs["mu"], file.attrs["extent"] = np.arange(6.0), np.arange(4.0)
    source = open_file(path, "transient")
    assert source.coefficient("mu").tolist() == list(range(6)) and "extent" not in source.coefficient_names()


def test_attributes_of_netcdf_may_be_text(write) -> None:
    path = write(waves(trajectories=3)[0])
    before = everything(path)
    with h5py.File(path, "a") as file:
        file["tensor"].attrs.update(scale_factor="0.5", add_offset=b"2")
    np.testing.assert_allclose(everything(path), 0.5 * before + 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "remedy"),
    [("c8", "real and the imaginary"), (np.dtype([("real", "f4"), ("imag", "f4")]), "imaginary"), ("i4", "as float32")],
)
def test_values_that_are_no_real_numbers_are_refused_without_losing_a_part(tmp_path: Path, dtype, remedy: str) -> None:
    with h5py.File(tmp_path / "mine.hdf5", "w") as file:
        file["u"] = np.zeros((N, T, 8), dtype)
    with pytest.raises(DataError, match=remedy):
        open_file(described(tmp_path, "mine.hdf5", "time: [0, 1]\nx: [0, 1]\n"), "transient")


def test_objects_in_an_archive_are_refused_only_if_they_are_used(tmp_path: Path) -> None:
    fields = random(N, T, 8)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "mine.npz", settings=np.array({"a": 1}, object), u=fields)
        path = described(tmp_path, "mine.npz", "time: [0, 1]\nx: [0, 1]\n")
        assert np.array_equal(everything(path)[..., 0], fields)
        with pytest.raises(DataError, match="`settings` contains Python objects"):
            open_file(described(tmp_path, "mine.npz", "time: settings\nx: [0, 1]\n"), "transient")


def test_vectors_and_masks_that_do_not_change_in_time_are_no_channels(tmp_path: Path) -> None:
    path = tmp_path / "flow.hdf5"
    fields = write_cfd(path, 2)
    space = fields["Vx"].shape[2:]
    with h5py.File(path, "a") as file:
        file["mask"], file["force"] = np.ones((N, *space), "f4"), np.ones((N, *space, 2), "f4")
    source = open_file(path, "transient")
    assert set(source.channel_names) == set(fields)
    assert "`force`" in source.notes[0] and "`mask`" in source.notes[0]


def test_a_file_without_trajectories_and_one_dataset_for_each_are_refused_with_a_remedy(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "none.hdf5", "w") as file:
        file["tensor"] = np.zeros((0, T, 8), "f4")
        file["x-coordinate"], file["t-coordinate"] = np.arange(8.0), np.arange(float(T))
    with pytest.raises(DataError, match="no trajectories"):
        open_file(tmp_path / "none.hdf5", "transient")
    with h5py.File(tmp_path / "each.hdf5", "w") as file:
        for index in range(3):
            file[f"runs/run_{index}"] = np.ones((T, 8))
    with pytest.raises(DataError, match=r"np\.stack"):
        open_file(tmp_path / "each.hdf5", "transient")


def test_arrays_in_another_order_are_recognised_by_the_lengths_of_the_coordinates(write) -> None:
    fields = random(7, T, 8)
    for order in ((1, 0, 2), (0, 2, 1), (2, 1, 0)):
        transposed = fields.transpose(order)
        coordinates = {"t__coordinate": np.arange(float(T)), "x__coordinate": np.arange(8.0)}
        with pytest.raises(DataError, match=r"transpose `tensor` to \(N, T, X\)"):
            open_file(write(transposed, f"{order}.hdf5", **coordinates), "transient")


@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e30])
def test_fields_too_small_for_float32_are_refused(write, configure, unit: float) -> None:
    fields = waves(trajectories=6)[0].astype(np.float64)
    assert open_dataset(configure(path=str(write(unit * fields)))).task.statistics.std[0] > 0
    with h5py.File(write(fields), "a") as file:
        del file["tensor"]
        file["tensor"] = 1e-42 * fields
        path = file.filename
    with pytest.raises(DataError, match="few digits"):
        open_dataset(configure(path=path))
