"""Splits of trajectories into training, validation and test: disjoint, not empty, and reproducible from the seed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from ups_jax.config import SplitConfig
from ups_jax.core.errors import DataError
from ups_jax.core.files import read_json
from ups_jax.core.rng import philox_generator, philox_key

Split = Literal["train", "val", "test"]
_ROLES: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, eq=False, kw_only=True)
class Splits:
    """The trajectory ids of the three splits, each in ascending order.

    Attributes:
        train: Training trajectories.
        val: Validation trajectories.
        test: Test trajectories.
        has_test_files: Whether the test trajectories come from files of their own.
    """

    train: Int[np.ndarray, " n"]
    val: Int[np.ndarray, " m"]
    test: Int[np.ndarray, " k"]
    has_test_files: bool = False

    def __post_init__(self) -> None:
        if not (len(self.train) and len(self.val) and len(self.test)):
            raise ValueError("a split is empty")
        ids = np.concatenate([self.train, self.val, self.test])
        if len(np.unique(ids)) != len(ids):
            raise ValueError("splits share trajectories")

    def ids(self, split: Split) -> Int[np.ndarray, " n"]:
        """Return the trajectory ids of a split by its name."""
        return {"train": self.train, "val": self.val, "test": self.test}[split]


def random_split(trajectories: int, cfg: SplitConfig, name: str) -> Splits:
    """Split trajectories at random, by the configured shares and seed.

    Args:
        trajectories: Number of trajectories.
        cfg: Shares of validation and test, and the seed.
        name: Name of the data in messages.

    Raises:
        DataError: There are too few trajectories for three splits.
    """
    val, test = _counts(trajectories, cfg, name)
    return _cut(_shuffled(trajectories, cfg.seed), val, test)


def split_by_position(trajectories: int, cfg: SplitConfig, name: str, *, test_last: bool) -> Splits:
    """Take the first trajectories of a file for test, the next ones for validation, and the others for training.

    Args:
        trajectories: Number of trajectories.
        cfg: Shares of validation and test.
        name: Name of the data in messages.
        test_last: Count from the last trajectory instead.

    Raises:
        DataError: There are too few trajectories for three splits.
    """
    val, test = _counts(trajectories, cfg, name)
    order = np.arange(trajectories)
    return _cut(order[::-1] if test_last else order, val, test)


def split_by_hash(keys: Sequence[str], cfg: SplitConfig, name: str) -> Splits:
    """Assign each trajectory to a split by a hash of its key and the seed, independent of the other trajectories.

    Args:
        keys: A unique text for each trajectory.
        cfg: Shares of validation and test, and the seed.
        name: Name of the data in messages.

    Raises:
        DataError: A split would be empty.
    """
    digests = (hashlib.sha1(f"{cfg.seed}|{key}".encode()).digest()[:8] for key in keys)
    fractions = np.array([int.from_bytes(digest, "big") / 2**64 for digest in digests])
    test, val = fractions < cfg.test, (cfg.test <= fractions) & (fractions < cfg.test + cfg.val)
    selected = {"train": ~(test | val), "val": val, "test": test}
    for role, mask in selected.items():
        if not mask.any():
            raise DataError(
                f"{name}: data.split.method=hash assigns none of {len(keys)} trajectories to {role}; raise "
                "data.split.val and data.split.test, or use data.split.method=random"
            )
    ids = [np.flatnonzero(mask) for mask in selected.values()]
    return Splits(train=ids[0], val=ids[1], test=ids[2])


def split_by_files(sizes: Mapping[str, int], cfg: SplitConfig, name: str) -> Splits:
    """Use the files of each split as they are; without validation files, draw validation from the training files.

    Args:
        sizes: Number of trajectories in the files of `train`, `val` (optional) and `test`. Trajectory ids are numbered
            in this order.
        cfg: Share of validation, and the seed.
        name: Name of the data in messages.

    Raises:
        DataError: A split would be empty.
    """
    ends = np.cumsum(list(sizes.values()))
    ids = {role: np.arange(end - size, end) for (role, size), end in zip(sizes.items(), ends.tolist(), strict=True)}
    if "val" in ids:
        if min(sizes.values()) < 1:
            raise DataError(f"{name}: the files contain {dict(sizes)} trajectories; each split needs at least 1")
        return Splits(train=ids["train"], val=ids["val"], test=ids["test"], has_test_files=True)
    train_count, test_count = sizes["train"], sizes["test"]
    val = _share_count(cfg.val, train_count)
    if train_count < val + 1 or test_count < 1:
        raise DataError(
            f"{name}: the files contain {train_count} training and {test_count} test trajectories; at least {val + 1} "
            f"and 1 are needed (data.split.val={cfg.val})"
        )
    order = _shuffled(train_count, cfg.seed)
    return Splits(train=np.sort(order[val:]), val=np.sort(order[:val]), test=ids["test"], has_test_files=True)


def concatenate_splits(file_splits: Sequence[Splits], sizes: Sequence[int]) -> Splits:
    """Combine the splits of several files into the splits of their concatenated trajectories.

    Args:
        file_splits: Splits of each file, with ids that start from 0.
        sizes: Number of trajectories in each file.
    """
    starts = np.cumsum([0, *sizes[:-1]])
    roles = {
        role: np.concatenate([item.ids(role) + start for item, start in zip(file_splits, starts, strict=True)])
        for role in _ROLES
    }
    return Splits(train=roles["train"], val=roles["val"], test=roles["test"])


def read_split(path: str | Path, trajectories: int, name: str, task: str) -> Splits:
    """Read the splits of a task from a JSON file, as a run writes it to `split.json`.

    Args:
        path: File with the record of `split_record`, or with such records of several tasks by name.
        trajectories: Number of trajectories in the data.
        name: Name of the data in messages.
        task: Name of the task.

    Raises:
        DataError: The file cannot be read, or is the split of other data.
    """
    try:
        content = read_json(Path(path))
        content = content.get(task, content)
        ids_by_role = {role: np.asarray(content[role], np.int64) for role in ("train", "val", "test")}
        ids = np.concatenate(list(ids_by_role.values()))
        count = int(content["trajectories"])
        result = Splits(
            train=np.sort(ids_by_role["train"]), val=np.sort(ids_by_role["val"]), test=np.sort(ids_by_role["test"])
        )
    except FileNotFoundError:
        raise DataError(f"{path}: file not found; give the split.json of a run") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: is not a split file ({reason}); give the split.json of a run") from None
    if count != trajectories or not ((ids >= 0) & (ids < trajectories)).all():
        raise DataError(
            f"{path}: splits {count} trajectories, but {name} contains {trajectories}; give the split file of this data"
        )
    return result


def split_off_fold(train: Int[np.ndarray, " n"], share: float, seed: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Divide the training trajectories between a predictor and its corrector.

    Args:
        train: Ids of the training trajectories.
        share: Share of the corrector, `diffusion.fold`.
        seed: Seed of the random division.
        name: Name of the data in messages.

    Returns:
        The ids for the predictor and the ids that are held out for the corrector.

    Raises:
        DataError: No trajectory is left for the predictor.
    """
    held_out = _share_count(share, len(train))
    if held_out >= len(train):
        raise DataError(
            f"{name}: none of the {len(train)} training trajectories is left for the predictor with "
            f"diffusion.fold={share:g}; lower it, or add training trajectories"
        )
    order = philox_generator(philox_key(seed, "fold")).permutation(len(train))
    return train[np.sort(order[held_out:])], train[np.sort(order[:held_out])]


def split_record(splits: Splits, trajectories: int) -> dict[str, Any]:
    """Return the content of a split file: the number of trajectories, and the ids of each split."""
    ids_by_role = {role: getattr(splits, role).tolist() for role in ("train", "val", "test")}
    return {"trajectories": trajectories} | ids_by_role


def _counts(trajectories: int, cfg: SplitConfig, name: str) -> tuple[int, int]:
    """Return the numbers of validation and test trajectories; raise `DataError` if none is left for training."""
    val, test = _share_count(cfg.val, trajectories), _share_count(cfg.test, trajectories)
    if trajectories < val + test + 1:
        raise DataError(
            f"{name}: contains {trajectories} trajectories, but the split needs at least {val + test + 1} "
            f"(data.split.val={cfg.val}, data.split.test={cfg.test})"
        )
    return val, test


def _cut(order: Int[np.ndarray, " n"], val: int, test: int) -> Splits:
    """Split ordered ids: the first `test` ids for test, the next `val` for validation, the rest for training."""
    return Splits(train=np.sort(order[val + test :]), val=np.sort(order[test : val + test]), test=np.sort(order[:test]))


def _share_count(share: float, trajectories: int) -> int:
    """Return the number of trajectories in a share, rounded and at least 1."""
    return max(1, round(share * trajectories))


def _shuffled(trajectories: int, seed: int) -> Int[np.ndarray, " n"]:
    """Return a random permutation of the trajectory ids."""
    return np.random.default_rng(abs(seed)).permutation(trajectories)
