"""Every layout survives the way to shards and back to HDF5, to the last bit; broken shards and conversions are told."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import command, quiet
from travelling_waves import waves
from written_layouts import centres, random, write_cfd, write_incompressible, write_seeds, write_well

from ups_jax.core.errors import ConfigError, DataError
from ups_jax.data import batch_at, open_dataset
from ups_jax.data.inspection import config_yaml, inspect
from ups_jax.data.shards.hdf5_writer import write_hdf5
from ups_jax.data.shards.writer import ShardSizes, convert_to_shards
from ups_jax.data.sources import ShardsSource, Source, detect_layout, open_file
from ups_jax.data.sources.base import read_trajectories
from ups_jax.data.sources.pdebench_tensor import TensorSource
from ups_jax.data.sources.shards import read_manifest, verify_shards

# A record holds two frames of the smallest grid, and a shard one trajectory of the largest.
SMALL = ShardSizes(record_kib=1, shard_mib=1)


def write_tensor(path: Path, dims: int) -> None:
    with h5py.File(path, "w") as file:
        file["tensor"] = random(4, 5, *(8, 6)[:dims])
        for axis, points in zip("xy", (8, 6)[:dims], strict=False):
            file[f"{axis}-coordinate"] = centres(points)
        file["t-coordinate"] = np.linspace(0, 0.25, 6, dtype=np.float32)
        file["parameters/nu"] = np.array([0.1, 0.2, np.nan, 0.3])
        file.attrs.update({"boundary": "periodic", "rho": 0.1, "task": "mine"})


def write_darcy(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["tensor"], file["nu"] = random(4, 1, 8, 6), random(4, 8, 6, seed=1)
        file["x-coordinate"], file["y-coordinate"] = (np.arange(8) + 0.5) / 8, (np.arange(6) + 0.5) / 6
        file.attrs["beta"] = 1.0


def write_described(path: Path) -> None:
    np.savez(path.with_name("mine.npz"), a=random(4, 8, 5, 2), nu=np.arange(4.0))
    path.write_text(
        "file: mine.npz\nfields: a\nchannels: [v, u]\naxes: [trajectory, x, time, channel]\n"
        "time: [0.3, 0.1]\nx: [-0.7, 0.07]\ncoefficients: {nu: nu, rho: 1.2}\n"
    )


FILES: dict[str, Callable[[Path], object]] = {
    "advection_beta0.4.hdf5": lambda path: write_tensor(path, 1),
    "burgers.hdf5": lambda path: write_tensor(path, 2),
    "darcy_beta1.0.hdf5": write_darcy,
    "1D_CFD_Rand_Eta0.1_Zeta0.1_periodic_Train.hdf5": lambda path: write_cfd(path, 1),
    "2D_CFD_Rand_M0.1_Eta1e-08_Zeta1e-08_periodic_Train.hdf5": lambda path: write_cfd(path, 2),
    "3D_CFD_Rand_M1.0.hdf5": lambda path: write_cfd(path, 3),
    "1D_diff-sorp_NA_NA.h5": lambda path: write_seeds(path, 1, 1),
    "2D_diff-react_NA_NA.h5": lambda path: write_seeds(path, 2, 2),
    "ns_incom_inhom_2d_512-0.h5": lambda path: write_incompressible(path, 3),
    "made_up_1.hdf5": lambda path: write_well(path, 1),
    "made_up_2.hdf5": lambda path: write_well(path, 2),
    "made_up_3.hdf5": lambda path: write_well(path, 3),
    "mine.yaml": write_described,
}


def check_same(source: Source, other: Source) -> None:
    """To the last bit: fields, given fields, grid, times, coefficients, names."""
    ids = np.arange(source.trajectories)
    np.testing.assert_array_equal(read_trajectories(other, ids), read_trajectories(source, ids), strict=True)
    np.testing.assert_array_equal(other.read_input_fields(ids), source.read_input_fields(ids), strict=True)
    assert (other.grid, other.frames, other.input_channels) == (source.grid, source.frames, source.input_channels)
    constants = getattr(source, "constants", dict)()
    for name in (*source.coefficient_names(), *constants, "beta", "Nu", "nothing"):
        expected, actual = source.coefficient(name), other.coefficient(name)
        assert (expected is None) == (actual is None), name
        if expected is not None:
            np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("name", FILES)
def test_a_layout_comes_back_from_shards_and_from_hdf5(tmp_path: Path, name: str) -> None:
    path, folder, back = tmp_path / name, tmp_path / "shards", tmp_path / "back" / Path(name).with_suffix(".hdf5")
    FILES[name](path)
    source = detect_layout(path).open(path, None)
    assert convert_to_shards(path, folder, SMALL) and not convert_to_shards(path, folder, SMALL)
    shards = pickle.loads(pickle.dumps(open_file(folder, detect_layout(path).kind)))
    check_same(source, shards)
    assert shards.channel_names == source.channel_names
    assert shards.coefficient_names() == source.coefficient_names()
    last = source.frames - 1
    ids, frames = np.array([2, 0, 2]), np.array([[0, last], [0, last], [0, last]]) if last else np.zeros((3, 1), int)
    np.testing.assert_array_equal(shards.read(ids, frames), source.read(ids, frames))
    np.testing.assert_array_equal(shards.read_input_fields(ids), source.read_input_fields(ids))

    write_hdf5(folder, back)
    again = detect_layout(back).open(back, None)
    check_same(source, again)
    if source.channel_names:
        assert again.channel_names == source.channel_names
    # A folder of shards cut anew, in one piece and compressed, holds the same and knows its origin.
    convert_to_shards(folder, tmp_path / "anew", ShardSizes(compression_level=3))
    anew = ShardsSource(tmp_path / "anew")
    check_same(source, anew)
    assert anew.original_name == name and len(anew.manifest.shards) == 1


def test_channels_are_chosen_when_converting_and_when_reading(tmp_path: Path) -> None:
    path = tmp_path / "flow.hdf5"
    written = write_cfd(path, 2)
    convert_to_shards(path, tmp_path / "two", SMALL, ("Vx", "pressure"))
    expected = np.stack([written["Vx"], written["pressure"]], -1)
    ids = np.arange(4)
    np.testing.assert_array_equal(read_trajectories(ShardsSource(tmp_path / "two"), ids), expected)
    one = ShardsSource(tmp_path / "two", ("pressure",))
    np.testing.assert_array_equal(read_trajectories(one, ids), expected[..., 1:])
    with pytest.raises(DataError, match=r"'density'.*Vx, pressure"):
        ShardsSource(tmp_path / "two", ("density",))


@pytest.mark.parametrize("method", ["random", "pdebench", "hash"])
def test_training_from_shards_draws_the_same_batches(tmp_path: Path, configure, write, method: str) -> None:
    path = write(waves(30)[0], parameters_beta=waves(30)[1])
    convert_to_shards(path, tmp_path / "elsewhere", SMALL)
    settings = {"loader": {"memory_gib": 0}, "split": {"method": method}}
    one, other = (
        configure(path=str(where), data=settings, coefficients={"beta": "linear"})
        for where in (path, tmp_path / "elsewhere")
    )
    from_file, from_shards = open_dataset(one), open_dataset(other)
    assert isinstance(from_shards.source, ShardsSource)
    assert from_shards.fingerprint == from_file.fingerprint and from_shards.task == from_file.task
    for n in (0, 7):
        expected, actual = batch_at(from_file, one, "operator", n), batch_at(from_shards, other, "operator", n)
        for key, values in expected.arrays.items():
            np.testing.assert_array_equal(actual.arrays[key], values, strict=True)


def test_seed_groups_keep_their_own_split(tmp_path: Path, configure) -> None:
    write_seeds(tmp_path / "a.h5", 1, 1, tuple(f"{k:04d}" for k in range(10)))
    convert_to_shards(tmp_path / "a.h5", tmp_path / "a", SMALL)
    for where in ("a.h5", "a"):
        dataset = open_dataset(configure(path=str(tmp_path / where), data={"split": {"method": "pdebench"}}))
        assert dataset.splits.test.tolist() == [9], where


def test_a_folder_of_splits_is_converted_file_by_file(tmp_path: Path, configure, main) -> None:
    for k, role in enumerate(("train", "train", "test")):
        (tmp_path / "all" / role).mkdir(parents=True, exist_ok=True)
        write_well(tmp_path / "all" / role / f"{k}.hdf5", 1)
        with h5py.File(tmp_path / "all" / role / f"{k}.hdf5", "a") as file:
            file["t0_fields/density"][...] += k
    result = main("convert_data.py", str(tmp_path / "all"), str(tmp_path / "out"))
    assert result.returncode == 0 and (tmp_path / "out" / "train" / "1" / "manifest.json").is_file(), result.stderr
    before, after = (
        open_dataset(configure(path=str(tmp_path / name), channels=["density"])) for name in ("all", "out")
    )
    assert after.fingerprint == before.fingerprint and after.split_sizes == before.split_sizes


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes as Linux does")
def test_a_window_costs_its_records_and_no_more(tmp_path: Path, write) -> None:
    path = write(random(8, 400, 256))
    convert_to_shards(path, tmp_path / "shards", ShardSizes(record_kib=16))
    source = ShardsSource(tmp_path / "shards")
    source.read(np.array([0]), np.array([[0, 1, 2]]))

    def read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    rng, before = np.random.default_rng(0), read()
    for _ in range(40):
        # Within frames 16 k to 16 k + 15, which are a record of 16 KiB; a trajectory has 400 KiB.
        source.read(rng.integers(0, 8, 1), 16 * rng.integers(0, 25) + np.array([[3, 8, 13]]))
    assert 40 * 16 * 1024 <= read() - before < 40 * 17 * 1024


def stop_at(monkeypatch: pytest.MonkeyPatch, trajectory: int) -> None:
    read = TensorSource.read

    def interrupted(source: TensorSource, ids: np.ndarray, frames: np.ndarray) -> np.ndarray:
        if trajectory in ids:
            raise KeyboardInterrupt
        return read(source, ids, frames)

    monkeypatch.setattr(TensorSource, "read", interrupted)


def three_shards(tmp_path: Path, write) -> Path:
    return write(random(6, 128, 1024), "long.hdf5")


@pytest.mark.parametrize("damage", [False, True])
def test_an_interrupted_conversion_goes_on(tmp_path: Path, write, monkeypatch, damage: bool) -> None:
    path, out = three_shards(tmp_path, write), tmp_path / "shards"
    sizes = ShardSizes(shard_mib=1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 5)
        convert_to_shards(path, out, sizes)
    files = sorted(out.glob("*.array_record"))
    assert len(files) == 2 and not list(out.glob("*.tmp"))
    with pytest.raises(DataError, match=out.name):
        ShardsSource(out)
    if damage:
        content = bytearray(files[1].read_bytes())
        content[100_000] ^= 1
        files[1].write_bytes(content)
    before = [file.stat().st_ino for file in files]
    assert convert_to_shards(path, out, sizes)
    kept = [file.stat().st_ino == inode for file, inode in zip(files, before, strict=True)]
    assert kept == [True, not damage]
    convert_to_shards(path, tmp_path / "at once", sizes)
    assert read_manifest(out) == read_manifest(tmp_path / "at once")
    check_same(open_file(path, "transient"), ShardsSource(out))
    assert not (out / "unfinished.json").exists()


def test_who_was_killed_with_the_manifest_written_leaves_what_an_undisturbed_one_does(tmp_path: Path, write) -> None:
    path, out = write(random(4, 5, 8), "short.hdf5"), tmp_path / "shards"
    assert convert_to_shards(path, out, SMALL)
    before = sorted(item.name for item in out.iterdir())
    (out / "unfinished.json").write_text((out / "manifest.json").read_text())
    assert not convert_to_shards(path, out, SMALL)
    assert sorted(item.name for item in out.iterdir()) == before


def test_another_file_or_other_settings_are_refused(tmp_path: Path, write, monkeypatch) -> None:
    path, out = three_shards(tmp_path, write), tmp_path / "shards"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 3)
        convert_to_shards(path, out, ShardSizes(shard_mib=1))
    with pytest.raises(DataError, match=r"long\.hdf5"):
        convert_to_shards(path, out, ShardSizes(shard_mib=2))
    with h5py.File(path, "a") as file:
        file["tensor"][0] = 1
        file["extra"] = 1.0
    with pytest.raises(DataError, match=r"long\.hdf5.*--overwrite"):
        convert_to_shards(path, out, ShardSizes(shard_mib=1))
    assert convert_to_shards(path, out, ShardSizes(shard_mib=1), overwrite=True)
    check_same(open_file(path, "transient"), ShardsSource(out))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(DataError, match=r"thesis\.tex"):
        convert_to_shards(path, tmp_path / "other", SMALL)


def test_a_second_writer_is_refused(tmp_path: Path, write, main) -> None:
    path, out = write(random(2, 5, 8)), tmp_path / "shards"
    out.mkdir()
    with (out / ".lock").open("a+") as handle:
        handle.write("process 4711 on a host")
        handle.flush()
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(ConfigError, match="4711"):
            convert_to_shards(path, out, SMALL)
        result = main("convert_data.py", str(path), str(out))
        assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert convert_to_shards(path, out, SMALL)


# The command is started with a limit, for which Python forks; a process of tests may have jax.
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
@pytest.mark.parametrize("out", ["shards", "back.hdf5"])
def test_a_full_disk_is_told_and_leaves_nothing_half(tmp_path: Path, write, main, out: str) -> None:
    path = write(random(4, 64, 256))

    def little_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    arguments = command("convert_data.py", str(path), str(tmp_path / out))
    result = subprocess.run(arguments, preexec_fn=little_room, capture_output=True, text=True, env=quiet(), timeout=60)
    assert result.returncode == 7, result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert os.strerror(errno.EFBIG) in result.stderr
    left = [item.name for item in tmp_path.rglob("*") if item.is_file() and item.name not in (".lock", path.name)]
    assert left == []
    again = main("convert_data.py", str(path), str(tmp_path / out))
    assert again.returncode == 0, again.stderr


def test_a_bad_source_is_told(tmp_path: Path, write, main) -> None:
    fields = random(3, 5, 8)
    fields[1, 3, 0] = np.nan
    path = write(fields)
    for source, message in (
        (path, "frame 3 of trajectory 1"),
        (tmp_path / "nothing.hdf5", "nothing.hdf5"),
        (tmp_path / "text.hdf5", "text.hdf5"),
    ):
        (tmp_path / "text.hdf5").write_text("no")
        result = main("convert_data.py", str(source), str(tmp_path / "out"))
        assert result.returncode == 3 and message in result.stderr and result.stderr.count("\n") == 1
    assert not list((tmp_path / "out").glob("*.array_record"))
    darcy = tmp_path / "darcy.hdf5"
    write_darcy(darcy)
    with h5py.File(darcy, "a") as file:
        file["nu"][2, 0, 0] = np.inf
    with pytest.raises(DataError, match="solution 2"):
        convert_to_shards(darcy, tmp_path / "steady", SMALL)
    result = main("convert_data.py", str(tmp_path / "out"))
    assert result.returncode == 2 and "--verify" in result.stderr


@pytest.fixture
def converted(tmp_path: Path, write) -> Path:
    convert_to_shards(three_shards(tmp_path, write), tmp_path / "shards", ShardSizes(shard_mib=1))
    return tmp_path / "shards"


def test_a_flipped_bit_is_seen_when_its_record_is_read(converted: Path, main) -> None:
    file = sorted(converted.glob("*.array_record"))[1]
    content = bytearray(file.read_bytes())
    content[len(content) // 4] ^= 4
    file.write_bytes(content)
    source = ShardsSource(converted)
    read_trajectories(source, np.array([0, 5]))
    with pytest.raises(DataError, match=file.name):
        read_trajectories(source, np.arange(6))
    with pytest.raises(DataError, match=file.name):
        verify_shards(converted, source.manifest)
    result = main("convert_data.py", str(converted), "--verify")
    assert result.returncode == 3 and file.name in result.stderr


def test_shards_that_are_not_their_own_are_refused(converted: Path, tmp_path: Path, main) -> None:
    result = main("convert_data.py", str(converted), "--verify")
    assert result.returncode == 0 and "3 shards" in result.stdout
    first, second = sorted(converted.glob("*.array_record"))[:2]
    shutil.move(first, tmp_path / "aside")
    with pytest.raises(DataError, match=f"{first.name}.*{os.strerror(errno.ENOENT)}"):
        ShardsSource(converted)
    shutil.copy(second, first)
    with pytest.raises(DataError, match="record 0"):
        read_trajectories(ShardsSource(converted), np.array([0]))
    first.write_bytes(second.read_bytes()[:-1])
    with pytest.raises(DataError, match=f"{first.name}.* bytes"):
        ShardsSource(converted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda said: said["grid"].update(dt=0.1), r"manifest\.json"),
        (lambda said: said.pop("shards"), r"manifest\.json"),
        (lambda said: said.update(frames="many"), r"manifest\.json"),
        (lambda said: said.update(version=2), "version 2"),
    ],
)
def test_a_changed_manifest_is_refused(converted: Path, change: Callable[[dict], object], message: str) -> None:
    file = converted / "manifest.json"
    said = json.loads(file.read_text())
    change(said)
    file.write_text(json.dumps(said))
    with pytest.raises(DataError, match=message):
        ShardsSource(converted)


def test_the_manifest_has_the_statistics_of_all_fields(tmp_path: Path) -> None:
    write_darcy(tmp_path / "darcy.hdf5")
    convert_to_shards(tmp_path / "darcy.hdf5", tmp_path / "shards", SMALL)
    solution, permeability = read_manifest(tmp_path / "shards").statistics
    for statistics, values in ((solution, random(4, 1, 8, 6)), (permeability, random(4, 8, 6, seed=1))):
        exact = values.astype(np.float64)
        assert (statistics.count, statistics.minimum, statistics.maximum) == (exact.size, exact.min(), exact.max())
        assert (statistics.mean, statistics.std) == (
            pytest.approx(exact.mean(), rel=1e-12),
            pytest.approx(exact.std(), rel=1e-12),
        )


def test_shards_are_inspected_as_the_file_they_come_from(tmp_path: Path) -> None:
    path = tmp_path / "1D_Burgers_Sols_Nu0.1.hdf5"
    write_tensor(path, 1)
    with h5py.File(path, "a") as file:
        del file.attrs["task"]
    convert_to_shards(path, tmp_path / "shards", SMALL)
    before, after = inspect(path), inspect(tmp_path / "shards")
    assert after.channels == before.channels and after.boundary == "periodic" and after.is_usable
    assert config_yaml(after) == config_yaml(before).replace(str(path), str(tmp_path / "shards"))


@pytest.mark.parametrize(("first", "step"), [(0.0, 0.1), (-1.0, 2 / 96), (1 / 3, 1e-3 / 7), (5e-7, 1e-6), (-0.7, 0.07)])
def test_grid_and_times_are_read_back_to_the_last_bit(tmp_path: Path, first: float, step: float) -> None:
    np.save(tmp_path / "a.npy", random(2, 3, 41))
    (tmp_path / "a.yaml").write_text(
        f"file: a.npy\nfields: a\naxes: [trajectory, time, x]\ntime: [{step!r}, {step!r}]\nx: [{first!r}, {step!r}]\n"
    )
    write_hdf5(tmp_path / "a.yaml", tmp_path / "a.hdf5")
    grid = open_file(tmp_path / "a.hdf5", "transient").grid
    assert (grid.origin, grid.spacing, grid.start, grid.dt) == ((first,), (step,), step, step)
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        # Numbers that do not fit their attributes are the ones that count.
        file["x-coordinate"][...] = np.arange(41)
    assert open_file(tmp_path / "a.hdf5", "transient").grid.spacing == (1.0,)


def test_several_threads_read_at_once(tmp_path: Path, write) -> None:
    path = three_shards(tmp_path, write)
    convert_to_shards(path, tmp_path / "shards", ShardSizes(record_kib=16, shard_mib=1))
    source, whole = ShardsSource(tmp_path / "shards"), read_trajectories(open_file(path, "transient"), np.arange(6))

    def same(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        ids, frames = rng.integers(0, 6, 8), rng.integers(0, 126, 8)[:, None] + np.arange(3)
        return bool((source.read(ids, frames) == whole[ids[:, None], frames]).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(same, range(64)))
