"""Files named in a file must lie in its folder or below: other names are one-line errors; user links are followed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import in_process

from ups_jax.core.errors import CheckpointError, DataError, UserError
from ups_jax.core.files import path_inside
from ups_jax.data.shards.writer import ShardSizes, convert_to_shards
from ups_jax.data.sources import open_file
from ups_jax.data.sources import shards as manifest
from ups_jax.data.sources.described_arrays import array_path
from ups_jax.data.sources.vtk import list_frames
from ups_jax.pipeline.champions import SCHEMA_VERSION, Champions

OUTSIDE = ("../secret.npz", "a/../../secret.npz", "..", "/etc/passwd", "/", "\0")
Reader = Callable[[], object]


def champion(folder: Path, **changed: object) -> Reader:
    values = {"schema_version": SCHEMA_VERSION, "task": "waves", "protocol": "f00d", "copy": "run", "history": []}
    values |= {"evaluations": {"full": {"files": ["run/evaluation/full.json"]}}, "promoted_at": ""}
    file = folder / "waves" / "f00d" / "champion.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(values))
    assert Champions(folder).read_all()
    file.write_text(json.dumps(values | changed))
    return Champions(folder).read_all


def champion_copy(folder: Path, name: str) -> Reader:
    return champion(folder, copy=name)


def champion_before(folder: Path, name: str) -> Reader:
    earlier = {"task": "waves", "protocol": "f00d", "copy": name, "evaluations": {}}
    return champion(folder, history=[earlier])


def champion_evaluation(folder: Path, name: str) -> Reader:
    return champion(folder, evaluations={"full": {"files": [name]}})


def champion_protocol(folder: Path, name: str) -> Reader:
    return champion(folder, protocol=name)


def champion_task(folder: Path, name: str) -> Reader:
    return champion(folder, task=name)


def description(folder: Path, name: str) -> Reader:
    text = json.dumps(name)
    (folder / "mine.yaml").write_text(
        f"file: {text}\nfields: {{u: u}}\naxes: [trajectory, time, x]\ntime: [0, 1]\nx: [0, 1]\n"
    )
    return lambda: open_file(folder / "mine.yaml", "transient")


def conversion(folder: Path, name: str) -> Reader:
    return lambda: array_path(folder / "mine.yaml", {"file": name})


def shards(folder: Path, name: str) -> Reader:
    np.savez(folder / "mine.npz", u=np.random.default_rng(0).random((2, 3, 4)).astype(np.float32))
    description(folder, "mine.npz")
    convert_to_shards(folder / "mine.yaml", folder / "shards", ShardSizes())
    original = manifest.read_manifest(folder / "shards")
    changed = replace(original, shards=tuple(replace(shard, file=name) for shard in original.shards))
    (folder / "shards" / manifest.MANIFEST).write_text(changed.text)
    return lambda: open_file(folder / "shards", "transient")


def series(folder: Path, name: str) -> Reader:
    written = name.replace("\0", "/etc/passwd")
    (folder / "mine.pvd").write_text(f'<VTKFile><DataSet timestep="0" file="{written}"/></VTKFile>')
    return lambda: list_frames(folder / "mine.pvd")


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize(
    "written",
    [
        *(description, conversion, shards, series),
        *(champion_copy, champion_before, champion_evaluation, champion_protocol, champion_task),
    ],
)
def test_a_name_that_leads_out_of_the_folder_is_refused(
    tmp_path: Path, written: Callable[[Path, str], Reader], name: str
) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    np.savez(tmp_path / "secret.npz", u=np.zeros((2, 3, 4), np.float32))
    read = written(folder, name)
    with pytest.raises(UserError) as caught:
        read()
    assert isinstance(caught.value, CheckpointError if "champion" in written.__name__ else DataError)
    message = str(caught.value)
    assert "\n" not in message and str(folder) in message


def test_names_below_the_folder_and_links_of_the_user_go_on(tmp_path: Path) -> None:
    kept = tmp_path / "disk" / "kept"
    kept.mkdir(parents=True)
    np.savez(kept / "mine.npz", u=np.ones((2, 3, 4), np.float32))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked").symlink_to(kept)
    (tmp_path / "data" / "linked.npz").symlink_to(kept / "mine.npz")
    (tmp_path / "project").symlink_to(tmp_path / "data")
    for name in ("linked.npz", "linked/mine.npz", "./linked/../linked.npz"):
        read = description(tmp_path / "project", name)
        assert read().trajectories == 2  # type: ignore[attr-defined]
    assert path_inside(Path("a/../b.yaml"), "file", "..mine.npz", DataError) == Path("a/../..mine.npz")


def external_link(file: h5py.File, other: str) -> None:
    file["u"] = h5py.ExternalLink(other, "u")


def external_group(file: h5py.File, other: str) -> None:
    file.create_group("deep/er")["own"] = h5py.ExternalLink(other, "/")
    file["u"] = h5py.SoftLink("deep/er/own/u")


def external_storage(file: h5py.File, other: str) -> None:
    file.create_dataset("u", (2, 3, 4), "f4", external=[(other, 0, 96)])


def virtual(file: h5py.File, other: str) -> None:
    layout = h5py.VirtualLayout((2, 3, 4), "f4")
    layout[:] = h5py.VirtualSource(other, "u", (2, 3, 4))
    file.create_virtual_dataset("u", layout)


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("write", [external_link, external_group, external_storage, virtual])
def test_an_hdf5_file_opens_no_other_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], write: Callable[[h5py.File, str], None], absolute: bool
) -> None:
    other = tmp_path / "other.hdf5"
    with h5py.File(other, "w") as file:
        file["u"] = np.ones((2, 3, 4), np.float32)
    with h5py.File(tmp_path / "mine.hdf5", "w") as file:
        write(file, str(other) if absolute else os.path.relpath(other))
    description(tmp_path, "mine.hdf5")
    for path in (tmp_path / "mine.yaml", tmp_path / "mine.hdf5"):
        assert in_process("inspect_data.py", path, "--no-picture") == 3
        errors = capsys.readouterr().err
        assert errors.count("\n") == 1 and "mine.hdf5: `" in errors


def test_links_within_an_hdf5_file_are_followed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "mine.hdf5", "w") as file:
        file["deep/v"] = np.ones((2, 3, 4), np.float32)
        file["deep/again"] = file["deep"]
        file["soft"] = h5py.SoftLink("deep/again/v")
        virtual(file, ".")
        layout = h5py.VirtualLayout((2, 3, 4), "f4")
        layout[:] = h5py.VirtualSource(file["deep/v"])
        file.create_virtual_dataset("w", layout)
    for name in ("soft", "w"):
        (tmp_path / "mine.yaml").write_text(
            f"file: mine.hdf5\nfields: {name}\naxes: [trajectory, time, x]\ntime: [0, 1]\nx: [0, 1]\n"
        )
        source = open_file(tmp_path / "mine.yaml", "transient")
        assert source.read(np.array([1]), np.array([[0, 2]])).tolist() == np.ones((1, 2, 4, 1)).tolist()
