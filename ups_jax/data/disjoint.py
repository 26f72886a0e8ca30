"""Splits that share no trajectory, checked by what the trajectories hold."""

from __future__ import annotations

from ups_jax.data.splits import Splits
from ups_jax.data.survey import Content
from ups_jax.errors import DataError


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
