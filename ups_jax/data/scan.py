"""The one pass over all of a source when it is opened: every number finite, a fingerprint of the content, and no
trajectory in two splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32, Int

from ups_jax.core.errors import DataError
from ups_jax.data.sources.base import Source, read_all
from ups_jax.data.splits import Splits

_CHUNK_BYTES = 64 * 2**20


def bytes_each(source: Source) -> int:
    """Size of a trajectory in memory."""
    return 4 * source.frames * source.channels * int(np.prod(source.grid.shape))


def chunks(
    source: Source, ids: Int[np.ndarray, " n"] | None = None
) -> Iterator[tuple[Int[np.ndarray, " m"], Float32[np.ndarray, "m t *s c"]]]:
    """The trajectories `ids` in their order, or all, some at a time, with their ids."""
    step = max(1, _CHUNK_BYTES // bytes_each(source))
    wanted = np.arange(source.trajectories) if ids is None else ids
    for start in range(0, len(wanted), step):
        some = wanted[start : start + step]
        yield some, read_all(source, some)


class Content:
    """Counts what is not finite, and hashes fields and first frames, chunk by chunk."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._hash = hashlib.blake2b(digest_size=16)
        self._first_bad: tuple[int, int] | None = None
        self._bad = 0
        self.first_frames: list[bytes | None] = []
        self.trajectories: list[bytes | None] = []

    def update(self, ids: Int[np.ndarray, " n"], fields: Float32[np.ndarray, "n t *s c"]) -> bool:
        """Take in a chunk; True while everything has been finite."""
        finite = np.isfinite(fields).all(axis=tuple(range(2, fields.ndim)))
        if not finite.all():
            trajectory, frame = (int(values[0]) for values in np.nonzero(~finite))
            self._first_bad = self._first_bad or (int(ids[trajectory]), frame)
            self._bad += int((~finite).sum())
        self._hash.update(np.ascontiguousarray(fields).data)
        # A constant first frame (rest, zero) tells nothing about where a trajectory comes from.
        self.first_frames += [
            None if (frame == frame.flat[0]).all() else hashlib.blake2b(frame.tobytes(), digest_size=16).digest()
            for frame in fields[:, 0]
        ]
        self.trajectories += [
            None if (whole == whole.flat[0]).all() else hashlib.blake2b(whole.tobytes(), digest_size=16).digest()
            for whole in fields
        ]
        return self._first_bad is None

    def add(self, values: Float32[np.ndarray, "..."]) -> None:
        """Hash what belongs to the content besides fields."""
        self._hash.update(np.ascontiguousarray(values).data)

    def check(self) -> None:
        """Raise `DataError` naming the first frame that is not finite, and how many there are."""
        if self._first_bad is not None:
            trajectory, frame = self._first_bad
            raise DataError(
                f"{self._source.name}: NaN or Inf in {self._bad} frames, the first is frame {frame} of trajectory "
                f"{trajectory}; remove these trajectories or solve them again"
            )

    def fingerprint(
        self, conditions: Float32[np.ndarray, "n p"], known: Float32[np.ndarray, "n p"], parts: Splits
    ) -> str:
        """32 hex digits over fields, grid, times, coefficients with their presence, and the split."""
        digest = self._hash.copy()
        digest.update(repr((self._source.trajectories, self._source.frames, self._source.grid)).encode())
        for values in (conditions, known, parts.train, parts.val, parts.test):
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()


def repeated(content: Content, parts: Splits, name: str) -> list[str]:
    """Trajectories of test and validation that training has as well.

    DataError where all their frames are the same, or where the test has files of its own and they start from the same
    frame; a note where trajectories of one file start alike.
    """
    digests = {"are the same as": content.trajectories, "start from the same frame as": content.first_frames}
    for what, each in digests.items():
        seen = {each[index]: index for index in parts.train.tolist() if each[index] is not None}
        for split in ("test", "val"):
            again = [index for index in parts.ids(split).tolist() if each[index] in seen]
            if not again:
                continue
            found = f"{name}: {len(again)} {split} trajectories {what} a training one"
            if each is content.first_frames and not (parts.apart and split == "test"):
                return [found]
            own = again[0] - (int(parts.test[0]) if parts.apart and split == "test" else 0)
            files = ("the test files", "the training files") if parts.apart and split == "test" else ("it", "it")
            raise DataError(
                f"{found} (first: {own} of {files[0]} and {seen[each[again[0]]]} of {files[1]}); remove them"
            )
    return []
