"""A generated file is whole, reproducible and recognised; nothing half-written ever has its name."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from ups_jax import config, simulate
from ups_jax.core.errors import ConfigError, DataError, StorageError
from ups_jax.data import open_dataset
from ups_jax.simulate import solvers

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def quick(monkeypatch):
    """Replace the solver by numbers that its arguments decide; returns the calls."""
    calls = []

    def solve(task, preset, seed, report):
        calls.append((task, seed))
        rng = np.random.default_rng(seed)
        report("solved")
        shape = (preset.trajectories, preset.steps + 1, preset.points)
        return rng.normal(size=shape).astype(np.float32), rng.uniform(size=preset.trajectories).astype(np.float32)

    monkeypatch.setattr(solvers, "solve", solve)
    return calls


def configuration(root, **task):
    return config.from_dict({"data": {"root": str(root), "tasks": [{"name": "burgers1d", "preset": "tiny", **task}]}})


def test_the_same_seed_twice_gives_the_same_bytes(tmp_path):
    paths = [tmp_path / name for name in ("one.hdf5", "two.hdf5", "other.hdf5")]
    for path, seed in zip(paths, (0, 0, 1), strict=True):
        assert simulate.generate("advection1d", "tiny", path, seed, trajectories=4)
    one, two, other = (path.read_bytes() for path in paths)
    assert one == two and one != other


def test_a_generated_file_is_the_layout_and_opens_with_its_facts(tmp_path):
    cfg = configuration(
        tmp_path,
        periodic=["x"],
        conserved=["u"],
        coefficients={"nu": "log10"},
        symmetries=[{"reflect": ["x"], "negate": ["u"]}],
    )
    lines = []
    (path,) = simulate.generate_missing(cfg, lines.append)
    assert lines[-1] == "burgers1d: 40 of 40 trajectories"
    with h5py.File(path) as file:
        assert file["tensor"].shape == (40, 21, 64) and file["tensor"].dtype == np.float32
        np.testing.assert_allclose(file["x-coordinate"], -1 + np.arange(64) / 32)
        np.testing.assert_allclose(file["t-coordinate"], 0.05 * np.arange(22))
        assert file["parameters/nu"].shape == (40,)
        assert dict(file.attrs) == {
            "task": "burgers1d",
            "preset": "tiny",
            "seed": 0,
            "generator_version": "1",
            "boundary": "periodic",
        }
    dataset = open_dataset(cfg)
    assert dataset.notes == () and dataset.split_sizes == {"train": 32, "val": 4, "test": 4}
    assert dataset.condition_mask.all()


@pytest.mark.parametrize(
    "name, sizes, shape",
    [
        ("ks1d", (32, 4, 4), (64,)),
        ("ns2d", (15, 2, 3), (32, 32)),
        ("burgers1d_fine", (32, 4, 4), (64,)),
        ("advection_diffusion3d", (16, 2, 2), (8, 8, 8)),
    ],
)
def test_a_shipped_configuration_declares_what_its_data_keep(tmp_path, name, sizes, shape):
    cfg = config.load(ROOT / "configs" / f"{name}.yaml", [f"data.root={tmp_path}", "data.tasks.0.preset=tiny"])
    assert len(simulate.generate_missing(cfg)) == 1
    dataset = open_dataset(cfg)
    # No law of a point's neighbourhood explains vorticity, whose velocity comes from everywhere.
    assert all(name == "ns2d" and "symmetr" in note for note in dataset.notes)
    assert tuple(dataset.split_sizes.values()) == sizes and dataset.task.shape == shape
    assert all(dataset.task.periodic) and dataset.task.conserved == (0,) and dataset.task.symmetries


def test_a_symmetry_that_the_equation_lacks_is_seen_in_the_data(tmp_path):
    for broken in ("{negate: [u]}", "{reflect: [x]}"):
        options = [f"data.root={tmp_path}", "data.tasks.0.preset=tiny", f"data.tasks.0.symmetries=[{broken}]"]
        cfg = config.load(ROOT / "configs" / "ks1d.yaml", options)
        simulate.generate_missing(cfg)
        with pytest.raises(DataError, match=r"symmetr.*0"):
            open_dataset(cfg)


def test_a_steady_file_is_the_darcy_layout_and_opens(tmp_path):
    options = [f"data.root={tmp_path}", "data.tasks.0.preset=tiny"]
    cfg = config.load(ROOT / "configs" / "darcy2d.yaml", options)
    (path,) = simulate.generate_missing(cfg)
    with h5py.File(path) as file:
        assert file["nu"].shape == (40, 16, 16) and file["tensor"].shape == (40, 1, 16, 16)
        np.testing.assert_allclose(file["x-coordinate"], (np.arange(16) + 0.5) / 16)
        assert "t-coordinate" not in file and file.attrs["boundary"] == "dirichlet"
    dataset = open_dataset(cfg)
    assert dataset.task.kind == "steady" and dataset.task.symmetries and dataset.notes == ()
    assert dataset.task.origin == (1 / 32, 1 / 32) and dataset.task.spacing == (1 / 16, 1 / 16)


def test_a_file_that_is_there_is_used_and_not_solved_again(tmp_path, quick):
    cfg = configuration(tmp_path)
    assert len(simulate.generate_missing(cfg)) == 1 and simulate.generate_missing(cfg) == []
    assert not simulate.generate("burgers1d", "tiny", tmp_path / "burgers1d_tiny.hdf5")
    assert len(quick) == 1


def test_tasks_with_a_file_of_their_own_are_not_generated(tmp_path, quick):
    assert simulate.generate_missing(configuration(tmp_path, path=str(tmp_path / "mine.hdf5"))) == []
    assert not quick and not list(tmp_path.iterdir())


def test_a_file_of_another_origin_is_refused_with_the_mend(tmp_path, quick):
    path = tmp_path / "burgers1d_tiny.hdf5"
    simulate.generate("burgers1d", "tiny", path, seed=3, trajectories=5)
    assert simulate.generate_missing(configuration(tmp_path)) == []
    with pytest.raises(DataError, match=r"seed.*3.*0.*--overwrite"):
        simulate.generate("burgers1d", "tiny", path, trajectories=5)
    with pytest.raises(DataError, match=r"trajectories.*5.*40"):
        simulate.generate("burgers1d", "tiny", path, seed=3)
    with h5py.File(path, "a") as file:
        file.attrs["generator_version"] = "0"
    with pytest.raises(DataError, match=r"generator_version.*0.*1.*--overwrite"):
        simulate.generate_missing(configuration(tmp_path))
    assert simulate.generate("burgers1d", "tiny", path, overwrite=True)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"--overwrite"):
        simulate.generate_missing(configuration(tmp_path))


def test_solutions_that_are_not_finite_are_refused(tmp_path, quick, monkeypatch):
    good = solvers.solve

    def broken(*arguments):
        fields, coefficients = good(*arguments)
        fields[[3, 8], 5:] = np.nan
        return fields, coefficients

    monkeypatch.setattr(solvers, "solve", broken)
    with pytest.raises(DataError, match=r"burgers1d.*tiny.*2 of 40"):
        simulate.generate("burgers1d", "tiny", tmp_path / "data.hdf5")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_nothing_and_says_so(tmp_path, quick, monkeypatch, call):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(StorageError, match=os.strerror(errno.ENOSPC)):
        simulate.generate("burgers1d", "tiny", tmp_path / "data.hdf5")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path, quick):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        simulate.generate("burgers1d", "tiny", tmp_path / "file" / "data.hdf5")


WRITER = """
import os, sys
import numpy as np
from pathlib import Path
from ups_jax.simulate import files, presets
preset = presets.get_preset("burgers1d", "tiny")
origin = files.Provenance(task="burgers1d", preset="tiny", seed=0, trajectories=40)
values = np.zeros((40, 21, 64), np.float32)
datasets = files.spectral_datasets(preset, values, values[:, 0, 0])
"""


@pytest.mark.multiprocess
def test_a_killed_generator_leaves_no_half_file_and_the_next_one_writes(tmp_path, quick):
    path = tmp_path / "burgers1d_tiny.hdf5"
    code = f"""{WRITER}
def stop(handle):
    print("writing", flush=True)
    sys.stdin.read()
os.fsync = stop
files.write_file(Path({str(path)!r}), origin, datasets, "periodic")
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipes) as process:
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(signal.SIGKILL)
    assert not path.exists() and len(list(tmp_path.iterdir())) == 1
    assert len(simulate.generate_missing(configuration(tmp_path))) == 1


@pytest.mark.multiprocess
def test_generators_that_run_at_once_leave_one_whole_file(tmp_path):
    path = tmp_path / "burgers1d_tiny.hdf5"
    code = f"""{WRITER}
for _ in range(50):
    files.write_file(Path({str(path)!r}), origin, datasets, "periodic")
    files.check_provenance(Path({str(path)!r}), origin)
"""
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert list(tmp_path.iterdir()) == [path]


def test_the_script_writes_says_where_and_fails_in_one_line(tmp_path, main):
    options = ("--task", "advection1d", "--preset", "tiny", "--trajectories", "3", "--out", str(tmp_path))
    path = tmp_path / "advection1d_tiny.hdf5"
    first = main("generate_data.py", *options)
    assert (first.returncode, first.stdout, first.stderr) == (0, f"{path}\n", "")
    assert main("generate_data.py", *options).stdout == f"{path} (already exists)\n"
    unknown = main("generate_data.py", "--task", "advektion1d", "--out", str(tmp_path))
    assert unknown.returncode == ConfigError.exit_code and unknown.stderr.count("\n") == 1
    assert "'advection1d'" in unknown.stderr
