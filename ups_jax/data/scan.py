"""One pass over a source: checks for NaN and Inf, a fingerprint of the content, and a check for overlapping splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32, Int

from ups_jax.core.errors import DataError
from ups_jax.data.sources.base import Source, read_trajectories
from ups_jax.data.sources.points import PointCloud
from ups_jax.data.splits import Splits

_CHUNK_BYTES = 64 * 2**20


def trajectory_bytes(source: Source) -> int:
    """Return the size of the fields of one trajectory in memory, in bytes."""
    return 4 * source.frames * source.channels * int(np.prod(source.grid.shape))


def trajectory_chunks(
    source: Source, ids: Int[np.ndarray, " n"] | None = None
) -> Iterator[tuple[Int[np.ndarray, " m"], Float32[np.ndarray, "m t *s c"]]]:
    """Yield the ids and the fields of trajectories, in chunks of about 64 MiB.

    Args:
        ids: Trajectories to read, in this order; all by default.
    """
    step = max(1, _CHUNK_BYTES // trajectory_bytes(source))
    selected = np.arange(source.trajectories) if ids is None else ids
    for start in range(0, len(selected), step):
        chunk = selected[start : start + step]
        yield chunk, read_trajectories(source, chunk)


class ContentScan:
    """An accumulator that counts frames with NaN or Inf, and hashes the content of a source, chunk by chunk.

    Attributes:
        first_frame_hashes: Hash of the first frame of each trajectory, None if the frame is constant.
        trajectory_hashes: Hash of all frames of each trajectory, None if the trajectory is constant.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._hash = hashlib.blake2b(digest_size=16)
        self._first_bad: tuple[int, int] | None = None
        self._bad_frames = 0
        self.first_frame_hashes: list[bytes | None] = []
        self.trajectory_hashes: list[bytes | None] = []

    def update(self, ids: Int[np.ndarray, " n"], fields: Float32[np.ndarray, "n t *s c"]) -> bool:
        """Add a chunk of trajectories; return whether all values up to now are finite."""
        finite = np.isfinite(fields).all(axis=tuple(range(2, fields.ndim)))
        if not finite.all():
            trajectory, frame = (int(values[0]) for values in np.nonzero(~finite))
            self._first_bad = self._first_bad or (int(ids[trajectory]), frame)
            self._bad_frames += int((~finite).sum())
        self._hash.update(np.ascontiguousarray(fields).data)
        # Unrelated trajectories may share a constant first frame, such as a state of rest.
        self.first_frame_hashes += [
            None if (frame == frame.flat[0]).all() else hashlib.blake2b(frame.tobytes(), digest_size=16).digest()
            for frame in fields[:, 0]
        ]
        self.trajectory_hashes += [
            None if (frames == frames.flat[0]).all() else hashlib.blake2b(frames.tobytes(), digest_size=16).digest()
            for frames in fields
        ]
        return self._first_bad is None

    def add_to_fingerprint(self, values: Float32[np.ndarray, "..."]) -> None:
        """Include an array other than fields in the fingerprint, such as coordinates."""
        self._hash.update(np.ascontiguousarray(values).data)

    def check_finite(self) -> None:
        """Raise `DataError` with the number of frames with NaN or Inf, and the position of the first one, if any."""
        if self._first_bad is not None:
            trajectory, frame = self._first_bad
            raise DataError(
                f"{self._source.name}: NaN or Inf in {self._bad_frames} frames, first in frame {frame} of trajectory "
                f"{trajectory}; remove or recompute these trajectories"
            )

    def fingerprint(
        self, conditions: Float32[np.ndarray, "n p"], mask: Float32[np.ndarray, "n p"], splits: Splits
    ) -> str:
        """Return 32 hex digits that identify fields, grid, times, coefficients with their mask, and splits."""
        digest = self._hash.copy()
        digest.update(_size_text(self._source).encode())
        for values in (conditions, mask, splits.train, splits.val, splits.test):
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()


def _size_text(source: Source) -> str:
    """Return the number of trajectories and frames, and the grid, as text for the fingerprint.

    The text must not change, although its class and field names are outdated: a run cannot resume on data with another
    fingerprint.
    """
    grid = source.grid
    fields = (
        f"shape={grid.shape!r}, origin={grid.origin!r}, spacing={grid.spacing!r}, start={grid.start!r}, dt={grid.dt!r}"
    )
    if isinstance(grid, PointCloud):
        moving = f"measured={grid.box_from_points!r}, moving={grid.position_channels!r}"
        text = f"Cloud({fields}, box={grid.box!r}, {moving})"
    else:
        text = f"Grid({fields})"
    return f"({source.trajectories!r}, {source.frames!r}, {text})"


def check_overlap(content: ContentScan, splits: Splits, source_name: str) -> list[str]:
    """Check that no test or validation trajectory equals a training trajectory, or starts from the same frame.

    Args:
        content: Hashes of all trajectories.
        source_name: Name of the data in messages.

    Returns:
        A note if trajectories of the same files start from the same frame, otherwise an empty list.

    Raises:
        DataError: A test or validation trajectory equals a training trajectory, or a trajectory of separate test files
            starts from the same frame as a training trajectory.
    """
    digests_by_relation = {
        "are identical to": content.trajectory_hashes,
        "start from the same frame as": content.first_frame_hashes,
    }
    for relation, digests in digests_by_relation.items():
        training = {digests[index]: index for index in splits.train.tolist() if digests[index] is not None}
        for split in ("test", "val"):
            repeated = [index for index in splits.ids(split).tolist() if digests[index] in training]
            if not repeated:
                continue
            message = f"{source_name}: {len(repeated)} {split} trajectories {relation} training trajectories"
            separate_files = splits.has_test_files and split == "test"
            if digests is content.first_frame_hashes and not separate_files:
                return [message]
            # Ids count over all files; the message counts within the test files.
            first = repeated[0] - (int(splits.test[0]) if separate_files else 0)
            files = (" of the test files", " of the training files") if separate_files else ("", "")
            raise DataError(
                f"{message} (first: trajectory {first}{files[0]} and {training[digests[repeated[0]]]}{files[1]}); "
                f"remove these {split} trajectories"
            )
    return []
