"""Trajectories without content: never written, ending in equal frames, at rest, or almost without deviation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Int

from ups_jax.data.scan import ScanRecord, fixed_nan_mask

# A trajectory has come to rest if its last change is below this fraction of its largest change.
REST = 1e-3
# A channel is reported if its standard deviation is below this fraction of its rms.
FLAT = 1e-3
# Smaller relative changes of float32 values are rounding.
_ROUNDING = 1e-6
# Number of trajectories that a line of text lists.
_LISTED = 12


@dataclass(frozen=True, eq=False, kw_only=True)
class ContentReport:
    """Which trajectories have little or no content. Every trajectory is in at most one of the first four groups.

    Attributes:
        ids: Index of each trajectory in its source.
        is_finite: Whether all values are finite.
        is_unwritten: Whether all values of the fields are 0.
        repeats_from: Index of the frame that all later frames repeat, -1 if there are none. A field that approaches
            this frame gradually is at rest instead.
        is_at_rest: Whether the trajectory comes to rest: its last change is below `REST` of its largest one.
        is_flat: Whether the standard deviation of each channel is below `FLAT` of its rms.
        is_still: Whether each channel never changes in time although another one does.
        nan_mask: Message about points that are NaN or Inf in all frames; None if there are none.
    """

    ids: Int[np.ndarray, " n"]
    is_finite: Bool[np.ndarray, " n"]
    is_unwritten: Bool[np.ndarray, " n"]
    repeats_from: Int[np.ndarray, " n"]
    is_at_rest: Bool[np.ndarray, " n"]
    is_flat: Bool[np.ndarray, "n c"]
    is_still: Bool[np.ndarray, "n c"]
    nan_mask: str | None

    @property
    def has_content(self) -> Bool[np.ndarray, " n"]:
        """Whether each trajectory was written completely: with finite values, and without equal frames at its end."""
        return self.is_finite & ~self.is_unwritten & (self.repeats_from < 0)

    @property
    def suits_hints(self) -> Bool[np.ndarray, " n"]:
        """Whether each trajectory is in none of the groups, so that a hint may be derived from it."""
        return self.has_content & ~self.is_at_rest & ~(self.is_flat | self.is_still).any(axis=1)

    def lines(self, channels: Sequence[str]) -> Iterator[str]:
        """Yield a line for each group that is not empty, with the numbers of its trajectories.

        Args:
            channels: Names of the channels.
        """
        if self.nan_mask is not None:
            yield self.nan_mask
        elif not self.is_finite.all():
            yield (
                f"NaN or Inf in {self._list(~self.is_finite)}; remove or recompute them, or change the unit of values "
                "beyond 3.4e38, which float32 cannot store"
            )
        if self.is_unwritten.any():
            yield f"only zeros, probably never written, in {self._list(self.is_unwritten)}; remove them"
        repeats = self.repeats_from >= 0
        if repeats.any():
            details = [f" (from frame {frame})" for frame in self.repeats_from]
            yield (
                f"the same frame is repeated until the end in {self._list(repeats, details)}; remove them, or store "
                "fewer frames"
            )
        if self.is_at_rest.any():
            yield (
                f"the field comes to rest (its last change is below {REST:g} of its largest) in "
                f"{self._list(self.is_at_rest)}; store fewer frames if the rest is of no interest"
            )
        for channel, name in enumerate(channels):
            if self.is_still[:, channel].any():
                yield (
                    f"{name} does not change in time in {self._list(self.is_still[:, channel])}; if it is a given "
                    f"field, remove {name} from `channels`: the model does not receive constant fields on a grid"
                )
            if self.is_flat[:, channel].any():
                is_flat = self.is_flat[:, channel]
                remedy = f"subtract a constant from {name}, or remove the channel" if is_flat.all() else "remove them"
                yield (
                    f"the standard deviation of {name} is below {FLAT:g} of its rms in {self._list(is_flat)}; {remedy}"
                )

    def _list(self, group: Bool[np.ndarray, " n"], details: Sequence[str] = ()) -> str:
        """Return the number of trajectories in a group and the first of them, each followed by its details."""
        rows = np.flatnonzero(group).tolist()
        listed = list_first(f"{self.ids[row]}{details[row] if details else ''}" for row in rows)
        return f"{len(rows)} of {len(group)} trajectories: {listed}"


def list_first(items: Iterable[object]) -> str:
    """Return the first items as text, separated by commas, and the number of the others."""
    texts = list(map(str, items))
    others = f" and {len(texts) - _LISTED} more" if len(texts) > _LISTED else ""
    return ", ".join(texts[:_LISTED]) + others


def content_report(record: ScanRecord, ids: Int[np.ndarray, " n"] | None = None) -> ContentReport:
    """Return the content report of scanned trajectories.

    Args:
        record: Record of the trajectories.
        ids: Index of each trajectory in its source; by default the record is of the whole source.
    """
    ids = np.arange(len(record.frames)) if ids is None else ids
    groups = [np.flatnonzero(record.frames == frames) for frames in np.unique(record.frames)]
    reports = [_group_report(record.select(group), ids[group]) for group in groups]
    if len(reports) == 1:
        return reports[0]
    order = np.argsort(np.concatenate(groups))
    columns = {field.name: [getattr(report, field.name) for report in reports] for field in fields(ContentReport)}
    del columns["nan_mask"]
    merged = {name: np.concatenate(parts)[order] for name, parts in columns.items()}
    return ContentReport(**merged, nan_mask=fixed_nan_mask(record))


def _group_report(record: ScanRecord, ids: Int[np.ndarray, " n"]) -> ContentReport:
    """Return the content report of trajectories with the same number of frames."""
    count, frames = record.squares.shape[:2]
    finite = record.is_finite
    squares = np.where(finite[:, None, None], record.squares, 0.0)
    changes = np.where(finite[:, None, None], record.changes, 0.0)
    unwritten = finite & (squares == 0).all(axis=(1, 2))
    candidates = finite & ~unwritten
    repeats_from, at_rest = np.full(count, -1), np.zeros(count, bool)
    still = np.zeros(squares.shape[::2], bool)
    if changes.shape[1]:
        changed = np.any(changes > 0, axis=2)
        # Number of equal frames after the first of them.
        tail = np.where(changed.any(axis=1), changed[:, ::-1].argmax(axis=1), changes.shape[1])
        largest = changes.max(axis=1)
        moves = largest > _ROUNDING**2 * squares.max(axis=1)
        before_tail = changes[np.arange(count), np.maximum(changes.shape[1] - 1 - tail, 0)]
        last_change = np.sqrt(np.divide(before_tail, largest, out=np.zeros_like(largest), where=moves)).max(axis=1)
        repeats = candidates & (tail > 0) & ((last_change >= REST) | (tail == changes.shape[1]))
        repeats_from = np.where(repeats, changes.shape[1] - tail, -1)
        at_rest = candidates & ~repeats & (last_change < REST)
        still = (candidates & ~repeats)[:, None] & (largest == 0)
    total = record.points[:, None] * frames
    mean_square = squares.sum(axis=1) / total
    mean = np.where(finite[:, None], record.sums.sum(axis=1), 0.0) / total
    variance = np.maximum(mean_square - mean**2, 0.0)
    return ContentReport(
        ids=ids,
        is_finite=finite,
        is_unwritten=unwritten,
        repeats_from=repeats_from,
        is_at_rest=at_rest,
        is_flat=candidates[:, None] & (mean_square > 0) & (variance < FLAT**2 * mean_square),
        is_still=still,
        nan_mask=fixed_nan_mask(record),
    )
