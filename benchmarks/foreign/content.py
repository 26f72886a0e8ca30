"""Cases of data without content, of fields that are left out, and of fields that become uniform."""

from __future__ import annotations

import h5py
import numpy as np
from jaxtyping import Float64

from foreign.case import AT_REST, CONTENT, INSPECT, case, validate
from foreign.fields import DT, line_waves, plane_waves, write_coordinates, write_description, write_tensor

# Settings of a training that only has to run: most of its time is compilation.
TINY = (
    "stages.operator.steps=2 operator.spectral.depth=1 'optimizer={name: adamw, lr: 1e-3}' "
    "'evaluation={plots: false, bootstrap: 50}'"
)


@case(
    CONTENT,
    "trajectories that were never written",
    f"{INSPECT} unwritten.hdf5",
    "only zeros",
    "2 of 12 trajectories: 3, 7",
    code=3,
)
@case(
    CONTENT,
    "trajectories that end early, filled up with zeros",
    f"{INSPECT} zeros.hdf5",
    "the same frame is repeated",
    "2 of 12 trajectories: 3 (from frame 6), 7 (from frame 6)",
    code=3,
)
@case(
    CONTENT,
    "trajectories that end early, filled up with their last frame",
    f"{INSPECT} frozen.hdf5",
    "the same frame is repeated",
    "3 (from frame 5), 7 (from frame 5)",
    code=3,
)
@case(
    CONTENT,
    "trajectories that end early, filled up with zeros",
    validate("zeros.hdf5", "periodic: [x]"),
    "the same frame is repeated",
    "3 (from frame 6), 7",
)
@case(
    CONTENT,
    "trajectories that end early, filled up with zeros",
    f"train --config tiny --run-dir run 'data.tasks=[{{name: mine, path: zeros.hdf5, periodic: [x]}}]' {TINY}",
    "the same frame is repeated",
    "3 (from frame 6), 7",
)
def incomplete() -> None:
    waves = line_waves()
    for name in ("unwritten", "zeros", "frozen"):
        fields = waves.copy()
        for index in (3, 7):
            start = 0 if name == "unwritten" else 6
            fields[index, start:] = fields[index, 5] if name == "frozen" else 0
        write_tensor(f"{name}.hdf5", fields)


@case(
    CONTENT, "NaN at fixed points (land)", f"{INSPECT} land.hdf5", "same 12 of 192 points", code=3, lacks=("conserved",)
)
@case(CONTENT, "NaN at fixed points (land)", validate("land.hdf5"), "same 12 of 192 points", code=3)
@case(CONTENT, "NaN in one frame", f"{INSPECT} burst.hdf5", "NaN or Inf in 1 of 12 trajectories: 5", code=3)
def not_finite() -> None:
    for name, part in (("land", np.s_[:, :, 4:8, 3:6]), ("burst", np.s_[5, 4, 2, 3])):
        fields = plane_waves()
        fields[part] = np.nan
        write_tensor(f"{name}.hdf5", fields)


@case(
    CONTENT,
    "a field whose deviation is below 1e-3 of its rms",
    f"{INSPECT} flat.hdf5",
    "below 0.001 of its rms in 12 of 12",
    lacks=("hint",),
    follow=False,
)
@case(
    AT_REST,
    "trajectories that come to rest",
    f"{INSPECT} rest.hdf5",
    "comes to rest",
    "4 of 12 trajectories: 0, 1, 2, 3",
    follow=True,
)
def flat() -> None:
    write_tensor("flat.hdf5", 101325 + 10 * line_waves(), dtype="f8")
    fields = line_waves(frames=21)
    fields[:4] = 0.5 + fields[:4] * np.exp(-np.arange(21))[:, None]
    write_tensor("rest.hdf5", fields)


@case(
    CONTENT,
    "The Well: density and speed of sound do not change in time",
    f"{INSPECT} acoustic.hdf5",
    "`density`, `speed_of_sound` do not change in time and are left out",
    "channel     pressure",
)
def the_well() -> None:
    write_well("acoustic.hdf5", DT * np.arange(8))


def write_well(path: str, times: Float64[np.ndarray, "*n t"]) -> None:
    """Write a file of The Well with times of all trajectories, or for each trajectory."""
    waves, rng = plane_waves(), np.random.default_rng(1)
    with h5py.File(path, "w") as file:
        file.attrs.update(dataset_name="acoustic", grid_type="cartesian", n_spatial_dims=2, n_trajectories=12)
        file.attrs["simulation_parameters"] = []
        file.create_group("dimensions").attrs["spatial_dims"] = ["x", "y"]
        lines = {"time": times, "x": np.arange(16) / 16, "y": np.arange(12) / 16}
        for name, line in lines.items():
            file[f"dimensions/{name}"] = line.astype("f4")
            file[f"dimensions/{name}"].attrs.update(sample_varying=line.ndim > 1, time_varying=name == "time")
        for axis in "xy":
            side = file.create_group(f"boundary_conditions/{axis}_periodic")
            side.attrs.update(associated_dims=[axis], associated_fields=[], bc_type="PERIODIC", sample_varying=False)
            side["mask"] = np.ones(len(lines[axis]), bool)
        names = {"pressure": waves, "density": rng.uniform(1, 2, (12, 16, 12)), "speed_of_sound": np.ones((12, 16, 12))}
        for group, members in (("t0_fields", names), ("t1_fields", {}), ("t2_fields", {}), ("scalars", {})):
            file.create_group(group).attrs["field_names"] = list(members)
            for name, values in members.items():
                file[f"{group}/{name}"] = values.astype("f4")
                attributes = {"dim_varying": [True, True], "sample_varying": True, "time_varying": name == "pressure"}
                file[f"{group}/{name}"].attrs.update(attributes)


@case(
    CONTENT,
    "PDEBench's incompressible flow: `force` does not change in time",
    f"{INSPECT} flow.h5",
    "`force` does not change in time and is left out",
    "channel     Vx",
)
def incompressible() -> None:
    waves = plane_waves(shape=(16, 16))
    with h5py.File("flow.h5", "w") as file:
        file["velocity"] = np.stack([waves, np.roll(waves, 2, 2)], -1).astype("f4")
        file["particles"] = np.roll(waves, 5, 3)[..., None].astype("f4")
        file["t"] = np.tile(DT * np.arange(8), (12, 1)).astype("f4")
        file["force"] = np.random.default_rng(0).normal(size=(12, 16, 16, 2)).astype("f4")


@case(
    CONTENT,
    "a wave speed c(x, y) repeated in time as a channel",
    f"{INSPECT} repeated.yaml",
    "c does not change in time in 12 of 12",
    code=3,
    lacks=("mean of c",),
)
@case(
    CONTENT,
    "a wave speed c(x, y) repeated in time as a channel",
    validate("repeated.yaml", "channels: [u, c]"),
    "c does not change in time",
    code=3,
)
def constant_channel() -> None:
    waves = plane_waves()
    speed = np.repeat(np.random.default_rng(0).uniform(1, 3, (12, 1, 16, 12)), 8, axis=1)
    np.savez("repeated.npz", u=waves.astype("f4"), c=speed.astype("f4"))
    lines = ("fields: {u: u, c: c}", "time: [0, 0.05]", "x: [0, 0.0625]", "y: [0, 0.0833333]")
    write_description("repeated.yaml", "repeated.npz", *lines, axes="trajectory, time, x, y")


@case(CONTENT, "one trajectory", f"{INSPECT} single.hdf5", "1 trajectories of 11 frames", follow=False)
@case(CONTENT, "one trajectory", validate("single.hdf5"), "1 trajector", code=3)
@case(CONTENT, "one frame", f"{INSPECT} frame.hdf5", "`t-coordinate`", "at least 2 frames", code=3)
@case(CONTENT, "one point along an axis", f"{INSPECT} point.hdf5", "`y-coordinate`", "leave out the axis", code=3)
@case(CONTENT, "no trajectories", f"{INSPECT} none.hdf5", "no trajectories", code=3)
def smallest() -> None:
    write_tensor("single.hdf5", line_waves(1))
    write_tensor("frame.hdf5", line_waves(frames=1))
    write_tensor("point.hdf5", line_waves()[..., None])
    with h5py.File("none.hdf5", "w") as file:
        file["tensor"] = np.zeros((0, 11, 32), "f4")
        write_coordinates(file, (0, 11, 32))
