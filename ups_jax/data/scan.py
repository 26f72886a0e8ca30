"""One pass over a source: a record of sums and hashes of every trajectory, from which checks and statistics follow."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int, UInt64

from ups_jax.core.errors import DataError
from ups_jax.data.sources.base import Source, frame_counts, read_trajectories
from ups_jax.data.sources.points import PointCloud, PointSet, ScatteredSource
from ups_jax.data.splits import Splits

_CHUNK_BYTES = 16 * 2**20
# Values whose float64 copies are summed at once; they fit into the cache of a processor core.
_BLOCK_VALUES = 2**17
# Fingerprints of this version begin with the prefix; those without it are BLAKE2 hashes of all bytes.
_PREFIX = "2-"
_FORMER_CHUNK_BYTES = 64 * 2**20
# Odd random weights of the trajectory hashes, for 2 x 32,768 words of 64 bits. NumPy never changes raw Philox bits.
_HASH_WEIGHTS = np.random.Philox(key=27).random_raw(2**16).reshape(2, -1) | np.uint64(1)
_HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, eq=False, kw_only=True)
class ScanRecord:
    """Sums and hashes of trajectories, computed in one pass over their fields.

    Sums are over points, in float64. A sum over a frame with NaN or Inf is not finite.

    Attributes:
        points: Number of points of each trajectory, without padding.
        frames: Number of frames of each trajectory. Sums of the frames that a longer one has in addition are 0.
        sums: Sum of each channel in each frame.
        squares: Sum of the squares of each channel in each frame.
        changes: Sum of the squared changes of each channel from each frame to the one `stride` later.
        input_sums: Sum of each input field.
        input_squares: Sum of the squares of each input field.
        hashes: Hash (128 bits) of each trajectory: its fields, its input fields and, in a point cloud, its points.
        first_hashes: Hash of the first frame of each trajectory.
        start_hashes: Hash of the same parts as `hashes`, but of the first two frames only.
        is_constant: Whether a trajectory has a single value at all frames, points, channels and inputs.
        is_constant_at_start: Whether its first frame with the input fields has.
        common_bad_points: Points with NaN or Inf in every frame that has any such point; all points if there is none.
        all_bad_points: Points with NaN or Inf in at least one frame.
    """

    points: Int[np.ndarray, " n"]
    frames: Int[np.ndarray, " n"]
    sums: Float64[np.ndarray, "n t c"]
    squares: Float64[np.ndarray, "n t c"]
    changes: Float64[np.ndarray, "n r c"]
    input_sums: Float64[np.ndarray, "n i"]
    input_squares: Float64[np.ndarray, "n i"]
    hashes: UInt64[np.ndarray, "n 2"]
    first_hashes: UInt64[np.ndarray, "n 2"]
    start_hashes: UInt64[np.ndarray, "n 2"]
    is_constant: Bool[np.ndarray, " n"]
    is_constant_at_start: Bool[np.ndarray, " n"]
    common_bad_points: Bool[np.ndarray, " p"]
    all_bad_points: Bool[np.ndarray, " p"]

    @property
    def frame_is_finite(self) -> Bool[np.ndarray, "n t"]:
        """Whether all values of each frame are finite; those of the input fields count for every frame."""
        inputs = np.isfinite(self.input_sums).all(axis=-1)
        return np.isfinite(self.squares).all(axis=-1) & inputs[:, None]

    @property
    def is_finite(self) -> Bool[np.ndarray, " n"]:
        """Whether all values of each trajectory are finite."""
        return np.all(self.frame_is_finite, axis=1)

    @property
    def means(self) -> Float64[np.ndarray, "n t c"]:
        """The mean of each channel over the points of each frame."""
        return self.sums / self.points[:, None, None]

    def select(self, ids: Int[np.ndarray, " m"]) -> ScanRecord:
        """Return the record of the trajectories `ids`, without the frames that only longer trajectories have."""
        unused = self.sums.shape[1] - int(self.frames[ids].max(initial=0)) if len(ids) else 0
        columns = {
            field.name: getattr(self, field.name)[ids]
            for field in fields(self)
            if not field.name.endswith("bad_points")
        }
        for name in ("sums", "squares", "changes"):
            columns[name] = columns[name][:, : max(0, columns[name].shape[1] - unused)]
        return replace(self, **columns)


def concatenate_records(records: Sequence[ScanRecord]) -> ScanRecord:
    """Return one record of the trajectories of all records, which are of the same source."""
    columns = {field.name: [getattr(record, field.name) for record in records] for field in fields(ScanRecord)}
    common = np.logical_and.reduce(columns.pop("common_bad_points"))
    everything = np.logical_or.reduce(columns.pop("all_bad_points"))
    for name in ("sums", "squares", "changes"):
        longest = max(part.shape[1] for part in columns[name])
        columns[name] = [np.pad(part, ((0, 0), (0, longest - part.shape[1]), (0, 0))) for part in columns[name]]
    merged = {name: np.concatenate(parts) for name, parts in columns.items()}
    return ScanRecord(**merged, common_bad_points=common, all_bad_points=everything)


def scan_chunk(
    values: Float32[np.ndarray, "n t *s c"],
    inputs: Float32[np.ndarray, "n *s i"],
    stride: int,
    points: PointSet | None = None,
) -> ScanRecord:
    """Return the record of some trajectories.

    Args:
        values: Fields; 0 at padded points.
        inputs: Input fields; 0 at padded points.
        stride: Model step in stored frames.
        points: Points of a point cloud; None on a grid.
    """
    count, size = len(values), int(np.prod(values.shape[2:-1]))
    sums, squares, changes = _frame_sums(values.reshape(count, values.shape[1], size, -1), stride)
    flat_inputs = inputs.reshape(count, 1, size, inputs.shape[-1])
    input_sums, input_squares, _ = (part[:, 0] if part.shape[1] else part for part in _frame_sums(flat_inputs, 1))
    hashes, start_hashes = _hash_rows(values), _hash_rows(values[:, :2])
    for part in (inputs, *(() if points is None else (points.coords, points.mask))):
        if part.size:
            part_hashes = _hash_rows(part)
            hashes, start_hashes = hashes * _HASH_FACTOR + part_hashes, start_hashes * _HASH_FACTOR + part_hashes
    finite = np.isfinite(squares).all(axis=(1, 2)) & np.isfinite(input_squares).all(axis=1)
    common, everything = np.ones(size, bool), np.zeros(size, bool)
    for row in np.flatnonzero(~finite):
        bad = ~np.isfinite(values[row]).all(axis=-1).reshape(-1, size)
        bad |= ~np.isfinite(inputs[row]).all(axis=-1).reshape(size)
        bad = bad[bad.any(axis=1)]
        common, everything = common & bad.all(axis=0), everything | bad.any(axis=0)
    return ScanRecord(
        points=np.full(count, size) if points is None else points.mask.sum(axis=1).astype(np.int64),
        frames=np.full(count, values.shape[1]),
        sums=sums,
        squares=squares,
        changes=changes,
        input_sums=input_sums,
        input_squares=input_squares,
        hashes=hashes,
        first_hashes=_hash_rows(np.concatenate([values[:, 0], inputs], axis=-1) if inputs.size else values[:, 0]),
        start_hashes=start_hashes,
        is_constant=_is_constant(values, inputs, squares.sum(axis=1)),
        is_constant_at_start=_is_constant(values[:, :1], inputs, squares[:, 0]),
        common_bad_points=common,
        all_bad_points=everything,
    )


def read_chunk_record(
    source: Source, ids: Int[np.ndarray, " m"], values: Float32[np.ndarray, "m t *s c"], stride: int
) -> ScanRecord:
    """Return the record of the trajectories `ids`, whose fields are `values`; input fields and points are read."""
    points = source.points(ids) if isinstance(source, ScatteredSource) else None
    return scan_chunk(values, source.read_input_fields(ids), stride, points)


def trajectory_bytes(source: Source) -> int:
    """Return the size of the fields of one trajectory in memory, the longest one, in bytes."""
    return 4 * int(frame_counts(source).max()) * source.channels * int(np.prod(source.grid.shape))


def trajectory_chunks(
    source: Source, ids: Int[np.ndarray, " n"] | None = None, chunk_bytes: int | None = None
) -> Iterator[tuple[Int[np.ndarray, " m"], Float32[np.ndarray, "m t *s c"]]]:
    """Yield the ids and the fields of trajectories, in chunks of at most 16 MiB or of one trajectory.

    The trajectories of a chunk have the same number of frames.

    Args:
        ids: Trajectories to read, in this order; all by default.
        chunk_bytes: Another largest size of a chunk.
    """
    step = max(1, (chunk_bytes or _CHUNK_BYTES) // trajectory_bytes(source))
    selected = np.arange(source.trajectories) if ids is None else ids
    changes = np.flatnonzero(np.diff(frame_counts(source)[selected])) + 1
    for group in np.split(selected, changes):
        for start in range(0, len(group), step):
            chunk = group[start : start + step]
            yield chunk, read_trajectories(source, chunk)


def spaced_ids(source: Source, ids: Int[np.ndarray, " n"], max_bytes: int) -> Int[np.ndarray, " m"]:
    """Return evenly spaced entries of `ids`, at least one, whose fields have a total size of at most `max_bytes`."""
    count = min(len(ids), max(1, max_bytes // trajectory_bytes(source)))
    return ids[np.unique(np.linspace(0, len(ids) - 1, count).astype(np.int64))]


def check_finite(record: ScanRecord, source_name: str) -> None:
    """Raise `DataError` with the number of frames with NaN or Inf, and the position of the first one, if any."""
    finite = record.frame_is_finite
    if finite.all():
        return
    trajectory, frame = (int(values[0]) for values in np.nonzero(~finite))
    masked = fixed_nan_mask(record)
    if masked is not None:
        raise DataError(f"{source_name}: {masked}")
    raise DataError(
        f"{source_name}: NaN or Inf in {int((~finite).sum())} frames, first in frame {frame} of trajectory "
        f"{trajectory}; remove or recompute these trajectories"
    )


def fixed_nan_mask(record: ScanRecord) -> str | None:
    """Return a message if every frame of every trajectory has NaN or Inf at the same points, otherwise None."""
    bad, size = int(record.all_bad_points.sum()), len(record.all_bad_points)
    exists = np.arange(record.squares.shape[1]) < record.frames[:, None]
    if (record.frame_is_finite & exists).any() or not np.array_equal(record.common_bad_points, record.all_bad_points):
        return None
    if bad == size:
        return "NaN or Inf at every point of every frame; write the fields again"
    return (
        f"NaN or Inf at the same {bad} of {size} points in every frame, as for land or an obstacle; a grid has no "
        "mask: write the points with values as a point cloud (docs/meshes_and_particles.md), or fill the others with a "
        "constant"
    )


def fingerprint(
    record: ScanRecord,
    source: Source,
    conditions: Float32[np.ndarray, "n p"],
    mask: Float32[np.ndarray, "n p"],
    splits: Splits,
) -> str:
    """Return 32 characters that identify fields, grid, times, coefficients with their mask, and splits."""
    digest = hashlib.blake2b(record.hashes.tobytes(), digest_size=15)
    _add_description(digest, source, conditions, mask, splits)
    return _PREFIX + digest.hexdigest()


def is_former_fingerprint(text: str) -> bool:
    """Return whether a recorded fingerprint was computed before trajectories had hashes."""
    return not text.startswith(_PREFIX)


def former_fingerprint(
    source: Source, conditions: Float32[np.ndarray, "n p"], mask: Float32[np.ndarray, "n p"], splits: Splits
) -> str:
    """Return the fingerprint that versions before trajectory hashes recorded: 32 hex digits of all bytes of the data.

    It reads and hashes all data, and is needed only for runs, and latents, of such versions.
    """
    digest = hashlib.blake2b(digest_size=16)
    for ids, values in trajectory_chunks(source, chunk_bytes=_FORMER_CHUNK_BYTES):
        if isinstance(source, ScatteredSource):
            points = source.points(ids)
            for part in (points.coords, points.mask, source.read_input_fields(ids)):
                digest.update(np.ascontiguousarray(part).data)
        elif source.input_channels:
            values = np.concatenate([source.read_input_fields(ids)[:, None], values], axis=-1)
        digest.update(np.ascontiguousarray(values).data)
    _add_description(digest, source, conditions, mask, splits)
    return digest.hexdigest()


class TrajectoryKeys(NamedTuple):
    """Texts that identify trajectories in any file; None for a constant state, which unrelated data may share.

    Attributes:
        whole: Hash of each trajectory.
        start: Hash of its first two frames, which a shorter or longer copy of the trajectory shares.
    """

    whole: list[str | None]
    start: list[str | None]


def trajectory_keys(record: ScanRecord) -> TrajectoryKeys:
    """Return the keys of all trajectories of a record."""
    return TrajectoryKeys(
        whole=_hash_keys(record.hashes, record.is_constant),
        start=_hash_keys(record.start_hashes, record.is_constant_at_start),
    )


def check_overlap(record: ScanRecord, splits: Splits, source_name: str) -> list[str]:
    """Check that no test or validation trajectory equals a training trajectory, or starts from the same frame.

    A trajectory with the first two frames of a shorter or longer one is a copy of it.

    Args:
        record: Record of all trajectories.
        source_name: Name of the data in messages.

    Returns:
        A note if trajectories of the same files start from the same frame, otherwise an empty list.

    Raises:
        DataError: A test or validation trajectory is a copy of a training trajectory, or a trajectory of separate test
            files starts from the same frame as a training trajectory.
    """
    # Unrelated trajectories may share a constant first frame, such as a state of rest.
    keys, copies = trajectory_keys(record), "are shorter or longer copies of"
    digests_by_relation = {
        "are identical to": keys.whole,
        copies: keys.start,
        "start from the same frame as": _hash_keys(record.first_hashes, record.is_constant_at_start),
    }
    for relation, digests in digests_by_relation.items():
        training = {digests[index]: index for index in splits.train.tolist() if digests[index] is not None}
        for split in ("test", "val"):
            repeated = [
                index
                for index in splits.ids(split).tolist()
                if digests[index] in training
                and (relation != copies or record.frames[index] != record.frames[training[digests[index]]])
            ]
            if not repeated:
                continue
            message = f"{source_name}: {len(repeated)} {split} trajectories {relation} training trajectories"
            separate_files = splits.has_test_files and split == "test"
            if relation.startswith("start") and not separate_files:
                return [message]
            # Ids count over all files; the message counts within the test files.
            first = repeated[0] - (int(splits.test[0]) if separate_files else 0)
            files = (" of the test files", " of the training files") if separate_files else ("", "")
            raise DataError(
                f"{message} (first: trajectory {first}{files[0]} and {training[digests[repeated[0]]]}{files[1]}); "
                f"remove these {split} trajectories"
            )
    return []


def _frame_sums(
    values: Float32[np.ndarray, "n t p c"], stride: int
) -> tuple[Float64[np.ndarray, "n t c"], Float64[np.ndarray, "n t c"], Float64[np.ndarray, "n r c"]]:
    """Return the sums of values, of their squares and of their squared changes over `stride` frames, over points."""
    count, frames, size, channels = values.shape
    sums, squares = np.zeros((2, count, frames, channels))
    changes = np.zeros((count, max(0, frames - stride), channels))
    if not values.size:
        return sums, squares, changes
    rows = min(count, max(1, _BLOCK_VALUES // (frames * size * channels)))
    block_frames = min(frames, max(4 * stride, _BLOCK_VALUES // (size * channels)))
    # Allocated once: a new buffer for each block would cost more than the sums. Points last, for contiguous sums.
    block_buffer, change_buffer = np.empty((2, rows, block_frames + stride, channels, size))
    # einsum instead of BLAS, which would start threads. NaN and Inf are counted by their sums.
    with np.errstate(invalid="ignore"):
        for row in range(0, count, rows):
            part = slice(row, row + rows)
            for start in range(0, frames, block_frames):
                source = np.moveaxis(values[part, start : start + block_frames + stride], -1, -2)
                block = block_buffer[: len(source), : source.shape[1]]
                np.copyto(block, source)
                exact, later = block[:, :block_frames], block[:, stride:]
                stop = start + exact.shape[1]
                exact.sum(axis=-1, out=sums[part, start:stop])
                np.einsum("...p,...p->...", exact, exact, out=squares[part, start:stop])
                change = np.subtract(
                    later, block[:, : later.shape[1]], out=change_buffer[: len(block), : later.shape[1]]
                )
                stop = start + change.shape[1]
                np.einsum("...p,...p->...", change, change, out=changes[part, start:stop])
    return sums, squares, changes


def _hash_rows(values: Float32[np.ndarray, "n ..."]) -> UInt64[np.ndarray, "n 2"]:
    """Return a hash of 128 bits of each row: two sums of its 64-bit words with random weights, modulo 2^64.

    Each word holds two floats. A change of the upper float, such as of its sign, affects only the upper bits of the
    first sum, therefore the second sum is over the upper floats alone.
    """
    bits = np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint32)
    result = np.full((len(bits), 2), bits.shape[1], np.uint64)
    size = _HASH_WEIGHTS.shape[1]
    rows = max(1, 2 * size // max(1, bits.shape[1]))
    upper_buffer = np.empty((min(rows, len(bits)), min(size, -(-bits.shape[1] // 2))), np.uint64)
    for row in range(0, len(bits), rows):
        for start in range(0, bits.shape[1], 2 * size):
            part = bits[row : row + rows, start : start + 2 * size]
            if part.shape[1] % 2:
                part = np.pad(part, ((0, 0), (0, 1)))
            words = part.view(np.uint64)
            upper = np.right_shift(words, np.uint64(32), out=upper_buffer[: len(words), : words.shape[1]])
            digest = result[row : row + rows]
            digest *= _HASH_FACTOR
            digest[:, 0] += np.einsum("...p,p->...", words, _HASH_WEIGHTS[0, : words.shape[1]])
            digest[:, 1] += np.einsum("...p,p->...", upper, _HASH_WEIGHTS[1, : words.shape[1]])
    return result


def _is_constant(
    values: Float32[np.ndarray, "n t *s c"], inputs: Float32[np.ndarray, "n *s i"], squares: Float64[np.ndarray, "n c"]
) -> Bool[np.ndarray, " n"]:
    """Return whether each channel and each input field of a trajectory is one value, such as a state of rest.

    Args:
        squares: Sum of the squares of each channel of each trajectory.
    """
    count, channels = squares.shape
    first = values.reshape(count, -1, channels)[:, 0]
    # Only rows whose mean squares are the squares of their first values are compared value by value.
    mean_square = squares * channels / values[0].size
    with np.errstate(invalid="ignore"):
        result = np.all(np.abs(mean_square - first.astype(np.float64) ** 2) <= 1e-9 * mean_square, axis=1)
    for row in np.flatnonzero(result):
        first_inputs = inputs[(row, *(0,) * (inputs.ndim - 2))]
        result[row] = (values[row] == first[row]).all() and (inputs[row] == first_inputs).all()
    return result


def _hash_keys(hashes: UInt64[np.ndarray, "n 2"], excluded: Bool[np.ndarray, " n"]) -> list[str | None]:
    """Return the hash of each trajectory as 32 hex digits, None for the excluded ones."""
    return [None if skip else row.tobytes().hex() for row, skip in zip(hashes, excluded, strict=True)]


def _add_description(
    digest: hashlib.blake2b,
    source: Source,
    conditions: Float32[np.ndarray, "n p"],
    mask: Float32[np.ndarray, "n p"],
    splits: Splits,
) -> None:
    """Add the grid, the coefficients and the splits to the digest of a fingerprint."""
    digest.update(_size_text(source).encode())
    for values in (conditions, mask, splits.train, splits.val, splits.test):
        digest.update(np.ascontiguousarray(values).tobytes())


def _size_text(source: Source) -> str:
    """Return the number of trajectories and frames, and the grid, as text for the fingerprint.

    The text must not change, although its class and field names are outdated: a run cannot resume on data with another
    fingerprint.
    """
    grid = source.grid
    grid_fields = (
        f"shape={grid.shape!r}, origin={grid.origin!r}, spacing={grid.spacing!r}, start={grid.start!r}, dt={grid.dt!r}"
    )
    if isinstance(grid, PointCloud):
        moving = f"measured={grid.box_from_points!r}, moving={grid.position_channels!r}"
        text = f"Cloud({grid_fields}, box={grid.box!r}, {moving})"
    else:
        text = f"Grid({grid_fields})"
    return f"({source.trajectories!r}, {source.frames!r}, {text})"
