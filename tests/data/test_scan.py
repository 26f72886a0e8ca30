"""A scan gives the sums of NumPy, hashes that identify trajectories, and a record that is stored and verified."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from travelling_waves import DT, SPACING, waves

from ups_jax.core.errors import DataError
from ups_jax.data import from_arrays, open_dataset, scan, scan_cache
from ups_jax.data.scan import ScanRecord, concatenate_records, scan_chunk
from ups_jax.data.sources.points import PointSet

NO_INPUTS = np.empty((5, 7, 6, 0), np.float32)


def random_fields(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("stride", [1, 3, 12])
@pytest.mark.parametrize("block", [8, 200, 10**6])
def test_sums_are_those_of_numpy_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch, stride: int, block: int) -> None:
    monkeypatch.setattr(scan, "_BLOCK_VALUES", block)
    values, inputs = random_fields(5, 11, 7, 6, 2), random_fields(5, 7, 6, 3, seed=1)
    record, exact = scan_chunk(values, inputs, stride), values.astype(np.float64)
    change = exact[:, stride:] - exact[:, : max(0, 11 - stride)]
    for sums, expected in (
        (record.sums, exact.sum((2, 3))),
        (record.squares, (exact**2).sum((2, 3))),
        (record.changes, (change**2).sum((2, 3))),
        (record.input_sums, inputs.astype(np.float64).sum((1, 2))),
        (record.input_squares, (inputs.astype(np.float64) ** 2).sum((1, 2))),
    ):
        np.testing.assert_allclose(sums, expected, rtol=1e-12, atol=1e-11)
    # Sums and hashes of a trajectory do not depend on the others in its chunk.
    parts = concatenate_records([scan_chunk(values[i : i + 1], inputs[i : i + 1], stride) for i in range(5)])
    for name, array in vars(record).items():
        np.testing.assert_array_equal(getattr(parts, name), array, err_msg=name)


def test_every_change_of_a_bit_changes_the_hash() -> None:
    """Also of signs, which are the upper bits of 64-bit words, and of two at once, which could cancel."""
    values = random_fields(1, 3, 5)
    hashes = {scan._hash_rows(values).tobytes()}
    bits = values.view(np.uint32).reshape(-1)
    for first in range(15):
        for second in range(first, 15):
            for bit in (0, 22, 30, 31):
                changed = bits.copy()
                changed[first] ^= np.uint32(1 << bit)
                if second > first:
                    changed[second] ^= np.uint32(1 << bit)
                hashes.add(scan._hash_rows(changed.view(np.float32).reshape(values.shape)).tobytes())
    assert len(hashes) == 1 + 4 * 15 * 16 // 2
    # Exchanged frames, and zeros at the end.
    hashes |= {
        scan._hash_rows(values[:, ::-1]).tobytes(),
        scan._hash_rows(np.pad(values, ((0, 0), (0, 1), (0, 0)))).tobytes(),
    }
    assert len(hashes) == 3 + 4 * 15 * 16 // 2


def test_the_hash_never_changes() -> None:
    """Runs record fingerprints that contain it."""
    values = np.arange(2 * 70_001, dtype=np.float32).reshape(2, -1)
    assert hashlib.sha256(scan._hash_rows(values).tobytes()).hexdigest()[:16] == "115f25347ad75589"


def test_points_and_inputs_belong_to_the_hash() -> None:
    values, inputs = random_fields(2, 3, 6, 1), random_fields(2, 6, 1)
    points = PointSet(coords=random_fields(2, 6, 2), mask=np.ones((2, 6), np.float32))
    other_points = PointSet(coords=points.coords + 1, mask=points.mask)
    records = [
        scan_chunk(values, inputs, 1, points),
        scan_chunk(values, inputs, 1, other_points),
        scan_chunk(values, inputs + 1, 1, points),
    ]
    assert len({record.hashes.tobytes() for record in records}) == 3


def test_nan_is_found_with_the_points_that_all_bad_frames_share() -> None:
    values = random_fields(5, 4, 7, 6, 2)
    values[1, 2, 3, 3, 0] = np.nan
    values[4, 0, 3, 3, 1] = values[4, 0, 0, 0, 1] = np.inf
    record = scan_chunk(values, NO_INPUTS, 1)
    assert np.argwhere(~record.frame_is_finite).tolist() == [[1, 2], [4, 0]]
    assert np.flatnonzero(record.common_bad_points).tolist() == [21]
    assert np.flatnonzero(record.all_bad_points).tolist() == [0, 21]
    with pytest.raises(DataError, match="NaN or Inf in 2 frames, first in frame 2 of trajectory 1"):
        scan.check_finite(record, "file")


def test_a_fixed_mask_has_its_own_message(configure: Any) -> None:
    fields, _ = waves()
    fields[:, :, 5:8] = np.nan
    with pytest.raises(DataError, match="same 3 of 32 points in every frame"):
        from_arrays(configure(), fields, DT, origin=(-1.0,), spacing=(SPACING,))


@pytest.fixture
def stored(write: Any, configure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Any, list[int]]:
    """A file whose record is stored, its configuration, and the sizes of the chunks that scans read."""
    monkeypatch.setattr(scan_cache, "MIN_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    read: list[int] = []
    chunks = scan_cache.trajectory_chunks

    def counted(*arguments: Any) -> Any:
        for ids, values in chunks(*arguments):
            read.append(len(ids))
            yield ids, values

    monkeypatch.setattr(scan_cache, "trajectory_chunks", counted)
    path = write(waves()[0])
    return path, configure(path=str(path)), read


@pytest.mark.parametrize("memory", [0, 1])
def test_a_file_is_scanned_once(stored: Any, memory: float) -> None:
    from dataclasses import replace

    _, cfg, read = stored
    cfg = replace(cfg, data=replace(cfg.data, loader=replace(cfg.data.loader, memory_gib=memory)))
    first = open_dataset(cfg)
    again = open_dataset(cfg)
    assert read == [12]
    assert (first.fingerprint, first.task, first.notes) == (again.fingerprint, again.task, again.notes)
    np.testing.assert_array_equal(first.relative_change, again.relative_change)
    # Another stride needs other sums.
    open_dataset(replace(cfg, training=replace(cfg.training, time_stride=2)))
    assert read == [12, 12]


def test_a_changed_file_is_scanned_again(stored: Any) -> None:
    path, cfg, read = stored
    first = open_dataset(cfg)
    state = path.stat()

    def change(trajectory: int) -> None:
        with h5py.File(path, "r+") as file:
            file["tensor"][trajectory] *= 2

    change(5)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    second = open_dataset(cfg)
    assert read == [12, 12] and second.fingerprint != first.fingerprint
    # With the same size and time, a sample of the trajectories detects the change.
    change(11)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert path.stat().st_mtime_ns == state.st_mtime_ns + 1
    assert open_dataset(cfg).fingerprint != second.fingerprint
    assert read == [12, 12, 12]


def test_a_damaged_record_is_written_again_and_a_folder_that_cannot_be_written_is_noted(
    stored: Any, tmp_path: Path
) -> None:
    _, cfg, read = stored
    open_dataset(cfg)
    (record,) = (tmp_path / "cache" / "ups_jax" / "scans").glob("*.npz")
    content = record.read_bytes()
    for damaged in (b"", content[:-100], content[:50] + b"x" * 50):
        record.write_bytes(damaged)
        open_dataset(cfg)
        assert record.stat().st_size == len(content)
    assert read == [12] * 4
    record.unlink()
    record.parent.rmdir()
    record.parent.write_text("a file")
    assert any("every opening reads the whole data" in note for note in open_dataset(cfg).notes)


def test_data_with_nan_leave_no_record(stored: Any, tmp_path: Path) -> None:
    path, cfg, _ = stored
    with h5py.File(path, "r+") as file:
        file["tensor"][3, 2, 1] = np.nan
    with pytest.raises(DataError, match="frame 2 of trajectory 3"):
        open_dataset(cfg)
    assert not list((tmp_path / "cache").rglob("*.npz"))


def test_a_state_of_rest_of_several_channels_is_constant() -> None:
    values, inputs = random_fields(3, 5, 8, 2), np.ones((3, 8, 1), np.float32)
    values[1] = (1.0, 0.0)
    values[2, 0] = (1.0, 0.0)
    record = scan_chunk(values, inputs, 1)
    assert record.is_constant.tolist() == [False, True, False]
    inputs[1, 0] = 2
    assert not scan_chunk(values, inputs, 1).is_constant.any()


def test_former_fingerprints_can_still_be_compared(configure: Any) -> None:
    """Versions without trajectory hashes recorded the BLAKE2 hash of all bytes."""
    fields, beta = waves()
    cfg = configure(coefficients={"beta": "linear"})
    dataset = from_arrays(cfg, fields, DT, {"beta": beta}, (-1.0,), (SPACING,))
    grid = f"Grid(shape=(32,), origin=(-1.0,), spacing=({SPACING},), start=0.0, dt={DT})"
    expected = hashlib.blake2b(fields.tobytes(), digest_size=16)
    expected.update(f"(12, 9, {grid})".encode())
    for values in (
        beta.astype(np.float32),
        np.ones(12, np.float32),
        *(dataset.splits.ids(name) for name in ("train", "val", "test")),
    ):
        expected.update(values.tobytes())
    assert dataset.fingerprint_like("0123456789abcdef" * 2) == expected.hexdigest()
    assert dataset.fingerprint_like(dataset.fingerprint) == dataset.fingerprint != expected.hexdigest()
    assert len(dataset.fingerprint) == 32


def test_statistics_do_not_depend_on_how_the_record_was_read(stored: Any) -> None:
    _, cfg, _ = stored
    assert isinstance(open_dataset(cfg).record, ScanRecord)
    from_file = open_dataset(cfg)
    array = from_arrays(cfg, waves()[0], DT, origin=(-1.0,), spacing=(SPACING,))
    assert array.task.statistics == from_file.task.statistics
    np.testing.assert_array_equal(array.record.hashes, from_file.record.hashes)
