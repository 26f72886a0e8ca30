"""Sound material that is then changed: data in every layout, a saved run with its data, champions on a leaderboard."""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np
from rich.console import Console

sys.path.append(str(Path(__file__).resolve().parents[3] / "tests" / "helpers"))

from commands import CONFIGS
from point_files import write_mesh, write_particles
from written_layouts import centres, random, write_cfd, write_incompressible, write_seeds, write_well

OVERRIDES = (
    "data.tasks=[{name: waves, path: data/waves.hdf5, periodic: [x], coefficients: {beta: linear}}]",
    "latent.dim=4",
    "operator.spectral.hidden_dim=8",
    "operator.spectral.depth=1",
    "operator.spectral.modes=4",
    "training.batch_size=2",
    "evaluation.plots=false",
)


def _tensor(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["tensor"] = random(4, 5, 8)
        file["x-coordinate"] = centres(8)
        file["t-coordinate"] = np.linspace(0, 0.25, 6, dtype=np.float32)
        file["parameters/nu"] = np.array([0.1, 0.2, np.nan, 0.3])
        file.attrs.update({"boundary": "periodic", "rho": 0.1, "task": "mine"})


def _darcy(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["tensor"], file["nu"] = random(4, 1, 8, 6), np.abs(random(4, 8, 6, seed=1))
        file["x-coordinate"], file["y-coordinate"] = (np.arange(8) + 0.5) / 8, (np.arange(6) + 0.5) / 6
        file.attrs["beta"] = 1.0


def _waves(path: Path) -> None:
    """Twenty sine waves, each of which travels at its speed beta."""
    beta, x, times = np.linspace(0.1, 1.0, 20), np.arange(16) / 8 - 1, 0.05 * np.arange(10)
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        moved = x - beta[:, None, None] * times[:9, None]
        file["tensor"] = np.sin(np.pi * moved + beta[:, None, None] * 7).astype(np.float32)
        file["x-coordinate"], file["t-coordinate"], file["parameters/beta"] = x, times, beta


def _zarr_particles(path: Path) -> None:
    """The older of Zarr's two formats, of which the newer is `_zarr_mesh`."""
    import zarr

    root = zarr.open_group(str(path), mode="w", zarr_format=2)
    for number in range(4):
        group = root.create_group(f"sample_{number}")
        group.create_array("positions", data=random(5, 6, 3, seed=number).cumsum(axis=0))
        group.create_array("velocities", data=random(5, 6, 3, seed=number + 10))
        group.attrs.update({"radius": 0.2, "dt": 0.05})


def _zarr_mesh(path: Path) -> None:
    import zarr

    root = zarr.open_group(str(path), mode="w").create_group("mesh")
    for number in range(4):
        group = root.create_group(f"sample_{number}")
        group.create_array("coords", data=np.random.default_rng(number).random((6, 2)))
        group.create_array("time", data=0.1 * np.arange(5))
        group.create_group("fields").create_array("v", data=random(5, 6, 2, seed=number))
        group["fields"].create_array("p", data=random(5, 6, seed=number + 10))


def _series(folder: Path) -> None:
    """Four series of five frames: of triangles in VTU and, the last two, in VTK as binary and as text."""
    import meshio

    folder.mkdir()
    cells = [("triangle", np.array([[0, 1, 2], [1, 2, 3]]))]
    for number in range(4):
        places = np.concatenate([np.random.default_rng(number).random((6, 2)), np.zeros((6, 1))], axis=1)
        suffix = ".vtu" if number < 2 else ".vtk"
        frames = []
        for frame in range(5):
            data = {"p": random(6, seed=frame), "v": random(6, 3, seed=frame + 5) * [1, 1, 0]}
            name = f"{number}_{frame}{suffix}"
            binary = {} if number < 2 else {"binary": number == 2}
            # It warns of the frames as text.
            with contextlib.redirect_stderr(io.StringIO()):
                meshio.write(folder / name, meshio.Mesh(places, cells, point_data=data), **binary)
            frames.append(f'<DataSet timestep="{0.1 * frame}" file="{name}"/>')
        text = f'<?xml version="1.0"?><VTKFile type="Collection"><Collection>{"".join(frames)}</Collection></VTKFile>'
        (folder / f"{number}.pvd").write_text(text)


# Folders of points, by names that say what they are.
FOLDERS: dict[str, Callable[[Path], None]] = {
    "particles.zarr": _zarr_particles,
    "mesh.zarr": _zarr_mesh,
    "series": _series,
}


def folders() -> dict[str, dict[str, bytes]]:
    """The files of each folder of points, by their paths in it."""
    contents = {}
    with tempfile.TemporaryDirectory() as place:
        for name, write in FOLDERS.items():
            write(Path(place) / name)
            files = sorted(path for path in (Path(place) / name).rglob("*") if path.is_file())
            contents[name] = {str(path.relative_to(place)): path.read_bytes() for path in files}
    return contents


POINTS: dict[str, Callable[[Path], object]] = {
    "mesh.hdf5": write_mesh,
    "meshes.hdf5": lambda path: write_mesh(path, mesh_per_trajectory=True),
    "particles.hdf5": write_particles,
}
LAYOUTS: dict[str, Callable[[Path], object]] = {
    "advection_beta0.4.hdf5": _tensor,
    "darcy_beta1.0.hdf5": _darcy,
    "1D_CFD_Rand_Eta0.1_Zeta0.1_periodic_Train.hdf5": lambda path: write_cfd(path, 1),
    "2D_CFD_Rand_M0.1_Eta1e-08_Zeta1e-08_periodic_Train.hdf5": lambda path: write_cfd(path, 2),
    "1D_diff-sorp_NA_NA.h5": lambda path: write_seeds(path, 1, 1),
    "2D_diff-react_NA_NA.h5": lambda path: write_seeds(path, 2, 2),
    "ns_incom_inhom_2d_512-0.h5": lambda path: write_incompressible(path, 3),
    "made_up_1.hdf5": lambda path: write_well(path, 1),
    "made_up_2.hdf5": lambda path: write_well(path, 2),
}
DESCRIPTION = (
    "file: mine.npz\nfields: {u: a, v: b}\naxes: [trajectory, x, time]\n"
    "time: [0.3, 0.1]\nx: x\ncoefficients: {nu: nu, rho: 1.2}\n"
)


def arrays(suffix: str, compressed: bool = False) -> bytes:
    """The file that `DESCRIPTION` describes, as .npz, .hdf5, or .npy with the first array alone."""
    values = {"a": random(4, 8, 5), "b": random(4, 8, 5, seed=1), "x": centres(8), "nu": np.arange(4.0)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"mine{suffix}"
        if suffix == ".npz":
            (np.savez_compressed if compressed else np.savez)(path, **values)
        elif suffix == ".npy":
            np.save(path, values["a"])
        else:
            with h5py.File(path, "w") as file:
                for name, array in values.items():
                    file[name] = array
        return path.read_bytes()


def layouts() -> dict[str, bytes]:
    """A small file in every layout of grids, by a name that says what it is."""
    return _written(LAYOUTS)


def points() -> dict[str, bytes]:
    """Small files in the layout of points."""
    return _written(POINTS)


def _written(layouts: Mapping[str, Callable[[Path], object]]) -> dict[str, bytes]:
    contents = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, write in layouts.items():
            write(Path(folder) / name)
            contents[name] = (Path(folder) / name).read_bytes()
    return contents


class Bases(Mapping[str, Path]):
    """The folders that cases start from, by name; each is created at its first use."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __getitem__(self, name: str) -> Path:
        place = self._folder / name
        if not place.exists():
            place.mkdir(parents=True)
            with contextlib.chdir(place):
                _MAKERS[name]()
        return place

    def __iter__(self) -> Iterator[str]:
        return iter(_MAKERS)

    def __len__(self) -> int:
        return len(_MAKERS)


@functools.cache
def shared() -> Bases:
    """Those of this process, which go with it, or those in the folder FUZZ_BASES."""
    if "FUZZ_BASES" in os.environ:
        return Bases(Path(os.environ["FUZZ_BASES"]))
    folder = tempfile.mkdtemp(prefix="ups_jax-fuzz-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Bases(Path(folder))


def _run() -> None:
    """`run`, a saved run at step 3, and `data`, what it was trained on."""
    import jax

    from ups_jax import batch_at, init_state, save
    from ups_jax import build as build_run
    from ups_jax.config import load
    from ups_jax.data import as_mixture, open_dataset

    _waves(Path("data/waves.hdf5"))
    cfg = load(CONFIGS / "tiny.yaml", OVERRIDES)
    data = open_dataset(cfg)
    model, tx = build_run(cfg, data)
    save("run", init_state(model, tx, batch_at(data, cfg, "operator", 0), jax.random.key(0)), cfg, data, validation=0.5)
    lines = [{"stage": "operator", "step": step, "loss": 1.0 / step, "epoch": 0.1 * step} for step in (1, 2, 3)]
    Path("run/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Path("run/split.json").write_text(json.dumps(as_mixture(data).split_record()) + "\n")
    Path("run/evaluation").mkdir()
    Path("run/evaluation/test.json").write_text(json.dumps({"metrics": {}, "baselines": {}, "meta": {}}))


def _board() -> None:
    """A leaderboard of three runs, of which the best is champion and the one before it was."""
    from fakes import Steps

    from ups_jax.pipeline.request import Request
    from ups_jax.pipeline.run import run_pipeline

    for name, epochs in (("one", 2), ("two", 4), ("three", 3)):
        request = Request(
            train_config=CONFIGS / "tiny.yaml",
            train_stage="operator",
            overrides=(f"stages.operator.epochs={epochs}",),
            runs_root=Path("artifacts/runs"),
            leaderboard_csv=Path("reports/leaderboard.csv"),
            run_id=name,
        )
        # A run that is not promoted has its row as well.
        with contextlib.suppress(Exception):
            run_pipeline(request, Console(quiet=True), Steps())


def _shards() -> None:
    """`shards`, two of them, and `source.hdf5`, from which they were made."""
    from ups_jax.data.shards.writer import ShardSizes, convert_to_shards

    write_cfd(Path("source.hdf5"), 1)
    convert_to_shards(Path("source.hdf5"), Path("shards"), ShardSizes(record_kib=1))


_MAKERS = {"run": _run, "board": _board, "shards": _shards}
