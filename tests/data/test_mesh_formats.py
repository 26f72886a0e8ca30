"""Zarr files and VTK series of points load to what was written; without the extra `mesh` a line says what to do.

What reads the formats comes with the extra `dev` as well.
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import numpy as np
import pytest
from point_files import random

from ups_jax import config
from ups_jax.core.errors import DataError
from ups_jax.data import open_dataset
from ups_jax.data.sources import open_file
from ups_jax.data.sources.base import read_trajectories
from ups_jax.data.sources.point_trajectories import PointTrajectory, split_components, stack_trajectories
from ups_jax.data.sources.vtk import list_frames

T, TIMES = 4, 0.1 * np.arange(4)


def trajectory(points: int, seed: int, **changed: object) -> PointTrajectory:
    values = {
        "name": f"number {seed}",
        "positions": np.random.default_rng(seed).random((points, 2)),
        "fields": {"u": random(T, points, seed=seed)},
        "times": TIMES,
        "inputs": {"f": random(points, seed=seed + 50)},
        "coefficients": {"nu": float(seed)},
    }
    return PointTrajectory(**(values | changed))


def test_a_field_of_particles_is_not_called_as_a_position() -> None:
    swarm = trajectory(5, 0, positions=np.random.default_rng(0).random((T, 5, 2)), fields={"x": random(T, 5)})
    with pytest.raises(DataError, match=r"\bx\b"):
        stack_trajectories("all", [swarm], None)


def test_a_vector_has_a_component_for_each_axis() -> None:
    flow = random(T, 5, 3)
    assert list(split_components("v", flow, 3)) == ["v_x", "v_y", "v_z"]
    flow[..., 2] = 0
    assert list(split_components("v", flow, 2)) == ["v_x", "v_y"]
    for wrong in (random(T, 5, 9), random(T, 5, 3)):
        with pytest.raises(DataError, match=r"\bv\b"):
            split_components("v", wrong, 2)


def test_trajectories_of_different_meshes_become_one_source() -> None:
    trajectories = [trajectory(5, 0), trajectory(8, 1), trajectory(6, 2)]
    source = stack_trajectories("all", trajectories, None)
    assert (source.trajectories, source.frames, source.grid.shape) == (3, T, (8,))
    point_set = source.points(np.arange(3))
    for row, item in enumerate(trajectories):
        size = item.positions.shape[0]
        assert point_set.mask[row].tolist() == [1.0] * size + [0.0] * (8 - size)
        assert np.array_equal(point_set.coords[row, :size], item.positions.astype(np.float32))
        assert np.array_equal(read_trajectories(source, np.array([row]))[0, :, :size, 0], item.fields["u"])
        assert not read_trajectories(source, np.array([row]))[0, :, size:].any()
        assert np.array_equal(source.read_input_fields(np.array([row]))[0, :size, 0], item.inputs["f"])
    assert source.coefficient("nu").tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fields": {"v": random(T, 5)}}, "fields"),
        ({"times": TIMES + 0.01}, "times"),
        ({"fields": {"u": random(T, 4)}}, r"\bu\b.*shape"),
        ({"positions": np.zeros((5, 3))}, "axes"),
        ({"positions": np.random.default_rng(0).random((T, 5, 2))}, "move.*number 0"),
    ],
)
def test_trajectories_that_differ_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        stack_trajectories("all", [trajectory(5, 0), trajectory(5, 1, **changed)], None)


@pytest.mark.parametrize(("module", "name"), [("zarr", "mine.zarr"), ("meshio", "mine.pvd")])
def test_without_the_extra_a_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    path = tmp_path / name
    if module == "zarr":
        path.mkdir()
        (path / "zarr.json").write_text("{}")
    else:
        path.write_text("<VTKFile/>")
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(DataError, match=rf"{name}.*{module}.*ups_jax\[mesh\]"):
        open_file(path, "transient")


@pytest.mark.parametrize("text", ["no XML", "<VTKFile/>", '<VTKFile><DataSet file="a.vtu"/></VTKFile>'])
def test_a_series_without_frames_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.pvd").write_text(text)
    with pytest.raises(DataError, match=r"mine.pvd"):
        list_frames(tmp_path / "mine.pvd")


def test_a_frame_of_a_format_that_names_files_of_its_own_is_not_opened(tmp_path: Path) -> None:
    pytest.importorskip("meshio")
    (tmp_path / "a.xdmf").write_text("<Xdmf/>")
    frames = "".join(f'<DataSet timestep="{time}" file="a.xdmf"/>' for time in range(2))
    (tmp_path / "mine.pvd").write_text(f"<VTKFile>{frames}</VTKFile>")
    with pytest.raises(DataError, match=r"a\.xdmf.*\.vtu.*\.vtk"):
        open_file(tmp_path / "mine.pvd", "transient")


def test_particles_of_a_zarr_file(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    positions, velocities = random(3, T, 6, 3).cumsum(1), random(3, T, 6, 3, seed=1)
    root = zarr.open_group(str(tmp_path / "particles_train.zarr"), mode="w").create_group("particles_advect")
    for index in range(3):
        group = root.create_group(f"sample_{index:05d}")
        group.create_array("positions", data=positions[index])
        group.create_array("velocities", data=velocities[index])
        group.attrs.update({"radius": 0.2, "dt": 0.05})
    source = open_file(tmp_path / "particles_train.zarr", "transient")
    assert source.channel_names == ("x", "y", "z", "u", "v", "w") and source.grid.dt == pytest.approx(0.05)
    assert np.array_equal(read_trajectories(source, np.arange(3)), np.concatenate([positions, velocities], -1))
    with pytest.raises(DataError, match="x, y, z"):
        open_file(tmp_path / "particles_train.zarr", "transient", ("u", "v"))


def test_what_zarr_leaves_behind_where_it_fails_is_not_printed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("zarr")
    (tmp_path / "zarr.json").write_text('{"node_type": "group", "zarr_format": 9}')
    with pytest.raises(DataError, match=tmp_path.name):
        open_file(tmp_path, "transient")
    logging.getLogger("asyncio").error("Task exception was never retrieved\nfuture: <Task finished>")
    logging.getLogger("asyncio").error("another")
    assert [record.getMessage() for record in caplog.records] == ["another"]


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("positions", np.zeros(5), "positions"),
        ("positions", np.zeros((0, 2)), "positions"),
        ("positions", np.random.default_rng(0).random((5, 4)), "positions"),
        ("times", np.zeros((T, 2)), "times"),
        ("positions", np.random.default_rng(0).random((T + 1, 5, 2)), "times"),
    ],
)
def test_a_trajectory_of_other_shapes_than_one_has_is_refused(key: str, values: np.ndarray, message: str) -> None:
    item = trajectory(5, 0)
    # As files give them to users, whose shapes nobody checks.
    object.__setattr__(item, key, values)
    with pytest.raises(DataError, match=message):
        stack_trajectories("all", [item], None)


def test_meshes_and_grids_of_a_zarr_file(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    root = zarr.open_group(str(tmp_path / "mesh.zarr"), mode="w")
    written = random(2, T, 3, 4, 2)
    for index in range(2):
        group = root.create_group(f"sample_{index}")
        y, x = np.meshgrid(np.arange(3.0), np.arange(4.0), indexing="ij")
        group.create_array("coords", data=np.stack([x.ravel(), y.ravel()], -1))
        group.create_array("time", data=TIMES)
        group.create_group("fields").create_array("v", data=written[index])
    source = open_file(tmp_path / "mesh.zarr", "transient")
    assert source.channel_names == ("v_x", "v_y")
    assert np.array_equal(read_trajectories(source, np.arange(2)), written.reshape(2, T, 12, 2))
    zarr.open_group(str(tmp_path / "poisson.zarr"), mode="w").create_group("s").create_array("coords", data=np.ones(3))
    with pytest.raises(DataError, match=r"poisson\.zarr"):
        open_file(tmp_path / "poisson.zarr", "transient")


def test_a_folder_of_vtk_series_trains(tmp_path: Path) -> None:
    meshio = pytest.importorskip("meshio")
    points = np.concatenate([np.random.default_rng(0).random((7, 2)), np.zeros((7, 1))], axis=1)
    written = random(5, T, 7)
    for index in range(5):
        lines = []
        for frame in range(T):
            name = f"run{index}_{frame}.vtu"
            flow = np.stack([written[index, frame], -written[index, frame], 0 * written[index, frame]], -1)
            data = {"T": written[index, frame], "flow": flow}
            meshio.Mesh(points, [("triangle", np.array([[0, 1, 2]]))], point_data=data).write(tmp_path / name)
            lines.append(f'<DataSet timestep="{TIMES[frame]}" part="0" file="{name}"/>')
        (tmp_path / f"run{index}.pvd").write_text(f"<VTKFile><Collection>{''.join(lines)}</Collection></VTKFile>")
    source = open_file(tmp_path, "transient")
    assert source.channel_names == ("T", "flow_x", "flow_y") and source.grid.axes == ("x", "y")
    np.testing.assert_allclose(read_trajectories(source, np.arange(5))[..., 0], written, rtol=1e-6)
    np.testing.assert_allclose(read_trajectories(source, np.arange(5))[..., 2], -written, rtol=1e-6)
    values = {
        "data": {
            "tasks": [{"name": "mine", "path": str(tmp_path), "channels": ["T"]}],
            "split": {"val": 0.2, "test": 0.2},
        }
    }
    dataset = open_dataset(config.from_dict(values))
    assert dataset.task.scattered and dataset.task.dt == pytest.approx(0.1)
    (tmp_path / "run9.pvd").write_text(
        '<VTKFile><DataSet timestep="0" file="none.vtu"/><DataSet timestep="1" file="n"/></VTKFile>'
    )
    with pytest.raises(DataError, match="meshio"):
        open_file(tmp_path, "transient")
