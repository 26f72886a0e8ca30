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
        has_test_files: Whether the test trajectories come from separate files.
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
        """Return the trajectory ids of one split."""
        return {"train": self.train, "val": self.val, "test": self.test}[split]


def random_split(trajectories: int, cfg: SplitConfig, source_name: str) -> Splits:
    """Split the trajectories 0 to `trajectories` - 1 at random, by the configured shares and seed.

    Raises:
        DataError: There are too few trajectories for three splits.
    """
    val, test = _val_and_test_counts(trajectories, cfg, source_name)
    return _split_ordered_ids(_shuffled_ids(trajectories, cfg.seed), val, test)


def split_by_position(trajectories: int, cfg: SplitConfig, source_name: str, *, test_last: bool) -> Splits:
    """Take the first trajectories for test, the next ones for validation, and the others for training.

    If `test_last`, take the last trajectories for test and those before them for validation.

    Raises:
        DataError: There are too few trajectories for three splits.
    """
    val, test = _val_and_test_counts(trajectories, cfg, source_name)
    order = np.arange(trajectories)
    return _split_ordered_ids(order[::-1] if test_last else order, val, test)


def split_by_hash(keys: Sequence[str], cfg: SplitConfig, source_name: str) -> Splits:
    """Assign each trajectory to a split by a hash of its key and the seed, independent of the other trajectories.

    Args:
        keys: A unique text for each trajectory.
        cfg: Approximate shares of validation and test, and the seed.
        source_name: Name of the data in messages.

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
                f"{source_name}: `data.split.method=hash` assigns none of {len(keys)} trajectories to {role}; raise "
                "`data.split.val` and `data.split.test`, or set `data.split.method=random`"
            )
    ids = [np.flatnonzero(mask) for mask in selected.values()]
    return Splits(train=ids[0], val=ids[1], test=ids[2])


def split_by_files(sizes: Mapping[str, int], cfg: SplitConfig, source_name: str) -> Splits:
    """Split trajectories by the files that they come from.

    Without validation files, validation trajectories are drawn from the training files.

    Args:
        sizes: Number of trajectories in the files of `train`, `val` (optional) and `test`, in the order of their ids.
        cfg: Share of validation, and the seed.
        source_name: Name of the data in messages.

    Raises:
        DataError: A split would be empty.
    """
    ends = np.cumsum(list(sizes.values()))
    ids = {role: np.arange(end - size, end) for (role, size), end in zip(sizes.items(), ends.tolist(), strict=True)}
    if "val" in ids:
        if min(sizes.values()) < 1:
            counts = ", ".join(f"{role} {size}" for role, size in sizes.items())
            raise DataError(
                f"{source_name}: the files contain too few trajectories ({counts}); give each split 1 or more"
            )
        return Splits(train=ids["train"], val=ids["val"], test=ids["test"], has_test_files=True)
    train_count, test_count = sizes["train"], sizes["test"]
    val = _trajectory_count(cfg.val, train_count)
    if train_count < val + 1 or test_count < 1:
        raise DataError(
            f"{source_name}: the files contain {train_count} training and {test_count} test trajectories, but with "
            f"`data.split.val={cfg.val}` at least {val + 1} and 1 are needed; add trajectories"
        )
    order = _shuffled_ids(train_count, cfg.seed)
    return Splits(train=np.sort(order[val:]), val=np.sort(order[:val]), test=ids["test"], has_test_files=True)


def concatenate_splits(file_splits: Sequence[Splits], sizes: Sequence[int]) -> Splits:
    """Combine the splits of several files into splits of their concatenated trajectories.

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


def read_split(path: str | Path, trajectories: int, source_name: str, task: str) -> Splits:
    """Read the splits of the task `task` from the `split.json` of a run.

    Args:
        path: JSON file with a result of `split_record`, or for several tasks with one by the name of each task.
        trajectories: Number of trajectories in the data.
        source_name: Name of the data in messages.

    Raises:
        DataError: The file cannot be read, or has another number of trajectories.
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
            f"{path}: splits {count} trajectories, but {source_name} contains {trajectories}; give the split file of "
            "these data, or another `data.split.method`, such as random"
        )
    return result


def split_predictor_and_corrector(
    train_ids: Int[np.ndarray, " n"], share: float, seed: int, source_name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Divide the training trajectories between a predictor and its corrector.

    Args:
        train_ids: Ids of the training trajectories.
        share: Share of the corrector, `diffusion.fold`.
        seed: Seed of the random division.
        source_name: Name of the data in messages.

    Returns:
        The ids for the predictor and the ids for the corrector.

    Raises:
        DataError: No trajectory is left for the predictor.
    """
    held_out = _trajectory_count(share, len(train_ids))
    if held_out >= len(train_ids):
        raise DataError(
            f"{source_name}: none of the {len(train_ids)} training trajectories is left for the predictor with "
            f"`diffusion.fold={share:g}`; lower the key, or add training trajectories"
        )
    order = philox_generator(philox_key(seed, "fold")).permutation(len(train_ids))
    return train_ids[np.sort(order[held_out:])], train_ids[np.sort(order[:held_out])]


def split_record(splits: Splits, trajectories: int) -> dict[str, Any]:
    """Return the splits as JSON values: the number of trajectories, and the ids of each split."""
    ids_by_role = {role: getattr(splits, role).tolist() for role in ("train", "val", "test")}
    return {"trajectories": trajectories} | ids_by_role


def _val_and_test_counts(trajectories: int, cfg: SplitConfig, source_name: str) -> tuple[int, int]:
    """Return the numbers of validation and test trajectories; raise `DataError` if none is left for training."""
    val, test = _trajectory_count(cfg.val, trajectories), _trajectory_count(cfg.test, trajectories)
    if trajectories < val + test + 1:
        raise DataError(
            f"{source_name}: contains {trajectories} trajectories, but with `data.split.val={cfg.val}` and "
            f"`data.split.test={cfg.test}` at least {val + test + 1} are needed; add trajectories"
        )
    return val, test


def _split_ordered_ids(ids: Int[np.ndarray, " n"], val: int, test: int) -> Splits:
    """Take the first `test` ids for test, the next `val` ids for validation, and the others for training."""
    return Splits(train=np.sort(ids[val + test :]), val=np.sort(ids[test : val + test]), test=np.sort(ids[:test]))


def _trajectory_count(share: float, trajectories: int) -> int:
    """Return `share` times the number of trajectories, rounded to an integer of at least 1."""
    return max(1, round(share * trajectories))


def _shuffled_ids(trajectories: int, seed: int) -> Int[np.ndarray, " n"]:
    """Return the ids 0 to `trajectories` - 1 in random order."""
    return np.random.default_rng(abs(seed)).permutation(trajectories)
