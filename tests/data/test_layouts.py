"""Each true layout, written bit by bit, is read back exactly: arrays, times, coordinates and parameters."""

from __future__ import annotations

import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
from written_layouts import CFD, SIZES, N, T, centres, random, write_cfd, write_incompressible, write_seeds, write_well

from ups_jax.core.errors import DataError
from ups_jax.data import open_dataset
from ups_jax.data.sources import SeedsSource, Source, detect_layout, open_file
from ups_jax.data.sources.base import read_trajectories
from ups_jax.data.sources.pdebench_cfd import CFDSource
from ups_jax.data.sources.pdebench_incompressible import IncompressibleSource, parse_numbers
from ups_jax.data.sources.well import WellSource


def everything(source: Source) -> np.ndarray:
    """All frames, read after a trip through pickle, and the same as what windows with a stride hold."""
    copy = pickle.loads(pickle.dumps(source))
    whole = read_trajectories(copy, np.arange(source.trajectories))
    frames = np.array([[0, 2], [1, 3]])
    np.testing.assert_array_equal(copy.read(np.array([1, 0]), frames), whole[np.array([1, 0])[:, None], frames])
    assert whole.dtype == np.float32 and copy.read_input_fields(np.array([0])).shape[-1] == 0
    return whole


def check_lines(source: Source, origins: list[float], steps: list[float], start: float, dt: float) -> None:
    """Grid and times, to the rounding of float32 coordinates."""
    np.testing.assert_allclose(source.grid.origin, origins, rtol=1e-6)
    np.testing.assert_allclose(source.grid.spacing, steps, rtol=1e-6)
    assert (source.grid.start, source.grid.dt) == (start, pytest.approx(dt))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_compressible_flow(tmp_path: Path, dims: int) -> None:
    path = tmp_path / f"{dims}D_CFD_Rand_M0.1_Eta1.e-8_Zeta1e-08_periodic_Train.hdf5"
    written = write_cfd(path, dims)
    assert detect_layout(path).name == "pdebench cfd"
    source = CFDSource(path)
    assert source.channel_names == CFD[: 2 + dims]
    np.testing.assert_array_equal(everything(source), np.stack(list(written.values()), -1))
    assert (source.trajectories, source.frames, source.grid.shape) == (N, T, SIZES[:dims])
    steps = [2 / size for size in SIZES[:dims]]
    check_lines(source, [-1 + step / 2 for step in steps], steps, 0.0, 0.05)
    for name, value in (("eta", 1e-8), ("zeta", 1e-8), ("M", 0.1)):
        np.testing.assert_array_equal(source.coefficient(name), np.full(N, value))
    assert set(source.coefficient_names()) == {"eta", "zeta", "M"}


def test_channels_are_chosen_by_name_in_the_order_of_the_configuration(tmp_path: Path, configure) -> None:
    path = tmp_path / "flow.hdf5"
    written = write_cfd(path, 1)
    dataset = open_dataset(configure(path=str(path), channels=["Vx", "density"]))
    assert dataset.task.channels == ("Vx", "density")
    np.testing.assert_array_equal(
        read_trajectories(dataset.source, np.arange(N)), np.stack([written["Vx"], written["density"]], -1)
    )
    with pytest.raises(DataError, match=r"'presure'.*'pressure'.*density, pressure, Vx"):
        open_dataset(configure(path=str(path), channels=["presure"]))


@pytest.mark.parametrize(("dims", "channels"), [(1, 1), (2, 1), (2, 2)])
def test_seed_groups(tmp_path: Path, dims: int, channels: int) -> None:
    path = tmp_path / "2D_diff-react_NA_NA.h5"
    fields = write_seeds(path, dims, channels)
    assert detect_layout(path).name == "pdebench seeds"
    source = SeedsSource(path)
    np.testing.assert_array_equal(everything(source), fields)
    assert (source.trajectories, source.frames, source.channels) == (3, T, channels)
    steps = [5 / size for size in SIZES[:dims]]
    check_lines(source, [-2.5 + step / 2 for step in steps], steps, 0.0, 0.01)
    # Of two keys of one name each keeps its path.
    np.testing.assert_array_equal(source.coefficient("sim.k"), [0.5, 1.5, 2.5])
    np.testing.assert_array_equal(source.coefficient("D"), np.full(3, 5e-4))
    np.testing.assert_array_equal(source.coefficient("Du"), np.full(3, 1e-3))
    assert source.coefficient("solver") is None and source.coefficient_names() == ("sim.k",)
    assert source.constants() == {"D": 5e-4, "Du": 1e-3, "plot.k": 7.0}


@pytest.mark.parametrize("said", ["h, u", "h"])
def test_channels_of_seed_groups_have_names_where_the_file_gives_them(tmp_path: Path, said: str) -> None:
    path = tmp_path / "basin.h5"
    fields = write_seeds(path, 2, 2)
    with h5py.File(path, "a") as file:
        file.attrs["channels"] = said
    if said == "h":
        with pytest.raises(DataError, match=r"`channels`.*1.*`data`.*2"):
            SeedsSource(path)
    else:
        np.testing.assert_array_equal(everything(open_file(path, "transient", ("u",))), fields[..., 1:])
        assert SeedsSource(path).channel_names == ("h", "u")


@pytest.mark.parametrize(("latest", "whole", "frames"), [(T - 1, T, T), (2, T, 3), (T, 3, 3), (None, 4, 4)])
def test_incompressible_flow_up_to_its_last_whole_frame(
    tmp_path: Path, latest: int | None, whole: int, frames: int
) -> None:
    path = tmp_path / "ns_incom_inhom_2d_512-0.h5"
    written = write_incompressible(path, latest, whole)
    assert detect_layout(path).name == "pdebench incompressible"
    source = IncompressibleSource(path)
    assert source.channel_names == ("Vx", "Vy", "particles") and source.frames == frames
    expected = np.concatenate([written["velocity"], written["particles"]], -1)
    np.testing.assert_array_equal(read_trajectories(source, np.arange(N)), expected[:, :frames])
    two = IncompressibleSource(path, ("particles", "vx"))
    np.testing.assert_array_equal(read_trajectories(two, np.arange(N)), expected[:, :frames][..., [2, 0]])
    check_lines(source, [1 / 8, 3 / 12], [2 / 8, 3 / 6], 0.0, 0.005)
    np.testing.assert_array_equal(source.coefficient("nu"), np.full(N, 0.01))
    assert source.coefficient_names() == ()


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_well(tmp_path: Path, dims: int) -> None:
    path = tmp_path / "made_up_tcool_0.32.hdf5"
    written = write_well(path, dims)
    assert detect_layout(path).name == "well"
    source = WellSource(path)
    axes = "xyz"[:dims]
    vectors = tuple(f"velocity_{a}" for a in axes)
    tensors = tuple(f"stress_{a}{b}" for a in axes for b in axes)
    assert source.channel_names == ("density", "column", "tide", *vectors, *tensors)
    whole = (N, T, *SIZES[:dims])
    expected = [
        written["t0_fields/density"],
        np.broadcast_to(written["t0_fields/column"], whole),
        np.broadcast_to(written["t0_fields/tide"], whole),
        *np.moveaxis(written["t1_fields/velocity"], -1, 0),
        *np.moveaxis(written["t2_fields/stress"].reshape(*whole, -1), -1, 0),
    ]
    np.testing.assert_array_equal(everything(source), np.stack(expected, -1))
    check_lines(source, [0.0] * dims, [1 / size for size in SIZES[:dims]], 0.0, 0.5)
    for name, values in (("tcool", 0.32), ("gamma", np.float32(1.4)), ("mass", np.arange(1.0, N + 1))):
        np.testing.assert_array_equal(source.coefficient(name), np.broadcast_to(values, N))
    assert set(source.coefficient_names()) == {"tcool", "gamma", "mass"}
    assert source.boundary == dict(zip(axes, ("periodic", "wall", "open"), strict=False))


def described(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


LINES = "axes: [trajectory, time, x]\ntime: [1.0, 0.5]\nx: grid\ncoefficients: {nu: viscosity, rho: 1.2}\n"


@pytest.mark.parametrize("kind", ["npz", "compressed", "hdf5"])
def test_arrays_that_five_lines_describe(tmp_path: Path, kind: str) -> None:
    arrays = {
        "velocity": random(N, T, 8),
        "p": np.asfortranarray(random(N, T, 8, seed=1)),
        "grid": centres(8),
        "viscosity": np.geomspace(0.01, 0.1, N),
        "one": np.float64(3.0),
    }
    data = tmp_path / ("mine.hdf5" if kind == "hdf5" else "mine.npz")
    if kind == "hdf5":
        with h5py.File(data, "w") as file:
            for name, values in arrays.items():
                file[name] = values
    else:
        (np.savez if kind == "npz" else np.savez_compressed)(data, **arrays)
    path = described(tmp_path / "mine.yaml", f"file: {data.name}\nfields: {{u: velocity, p: p}}\n{LINES}")
    source = open_file(path, "transient", ("p", "u"))
    np.testing.assert_array_equal(everything(source), np.stack([arrays["p"], arrays["velocity"]], -1))
    check_lines(source, [-0.875], [0.25], 1.0, 0.5)
    np.testing.assert_array_equal(source.coefficient("NU"), arrays["viscosity"])
    np.testing.assert_array_equal(source.coefficient("rho"), np.full(N, 1.2))
    if kind == "npz":
        # The arrays are a map of the file, not a copy.
        assert str(data) in Path("/proc/self/maps").read_text()


def test_an_array_with_its_axes_in_another_order_and_a_channel_axis(tmp_path: Path) -> None:
    array = random(T, 2, 6, N, 8)
    np.save(tmp_path / "mine.npy", array)
    path = described(
        tmp_path / "mine.yml",
        "file: mine.npy\nfields: mine\nchannels: [u, v]\naxes: [time, channel, y, trajectory, x]\n"
        "time: [0, 0.1]\nx: [0, 0.125]\ny: [0, 0.5]\n",
    )
    source = open_file(path, "transient", ("u", "v"))
    np.testing.assert_array_equal(everything(source), array.transpose(3, 0, 4, 2, 1))
    assert source.grid.shape == (8, 6)


@pytest.mark.parametrize("text", ["0.001", "1.e-8", "1e-08", "1e3", "3", "'2.5'"])
def test_a_number_however_it_is_printed_is_read_from_a_simulations_text(text: str) -> None:
    assert parse_numbers(f"sim:\n  D: {text}\n  on: true\n  name: x\n", "") == {"D": float(text.strip("'"))}


def bad(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values[1, 2, 3] = np.nan
    return values


def damaged_seeds(path: Path) -> None:
    write_seeds(path, 1, 1)
    with h5py.File(path, "a") as file:
        del file["0002/data"]
        file["0002/data"] = random(T - 1, 8, 1)


def seeds_without_times(path: Path) -> None:
    write_seeds(path, 1, 1)
    with h5py.File(path, "a") as file:
        del file["0000/grid/t"]


def shifted_seed(path: Path) -> None:
    write_seeds(path, 1, 1)
    with h5py.File(path, "a") as file:
        file["0010/grid/x"][...] *= 1.01


def slow_seed(path: Path) -> None:
    write_seeds(path, 2, 1)
    with h5py.File(path, "a") as file:
        file["0002/grid/t"][...] *= 10


def empty_seed(path: Path) -> None:
    write_seeds(path, 1, 1)
    with h5py.File(path, "a") as file:
        del file["0010/data"]


def wide_seeds(path: Path) -> None:
    write_seeds(path, 1, 1)
    with h5py.File(path, "a") as file:
        del file["0000/data"]
        file["0000/data"] = random(T, 8)


def flat_velocity(path: Path) -> None:
    write_incompressible(path)
    with h5py.File(path, "a") as file:
        del file["velocity"]
        file["velocity"] = random(N, T, 8, 6)


def short_well(path: Path) -> None:
    write_well(path)
    with h5py.File(path, "a") as file:
        del file["t0_fields/density"]
        file["t0_fields/density"] = random(N, T, 8, 5)


def truncated(path: Path) -> None:
    write_cfd(path, 1)
    path.write_bytes(path.read_bytes()[:-200])


def anything_else(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["picture"] = np.zeros((3, 3))


DEFECTS = {
    "other grid": (lambda path: write_cfd(path, 1, pressure=random(N, T, 4)), r"`pressure`.*\(4, 5, 4\)"),
    "rank": (lambda path: write_cfd(path, 1, y__coordinate=centres(6)), r"\(N, T, X, Y\)"),
    "not a number": (lambda path: write_cfd(path, 1, Vx=bad(random(N, T, 8))), "frame 2 of trajectory 1"),
    "integers": (lambda path: write_cfd(path, 1, Vx=np.ones((N, T, 8), int)), "`Vx`.*int64"),
    "no fields": (lambda path: write_cfd(path, 1, density=None, pressure=None, Vx=None), "fields"),
    "times": (lambda path: write_cfd(path, 1, t__coordinate=np.arange(T + 3.0)), "`t-coordinate`"),
    "truncated": (truncated, "truncated"),
    "unequal seeds": (damaged_seeds, "`0002/data`"),
    "seeds without times": (seeds_without_times, "`0000`.*`grid/t`"),
    "seed on another grid": (shifted_seed, "`0010/grid/x`.*`0000/grid/x`"),
    "seed with other times": (slow_seed, "`0002/grid/t`.*`0000/grid/t`"),
    "empty seed": (empty_seed, "`0010`.*`data`"),
    "seeds without channels": (wide_seeds, r"\(T, X, C\)"),
    "velocity": (flat_velocity, "`velocity`"),
    "one frame": (lambda path: write_incompressible(path, 0), "1 complete"),
    "field of another size": (short_well, "`t0_fields/density`"),
    "sphere": (lambda path: write_well(path, grid_type="spherical"), "spherical"),
    "nothing known": (anything_else, r"picture \(3, 3\).*YAML"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_of_any_layout_is_one_line_of_exit_code_3(tmp_path: Path, configure, defect: str) -> None:
    path = tmp_path / "defect.hdf5"
    write, message = DEFECTS[defect]
    write(path)
    with pytest.raises(DataError, match=message) as error:
        channels = {"velocity": ["Vx"], "one frame": ["Vx"]}.get(defect)
        named = channels or (["density", "pressure", "Vx"] if "cfd" in layout_name(path) else ["density"])
        open_dataset(configure(path=str(path), channels=named))
    assert error.value.exit_code == 3 and str(path) in str(error.value) and "\n" not in str(error.value)


def layout_name(path: Path) -> str:
    try:
        return detect_layout(path).name
    except DataError:
        return ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file: none.npz\nfields: u\naxes: [trajectory, time, x]\ntime: [0, 1]\n", r"none\.npz"),
        ("file: mine.npz\nfields: u\naxes: [trajectory, time, lon]\ntime: [0, 1]\nlon: [0, 1]\n", "'lon'; call it x"),
        ("file: mine.npz\nfields: u\naxes: [sample, time, x]\ntime: [0, 1]\nx: [0, 1]\n", "'sample'; call it traj"),
        ("file: mine.npz\nfields: u\naxes: [trajectory, time, q]\ntime: [0, 1]\nq: [0, 1]\n", "'q'; use the names"),
        ("file: mine.npz\nfields: u\naxes: [time, x]\ntime: [0, 1]\nx: [0, 1]\n", "np.stack"),
        ("file: folder\nfields: u\naxes: [trajectory, time, x]\ntime: [0, 1]\nx: [0, 1]\n", "is a folder"),
        ("file: mine.npz\nfields: u\naxes: [trajectory, time, x]\ntime: t\nx: [0, 1]\n", "`t`: descends"),
        ("file: mine.npz\nfields: u\naxes: [trajectory, x]\ntime: [0, 1]\n", "`axes`"),
        ("file: mine.npz\nfields: w\naxes: [trajectory, time, x]\ntime: [0, 1]\nx: [0, 1]\n", "`w`"),
        ("file: mine.npz\nfields: u\naxes: [trajectory, time, x]\ntime: [0, 1]\n", "`x`"),
        ("file: mine.npz\nfields: u\naxes: [trajectory, time, x]\ntime: [0, 0]\nx: [0, 1]\n", "`time`"),
        ("file: mine.npz\nfields: u\naxes: [trajectory, time, x, y]\ntime: [0, 1]\n", r"\(4, 5, 8\)"),
        ("file: mine.npz\nfield: u\n", "`field`"),
        ("file: [", "YAML"),
        ("- 3", r"mine\.yaml"),
        ("file: mine.npz\nfields: n\naxes: [trajectory, time, x]\ntime: [0, 1]\nx: [0, 1]\n", "`n`.*float32"),
    ],
)
def test_a_description_that_does_not_fit_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    np.savez(tmp_path / "mine.npz", u=random(N, T, 8), n=np.ones((N, T, 8), int), t=-np.arange(T))
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=message) as error:
        open_file(described(tmp_path / "mine.yaml", text), "transient", None)
    assert "\n" not in str(error.value)


def test_a_steady_file_for_a_task_in_time_says_which_kind_it_is(tmp_path: Path, configure) -> None:
    with h5py.File(tmp_path / "darcy.hdf5", "w") as file:
        file["tensor"], file["nu"] = random(N, 1, 8, 8), random(N, 8, 8)
        file["x-coordinate"] = file["y-coordinate"] = centres(8)
    with pytest.raises(DataError, match="kind: steady"):
        open_dataset(configure(path=str(tmp_path / "darcy.hdf5")))
