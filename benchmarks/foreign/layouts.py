"""Cases of layouts: the names of channels and coefficients, groups, links and folders."""

from __future__ import annotations

import shutil

import h5py
import numpy as np

from foreign.case import INSPECT, LAYOUT, case, validate
from foreign.fields import DT, UNIFORM_LINE, line_waves, plane_waves, write_coordinates, write_description, write_tensor


@case(LAYOUT, "channels `U` and `u`", validate("letters.hdf5", "channels: [V]"), "has no channel 'V'", "U, u", code=3)
@case(LAYOUT, "channels `U` and `u`", validate("letters.hdf5", "channels: [U]"), "valid")
@case(
    LAYOUT,
    "channels `U` (100 times `u`) and `u`",
    f"{INSPECT} letters.hdf5",
    "channel     U  min -",
    "channel     u  min -",
)
@case(
    LAYOUT,
    "channels `U` (100 times `u`) and `u`",
    'python -c "from ups_jax.data.sources import open_file; import numpy as np; '
    "print(*(round(float(np.abs(open_file('letters.hdf5', 'transient', (name,)).read(np.arange(1), "
    "np.zeros((1, 1), int))).max()), 3) for name in 'Uu'))\"",
    check=lambda output: "" if 99.9 < float(output.split()[0]) / float(output.split()[1]) < 100.1 else "U is not U",
)
def letters() -> None:
    with h5py.File("letters.hdf5", "w") as file:
        waves = line_waves()
        file["U"], file["u"] = (100 * waves).astype("f4"), waves.astype("f4")
        write_coordinates(file, waves.shape)


@case(
    LAYOUT,
    "coefficients `K` and `k`",
    f"{INSPECT} coefficients.hdf5",
    "parameter   K 1 to 2",
    "parameter   k 0.001 to 0.1",
)
@case(
    LAYOUT,
    "coefficients `K` and `k`",
    validate("coefficients.hdf5", "coefficients: {K: linear, k: log10}"),
    "valid",
    lacks=("missing", "does not receive"),
)
def upper_and_lower_coefficients() -> None:
    write_tensor(
        "coefficients.hdf5", line_waves(), parameters_K=np.linspace(1, 2, 12), parameters_k=np.geomspace(1e-3, 0.1, 12)
    )


@case(LAYOUT, "seed groups, the last with another grid", f"{INSPECT} grids.hdf5", "`0003/grid/x` differs", code=3)
@case(LAYOUT, "seed groups, the last with other times", f"{INSPECT} times.hdf5", "`0003/grid/t` differs", code=3)
@case(LAYOUT, "seed groups", f"{INSPECT} equal.hdf5", "4 trajectories of 11 frames", "axis x      32 points")
def seed_groups() -> None:
    for name, changed in (("grids", "x"), ("times", "t"), ("equal", "")):
        with h5py.File(f"{name}.hdf5", "w") as file:
            for index, wave in enumerate(line_waves(4)):
                group = file.create_group(f"{index:04}")
                group["data"] = wave[..., None].astype("f4")
                for axis, line in (("x", np.arange(32) / 32), ("t", DT * np.arange(11))):
                    group[f"grid/{axis}"] = line * (1.5 if axis == changed and index == 3 else 1)


@case(
    LAYOUT,
    "PDEBench with one time more than frames; the coefficient is in the file name",
    f"{INSPECT} 1D_Burgers_Sols_Nu0.001.hdf5",
    "12 trajectories of 11 frames",
    "nu 0.001 in all",
    follow=False,
)
@case(
    LAYOUT,
    "PDEBench with a leading axis that a merge left",
    f"{INSPECT} 1D_Advection_Sols_beta1.0.hdf5",
    "shape (1, 12, 11, 32)",
    "reshape `tensor` to (N, T, X)",
    code=3,
)
def pdebench() -> None:
    waves = line_waves()
    for name, fields in (("1D_Burgers_Sols_Nu0.001", waves), ("1D_Advection_Sols_beta1.0", waves[None])):
        with h5py.File(f"{name}.hdf5", "w") as file:
            file["tensor"] = fields.astype("f4")
            file["x-coordinate"], file["t-coordinate"] = np.arange(32.0) / 32, (DT * np.arange(12)).astype("f4")


@case(
    LAYOUT,
    "PDEBench's CFD layout with a mask (N, X, Y) and a force (N, X, Y, 2)",
    f"{INSPECT} cfd.hdf5",
    "channel     Vx",
    "channel     density",
    "`force`, `mask` do not change in time",
    follow=False,
)
@case(
    LAYOUT, "coordinates of an axis that the fields do not have", f"{INSPECT} extra.hdf5", "remove the others", code=3
)
@case(
    LAYOUT,
    "names with punctuation and a Greek attribute",
    f"{INSPECT} names.hdf5",
    "channel     p, total",
    "parameter   ν 0.5",
    "'a: b'",
)
def more_layouts() -> None:
    flow, waves = plane_waves(shape=(16, 16)), line_waves()
    with h5py.File("cfd.hdf5", "w") as file:
        file["Vx"], file["density"] = flow.astype("f4"), np.roll(flow, 3, 2).astype("f4")
        file["mask"], file["force"] = np.ones((12, 16, 16), "f4"), np.ones((12, 16, 16, 2), "f4")
        write_coordinates(file, flow.shape)
    write_tensor("extra.hdf5", waves)
    with h5py.File("extra.hdf5", "a") as file:
        file["y-coordinate"] = np.arange(4.0)
    with h5py.File("names.hdf5", "w") as file:
        file["p, total"], file["a: b"] = waves, 2 * waves
        file.attrs["ν"] = 0.5
        write_coordinates(file, waves.shape)


@case(
    LAYOUT,
    "datasets `t`, `seed`, `id` and `time` with one number for each trajectory, and `Re`",
    f"{INSPECT} counts.hdf5",
    "parameter   Re 100 to 200",
    lacks=("parameter   t ", "parameter   seed", "parameter   id", "parameter   time", "{t:"),
)
def counts() -> None:
    numbers = np.arange(12)
    write_tensor(
        "counts.hdf5",
        line_waves(),
        t=DT * numbers,
        seed=numbers,
        id=numbers,
        time=numbers / 3,
        Re=np.linspace(100, 200, 12),
    )


@case(
    LAYOUT,
    "coefficients as a column (N, 1), as a scalar, and as a root attribute with N numbers",
    f"{INSPECT} columns.hdf5",
    "parameter   nu 0.001 to 0.1",
    "parameter   rho 1.5 in all",
    "parameter   mu 1 to 2",
)
@case(
    LAYOUT,
    "a coefficient with a number for each trajectory and frame",
    validate("columns.hdf5", "coefficients: {forcing: linear}"),
    "(12, 11)",
    "shape (12,)",
    code=3,
)
def columns() -> None:
    write_tensor(
        "columns.hdf5", line_waves(), nu=np.geomspace(1e-3, 0.1, 12)[:, None], rho=1.5, forcing=np.ones((12, 11))
    )
    with h5py.File("columns.hdf5", "a") as file:
        file.attrs["mu"] = np.linspace(1, 2, 12)


@case(
    LAYOUT,
    "a coefficient that is missing in some trajectories",
    validate("partial.hdf5", "coefficients: {nu: log10}"),
    "missing for 2 of 12",
    "valid",
)
@case(
    LAYOUT,
    "a coefficient with a zero on a log10 scale",
    validate("zero.hdf5", "coefficients: {nu: log10}"),
    "not positive",
    "linear",
    code=3,
)
def some_coefficients() -> None:
    numbers = np.geomspace(1e-3, 0.1, 12)
    for name, first in (("partial", np.nan), ("zero", 0.0)):
        write_tensor(f"{name}.hdf5", line_waves(), parameters_nu=np.where(np.arange(12) < 2, first, numbers))


@case(
    LAYOUT,
    "numbers in file names",
    f"{INSPECT} burgers_nu0p01.hdf5 adv_Beta1.5e-1_run2.hdf5",
    "parameter   nu 0.01 in all",
    "parameter   beta 0.15 in all",
    follow=False,
)
@case(
    LAYOUT,
    "numbers in file names of which it is unclear where they end, or which of them counts",
    f"{INSPECT} a_nu0,01.hdf5 b_nu01.hdf5 c_rho2d.hdf5 d_nu0.001-0.1.hdf5 e_nu1_nu2.hdf5 f_nu0.01x.hdf5",
    "contains    12",
    lacks=("parameter",),
    follow=False,
)
@case(LAYOUT, "number in the name of a file without a suffix", f"{INSPECT} g_nu0.02", "parameter   nu 0.02 in all")
@case(
    LAYOUT,
    "other spellings of a number in a file name",
    validate("h_Re=1e+03_nu_2E-4.hdf5", "coefficients: {Re: linear, nu: log10}"),
    "valid",
    lacks=("missing", "does not receive"),
)
def file_names() -> None:
    write_tensor("waves", line_waves())
    for name in (
        *("burgers_nu0p01.hdf5", "adv_Beta1.5e-1_run2.hdf5", "a_nu0,01.hdf5", "b_nu01.hdf5", "c_rho2d.hdf5"),
        *("d_nu0.001-0.1.hdf5", "e_nu1_nu2.hdf5", "f_nu0.01x.hdf5", "g_nu0.02", "h_Re=1e+03_nu_2E-4.hdf5"),
    ):
        shutil.copy("waves", name)


@case(
    LAYOUT,
    "fields at the end of soft links, beside a link to nothing and an empty group",
    f"{INSPECT} links.hdf5",
    "12 trajectories of 11 frames",
    "nu 1 to 2",
)
@case(LAYOUT, "a link to another file", f"{INSPECT} external.hdf5", "link to another file", "copy the values", code=3)
@case(LAYOUT, "big-endian, chunked, growing", f"{INSPECT} big.hdf5", "12 trajectories of 11 frames", "std 0.")
@case(LAYOUT, "long double", f"{INSPECT} long.hdf5", "12 trajectories of 11 frames", "dt 0.05")
def hdf5() -> None:
    waves = line_waves()
    with h5py.File("links.hdf5", "w") as file:
        file["data/waves"], file["data/nu"] = waves.astype("f4"), np.linspace(1, 2, 12)
        write_coordinates(file, waves.shape)
        file["tensor"], file["parameters/nu"] = h5py.SoftLink("/data/waves"), h5py.SoftLink("/data/nu")
        file["lost"] = h5py.SoftLink("/nowhere")
        file.create_group("notes")
    with h5py.File("external.hdf5", "w") as file:
        file["tensor"] = h5py.ExternalLink("links.hdf5", "/data/waves")
    with h5py.File("big.hdf5", "w") as file:
        file.create_dataset("tensor", data=waves.astype(">f8"), chunks=(1, 3, 32), maxshape=(None, None, 32))
        file["x-coordinate"], file["t-coordinate"] = (np.arange(32) / 32).astype(">f8"), np.arange(11).astype(">i4")
    write_tensor("long.hdf5", waves, dtype="longdouble")


@case(
    LAYOUT,
    "one line of coordinates for each trajectory, all in the group `train`",
    f"{INSPECT} train.yaml",
    "axis x      16 points from 0.125",
    "time        from 18",
)
@case(
    LAYOUT,
    "the same file without a description",
    f"{INSPECT} NavierStokes2D_train_0.h5",
    "train/u (12, 8, 16, 16)",
    "YAML",
    code=3,
)
@case(LAYOUT, "a dataset for each trajectory", f"{INSPECT} sims.hdf5", "sims/sim0 (11, 2, 32)", "np.stack", code=3)
@case(LAYOUT, "one simulation in each file", f"{INSPECT} one.yaml", "np.stack", code=3)
@case(LAYOUT, "arrays of different lengths", f"{INSPECT} ragged.yaml", "different lengths", "same length", code=3)
@case(
    LAYOUT, "a folder of seed files with train, valid and test", f"{INSPECT} set", "set/train/a.hdf5", "set/test/a.hdf5"
)
@case(LAYOUT, "a file called 1e5", f"{INSPECT} 1e5.hdf5", "name: '1e5'")
@case(
    LAYOUT,
    "a pattern, and a name with spaces and brackets",
    f"{INSPECT} 'set/*/a.hdf5' 'my run [1] ü.hdf5'",
    "set/valid/a.hdf5",
    "my_run_1",
    "contains    12",
)
@case(
    LAYOUT, "axes in the order (T, N, X) with N = T", f"{INSPECT} tnx.hdf5", "exchange the first two axes", follow=False
)
@case(
    LAYOUT,
    "axes in the order (N, X, T) with X = T, which no shape reveals",
    f"{INSPECT} nxt.hdf5",
    "24 trajectories of 24 frames",
    lacks=("exchange",),
    follow=False,
)
@case(
    LAYOUT,
    "axes in the order (T, N, X)",
    f"{INSPECT} transposed.hdf5",
    "shape (11, 12, 32)",
    "transpose `tensor` to (N, T, X)",
    code=3,
)
def folders() -> None:
    flow = plane_waves(shape=(16, 16))
    with h5py.File("NavierStokes2D_train_0.h5", "w") as file:
        group = file.create_group("train")
        group["u"], group["buo_y"] = flow.astype("f4"), np.linspace(0.2, 0.5, 12)
        group["t"] = np.tile(np.linspace(18, 102, 8), (12, 1))
        for axis in "xy":
            group[axis] = np.tile(0.125 + 0.25 * np.arange(16), (12, 1))
    lines = ("fields: {u: train/u}", "time: train/t", "x: train/x", "y: train/y", "coefficients: {buo_y: train/buo_y}")
    write_description("train.yaml", "NavierStokes2D_train_0.h5", *lines, axes="trajectory, time, x, y")
    waves = line_waves()
    with h5py.File("sims.hdf5", "w") as file:
        for index, wave in enumerate(waves):
            file[f"sims/sim{index}"] = np.stack([wave, 2 * wave], 1).astype("f4")
    np.savez("one.npz", u=waves[0])
    write_description("one.yaml", "one.npz", "fields: {u: u}", *UNIFORM_LINE, axes="time, x")
    np.save("ragged.npy", np.array([waves[0, : 5 + index] for index in range(4)], object), allow_pickle=True)
    write_description("ragged.yaml", "ragged.npy", "fields: {u: u}", *UNIFORM_LINE)
    for seed, name in enumerate(("set/train/a", "set/valid/a", "set/test/a", "1e5", "my run [1] ü")):
        write_tensor(f"{name}.hdf5", line_waves(seed=seed))
    write_tensor("transposed.hdf5", waves)
    with h5py.File("transposed.hdf5", "a") as file:
        del file["tensor"]
        file["tensor"] = waves.transpose(1, 0, 2)
    cube = line_waves(24, 24, 24, dt=0.01)
    write_tensor("tnx.hdf5", cube.transpose(1, 0, 2))
    write_tensor("nxt.hdf5", cube.transpose(0, 2, 1))
