"""Files of points give exactly what was written, and batches and statistics know which points are there."""

from __future__ import annotations

import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from point_files import TIMES, N, P, T, write_mesh, write_particles

from ups_jax import config
from ups_jax.core.errors import ConfigError, DataError
from ups_jax.data import batch_at, open_dataset
from ups_jax.data.inspection import config_yaml, describe, inspect
from ups_jax.data.shards.writer import ShardSizes, convert_to_shards
from ups_jax.data.sources import open_file
from ups_jax.data.sources.base import read_trajectories


def configured(file: Path, **task: object) -> config.Config:
    entry = {"name": "mine", "path": str(file), "channels": ["p", "T"], **task}
    values = {"data": {"tasks": [entry], "split": {"val": 0.2, "test": 0.2}}, "training": {"lambda_h1": 0}}
    return config.from_dict(values)


@pytest.mark.parametrize("mesh_per_trajectory", [False, True])
def test_a_mesh_is_read_as_it_was_written(tmp_path: Path, mesh_per_trajectory: bool) -> None:
    written = write_mesh(tmp_path / "mesh.h5", mesh_per_trajectory=mesh_per_trajectory)
    source = pickle.loads(pickle.dumps(open_file(tmp_path / "mesh.h5", "transient", ("T", "p"))))
    ids = np.arange(N)
    mask = written["mask"] > 0 if mesh_per_trajectory else np.ones((N, P), bool)
    fields = np.where(mask[:, None, :, None], np.stack([written["fields/T"], written["fields/p"]], -1), 0)
    assert np.array_equal(read_trajectories(source, ids), fields)
    frames = np.array([[1, 3], [0, 4]])
    assert np.array_equal(source.read(np.array([2, 5]), frames), fields[np.array([[2], [5]]), frames])
    point_set = source.points(ids)
    assert np.array_equal(point_set.mask, mask)
    points = np.broadcast_to(written["points"], (N, P, 2)).astype(np.float32)
    assert np.array_equal(point_set.coords, np.where(mask[..., None], points, 0))
    side = np.broadcast_to(written["inputs/side"], (N, P))
    assert np.array_equal(source.read_input_fields(ids)[..., 0], np.where(mask, side, 0))
    assert source.input_channels == ("side",)
    assert np.array_equal(source.coefficient("kappa"), written["parameters/kappa"])
    assert source.coefficient_names() == ("kappa",)
    assert (source.grid.start, source.grid.dt) == (TIMES[0], 0.5)
    assert source.cells(0).tolist() == [[0, 1, 2]]
    there = points[mask]
    np.testing.assert_allclose(source.grid.origin, there.min(0), rtol=1e-6)
    np.testing.assert_allclose(source.grid.box, np.ptp(there, axis=0), rtol=1e-6)


def test_particles_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = write_particles(tmp_path / "swarm.h5")
    source = open_file(tmp_path / "swarm.h5", "transient")
    assert source.channel_names == ("x", "y", "c") and source.grid.position_channels == ("x", "y")
    expected = np.concatenate([written["positions"], written["fields/c"][..., None]], axis=-1)
    assert np.array_equal(read_trajectories(source, np.arange(N)), expected)
    assert source.points(np.arange(2)).coords.shape == (2, P, 0)
    assert (source.grid.origin, source.grid.box) == ((-1.0, -2.0), (2.0, 4.0))


@pytest.mark.parametrize("in_memory", [False, True])
def test_statistics_and_batches_are_of_the_points_that_are_there(tmp_path: Path, in_memory: bool) -> None:
    written = write_mesh(tmp_path / "mesh.h5", mesh_per_trajectory=True)
    values = config.to_dict(configured(tmp_path / "mesh.h5", coefficients={"kappa": "linear"}))
    values["data"]["loader"]["memory_gib"] = 1.0 if in_memory else 0.0
    values["stages"]["operator"]["batch_size"] = 3
    cfg = config.from_dict(values)
    dataset = open_dataset(cfg)
    task, train = dataset.task, dataset.splits.train
    mask = written["mask"][train] > 0
    for channel, name in enumerate(("p", "T")):
        values = np.moveaxis(written[f"fields/{name}"][train].astype(np.float64), 1, 2)[mask]
        np.testing.assert_allclose(task.statistics.mean[channel], values.mean(), rtol=1e-6)
        np.testing.assert_allclose(task.statistics.std[channel], values.std(), rtol=1e-4)
        np.testing.assert_allclose(
            task.statistics.delta_std[channel], np.sqrt((np.diff(values) ** 2).mean()), rtol=1e-4
        )
    input_values = written["inputs/side"][train].astype(np.float64)[mask]
    np.testing.assert_allclose(
        (task.inputs[0].mean, task.inputs[0].std), (input_values.mean(), input_values.std()), rtol=1e-5
    )
    assert task.scattered and task.shape == (P,) and task.num_points == P
    batch = batch_at(dataset, cfg, "operator", 0)
    ids = batch.trajectory_id
    assert np.array_equal(batch.point_mask, written["mask"][ids])
    assert batch.coords.shape == (3, P, 2) and batch.inputs.shape == (3, P, 1) and batch.mask.shape == (3,)
    starts = np.rint((batch.time[:, 0] - TIMES[0]) / 0.5).astype(int)
    first = written["fields/p"][ids, starts] * written["mask"][ids]
    assert np.array_equal(batch.fields[:, 0, :, 0], first)


def test_places_belong_to_the_fingerprint(tmp_path: Path) -> None:
    write_mesh(tmp_path / "mesh.h5")
    before = open_dataset(configured(tmp_path / "mesh.h5")).fingerprint
    assert open_dataset(configured(tmp_path / "mesh.h5")).fingerprint == before
    with h5py.File(tmp_path / "mesh.h5", "r+") as file:
        points = file["points"][:]
        inner = int(np.argsort(points[:, 0])[P // 2])
        file["points"][inner, 0] = points[inner, 0] + 1e-3
    assert open_dataset(configured(tmp_path / "mesh.h5")).fingerprint != before


def broken(name: str, file: h5py.File) -> None:
    """One defect."""
    if name == "nan":
        file["fields/p"][1, 2, 3] = np.nan
    elif name == "nan place":
        file["points"][2, 0] = np.nan
    elif name == "nan input":
        file["inputs/side"][2] = np.inf
    elif name == "times":
        del file["time"]
        file["time"] = TIMES[:-1]
    elif name == "shape":
        del file["fields/p"]
        file["fields/p"] = np.zeros((N, T, P + 1), np.float32)
    elif name == "places":
        del file["points"]
        file["points"] = np.zeros((P + 1, 2))
    elif name == "none":
        del file["points"]
    elif name == "box":
        file["box"] = np.array([[0.4, 0.0], [1.0, 1.0]])
    elif name == "integers":
        del file["inputs/side"]
        file["inputs/side"] = np.zeros(P, int)
    elif name == "plane":
        file["points"][:, 1] = 0.5
    elif name == "empty":
        file["mask"] = np.zeros(P, np.uint8)


DEFECTS = {
    "nan": "frame 2 of trajectory 1",
    "nan place": "`points`",
    "nan input": "`inputs`",
    "times": "`time`",
    "shape": "`fields/p`",
    "places": "(8, 2)",
    "none": "`points`",
    "box": "box",
    "integers": "`inputs/side`",
    "plane": "plane",
    "empty": "`mask`",
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_told_with_file_and_dataset(tmp_path: Path, name: str) -> None:
    path = tmp_path / "mesh.h5"
    write_mesh(path)
    with h5py.File(path, "r+") as file:
        broken(name, file)
    with pytest.raises(DataError) as raised:
        open_dataset(configured(path))
    assert DEFECTS[name] in str(raised.value) and str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_period_needs_a_box(tmp_path: Path) -> None:
    write_mesh(tmp_path / "mesh.h5")
    with pytest.raises(DataError, match=r"box.*\bx\b"):
        open_dataset(configured(tmp_path / "mesh.h5", periodic=["x"]))


def test_positions_that_jump_back_by_a_period_are_told(tmp_path: Path) -> None:
    write_particles(tmp_path / "swarm.h5")
    with h5py.File(tmp_path / "swarm.h5", "r+") as file:
        file["positions"][1, 3:, 2, 0] -= 2
    with pytest.raises(DataError, match=r"point 2.*\bx\b.*frame 2"):
        open_dataset(configured(tmp_path / "swarm.h5", channels=["x", "y", "c"], periodic=["x", "y"]))


def test_channels_of_points_that_move_hold_their_positions(tmp_path: Path) -> None:
    write_particles(tmp_path / "swarm.h5")
    with pytest.raises(DataError, match="x, y"):
        open_dataset(configured(tmp_path / "swarm.h5", channels=["c"]))
    dataset = open_dataset(configured(tmp_path / "swarm.h5", channels=["c", "y", "x"], periodic=["y"]))
    assert dataset.task.moving == (2, 1) and dataset.task.periodic == (False, True)


@pytest.mark.parametrize(
    ("key", "value"), [("symmetries", [{"reflect": ["x"]}]), ("conserved", ["p"]), ("periodic", ["z"])]
)
def test_what_only_grids_have_is_refused(tmp_path: Path, key: str, value: object) -> None:
    write_mesh(tmp_path / "mesh.h5")
    with pytest.raises(ConfigError, match=f"data.tasks.mine.{key}"):
        open_dataset(configured(tmp_path / "mesh.h5", **{key: value}))


def test_several_files_of_points_and_shards_of_them_are_refused(tmp_path: Path) -> None:
    for name in ("one.h5", "two.h5"):
        write_mesh(tmp_path / name)
    with pytest.raises(DataError, match="one"):
        both = {"path": [str(tmp_path / "one.h5"), str(tmp_path / "two.h5")]}
        open_dataset(configured(tmp_path / "one.h5", **both))
    with pytest.raises(DataError, match="shards"):
        convert_to_shards(tmp_path / "one.h5", tmp_path / "shards", ShardSizes())


@pytest.mark.parametrize("write", [write_mesh, write_particles])
def test_an_inspection_gives_lines_that_open_the_file(tmp_path: Path, write) -> None:
    write(tmp_path / "mine.h5")
    inspection = inspect(tmp_path / "mine.h5")
    lines = "\n".join(describe(inspection))
    assert "7, moving" in lines if write is write_particles else "7, fixed" in lines
    values = yaml.safe_load(config_yaml(inspection)) | {}
    values["data"]["split"] = {"val": 0.2, "test": 0.2}
    assert open_dataset(config.from_dict(values)).task.scattered and inspection.is_usable
