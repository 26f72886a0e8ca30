"""Files in the layouts of PDEBench and The Well, written dataset by dataset with plain h5py, and what they hold."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

N, T = 4, 5
SIZES = (8, 6, 4)
CFD = ("density", "pressure", "Vx", "Vy", "Vz")


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def centres(points: int, start: float = -1.0, extent: float = 2.0) -> np.ndarray:
    """Cell centres in float32, as PDEBench stores them."""
    return (start + (np.arange(points) + 0.5) * extent / points).astype(np.float32)


def write_cfd(path: Path, dims: int, **changes: object) -> dict[str, np.ndarray]:
    """Layout B: a dataset a channel, one time more than frames, eta, zeta and M as attributes in 2D and 3D."""
    space = SIZES[:dims]
    names = CFD[: 2 + dims]
    content: dict[str, object] = {name: random(N, T, *space, seed=k) for k, name in enumerate(names)}
    content |= {f"{axis}-coordinate": centres(size) for axis, size in zip("xyz", space, strict=False)}
    content["t-coordinate"] = np.linspace(0, 0.05 * T, T + 1, dtype=np.float32)
    content |= {name.replace("__", "-"): values for name, values in changes.items()}
    with h5py.File(path, "w") as file:
        # h5py lists them in the order of their names, not in this one.
        for name, values in content.items():
            if values is not None:
                file[name] = values
        if dims > 1:
            file.attrs.update({"eta": 1e-8, "zeta": 1e-8, "M": 0.1})
    return {name: np.asarray(content[name]) for name in names if content[name] is not None}


CONFIG = "sim:\n  D: 5.e-4\n  k: {k}\n  seed: {seed}\n  solver: fine\n  Du: 1e-3\nplot:\n  k: 7\n"


def write_seeds(path: Path, dims: int, channels: int, keys: tuple[str, ...] = ("0000", "0002", "0010")) -> np.ndarray:
    """Layout C: a group a seed with `data` (T, .., C), `grid`, and the simulation's text as attribute `config`."""
    space = SIZES[:dims]
    fields = random(len(keys), T, *space, channels)
    with h5py.File(path, "w") as file:
        for index, key in enumerate(keys):
            group = file.create_group(key)
            group.create_dataset("data", data=fields[index], compression="lzf")
            for axis, size in zip("xyz", space, strict=False):
                group[f"grid/{axis}"] = centres(size, -2.5, 5.0)
            group["grid/t"] = np.linspace(0, 0.01 * (T - 1), T, dtype=np.float32)
            group.attrs["config"] = CONFIG.format(k=index + 0.5, seed=int(key))
        file["note"] = np.zeros(3)
    return fields


INCOMPRESSIBLE = "NU: 0.01\ndomain_size: [2, 3]\nsim_name: ns\nseed: 3\n"


def write_incompressible(path: Path, latest: int | None = None, whole: int = T) -> dict[str, np.ndarray]:
    """Layout D: velocity, tracer, force and times; the frames from `whole` on were never reached, and are zero."""
    x, y = SIZES[:2]
    arrays = {"velocity": random(N, T, x, y, 2), "particles": random(N, T, x, y, 1, seed=1)}
    times = np.tile(np.arange(T) * 0.005, (N, 1)).astype(np.float32)
    for values in (*arrays.values(), times):
        values[:, whole:] = 0
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            chunks = (1, 1, *values.shape[2:])
            file.create_dataset(name, data=values, chunks=chunks, compression="lzf", shuffle=True)
        file["force"] = random(N, x, y, 2, seed=2)
        file["t"] = times
        file.attrs["config"] = INCOMPRESSIBLE
        if latest is not None:
            file.attrs["latestIndex"] = latest
    return arrays


def write_well(path: Path, dims: int = 2, **attributes: object) -> dict[str, np.ndarray]:
    """The Well: scalars, vectors and tensors in groups, axes that do not vary, names stored as bytes."""
    space, axes = SIZES[:dims], ("x", "y", "z")[:dims]
    fields = {
        "t0_fields/density": random(N, T, *space),
        # The same along the last axis.
        "t0_fields/column": random(N, T, *space[:-1], 1, seed=1),
        # The same in all trajectories.
        "t0_fields/tide": random(T, *space, seed=2),
        "t1_fields/velocity": random(N, T, *space, dims, seed=3),
        "t2_fields/stress": random(N, T, *space, dims, dims, seed=4),
    }
    with h5py.File(path, "w") as file:
        file.attrs.update(
            {
                "dataset_name": "made_up",
                "grid_type": np.bytes_("cartesian"),
                "n_spatial_dims": dims,
                "n_trajectories": N,
                "simulation_parameters": np.array([b"tcool", b"kind"]),
                "tcool": 0.32,
                "kind": "slow",
            }
            | attributes
        )
        dimensions = file.create_group("dimensions")
        dimensions.attrs["spatial_dims"] = np.array([axis.encode() for axis in axes])
        for axis, size in zip(axes, space, strict=True):
            dimensions[axis] = np.linspace(0, 1, size, endpoint=False, dtype=np.float32)
            dimensions[axis].attrs.update({"sample_varying": False, "time_varying": False})
        dimensions["time"] = np.tile(np.arange(T, dtype=np.float32) * 0.5, (N, 1))
        dimensions["time"].attrs["sample_varying"] = True
        for group in ("t0_fields", "t1_fields", "t2_fields"):
            names = [name.split("/")[1] for name in fields if name.startswith(group)]
            # The order of `field_names` is the channels', not the alphabet's.
            file.create_group(group).attrs["field_names"] = [*names, "mask"] if group == "t0_fields" else names
        for name, values in fields.items():
            file[name] = values
            varying = [True] * dims
            varying[-1] = name != "t0_fields/column"
            file[name].attrs.update(
                {"dim_varying": varying, "sample_varying": name != "t0_fields/tide", "time_varying": True}
            )
        file["t0_fields/mask"] = np.ones(space, np.float32)
        file["t0_fields/mask"].attrs.update(
            {"dim_varying": [True] * dims, "sample_varying": False, "time_varying": False}
        )
        scalars = file.create_group("scalars")
        for name, values, sample, time in (
            ("gamma", np.float32(1.4), False, False),
            ("mass", np.arange(1.0, N + 1), True, False),
            ("clock", np.arange(T, dtype=np.float64), False, True),
        ):
            scalars[name] = values
            scalars[name].attrs.update({"sample_varying": sample, "time_varying": time})
        for axis, kind in zip(axes, ("PERIODIC", b"Wall", "OPEN"), strict=False):
            group = file.create_group(f"boundary_conditions/{axis}_boundary")
            group.attrs.update({"bc_type": kind, "associated_dims": np.array([axis.encode()])})
    return fields
