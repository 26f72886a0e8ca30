"""Which trajectories train, validate and test: disjoint, never empty, a function of the split's seed."""

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
from ups_jax.core.rng import generator, stream_key

Split = Literal["train", "val", "test"]
_ROLES: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, eq=False, kw_only=True)
class Splits:
    """Ascending trajectory ids of each split; `apart` where those of the test are from files of their own."""

    train: Int[np.ndarray, " n"]
    val: Int[np.ndarray, " m"]
    test: Int[np.ndarray, " k"]
    apart: bool = False

    def __post_init__(self) -> None:
        if not (len(self.train) and len(self.val) and len(self.test)):
            raise ValueError("a split is empty")
        together = np.concatenate([self.train, self.val, self.test])
        if len(np.unique(together)) != len(together):
            raise ValueError("splits share trajectories")

    def ids(self, split: Split) -> Int[np.ndarray, " n"]:
        """Ids of a split by name."""
        return {"train": self.train, "val": self.val, "test": self.test}[split]


def draw(trajectories: int, cfg: SplitConfig, name: str) -> Splits:
    """Shares of one file's trajectories, at random. Raises `DataError` if there are too few for three splits."""
    val, test = _counts(trajectories, cfg, name)
    return _cut(_order(trajectories, cfg.seed), val, test)


def by_place(trajectories: int, cfg: SplitConfig, name: str, *, test_last: bool) -> Splits:
    """The first for test (or the last), the next for validation. Raises `DataError` if there are too few."""
    val, test = _counts(trajectories, cfg, name)
    order = np.arange(trajectories)
    return _cut(order[::-1] if test_last else order, val, test)


def by_hash(keys: Sequence[str], cfg: SplitConfig, name: str) -> Splits:
    """Each trajectory by its own key and the seed alone. Raises `DataError` where a split is left empty."""
    digests = (hashlib.sha1(f"{cfg.seed}|{key}".encode()).digest()[:8] for key in keys)
    place = np.array([int.from_bytes(digest, "big") / 2**64 for digest in digests])
    test, val = place < cfg.test, (cfg.test <= place) & (place < cfg.test + cfg.val)
    parts = {"train": ~(test | val), "val": val, "test": test}
    for role, chosen in parts.items():
        if not chosen.any():
            raise DataError(
                f"{name}: none of {len(keys)} trajectories falls into {role} by data.split.method=hash; raise "
                "data.split.val and test, or use random"
            )
    ids = [np.flatnonzero(chosen) for chosen in parts.values()]
    return Splits(train=ids[0], val=ids[1], test=ids[2])


def by_files(sizes: Mapping[str, int], cfg: SplitConfig, name: str) -> Splits:
    """Files of their own, numbered in the order of `sizes`; without one for validation it is a share of training's."""
    ends = np.cumsum(list(sizes.values()))
    ids = {role: np.arange(end - size, end) for (role, size), end in zip(sizes.items(), ends.tolist(), strict=True)}
    if "val" in ids:
        if min(sizes.values()) < 1:
            raise DataError(f"{name}: hold {dict(sizes)} trajectories, each split needs 1 or more")
        return Splits(train=ids["train"], val=ids["val"], test=ids["test"], apart=True)
    first, second = sizes["train"], sizes["test"]
    val = _share(cfg.val, first)
    if first < val + 1 or second < 1:
        raise DataError(
            f"{name}: hold {first} and {second} trajectories, the split needs {val + 1} and 1 or more "
            f"(data.split.val={cfg.val})"
        )
    order = _order(first, cfg.seed)
    return Splits(train=np.sort(order[val:]), val=np.sort(order[:val]), test=ids["test"], apart=True)


def one_after_another(each: Sequence[Splits], sizes: Sequence[int]) -> Splits:
    """The splits of several files of so many trajectories as one, of all their trajectories in this order."""
    starts = np.cumsum([0, *sizes[:-1]])
    roles = {
        role: np.concatenate([own.ids(role) + start for own, start in zip(each, starts, strict=True)])
        for role in _ROLES
    }
    return Splits(train=roles["train"], val=roles["val"], test=roles["test"])


def listed(path: str | Path, trajectories: int, name: str, task: str) -> Splits:
    """The split of a JSON file as `as_list` gives it, or under the task's name such ones of several tasks. Raises
    `DataError` where it does not fit the data."""
    try:
        content = read_json(Path(path))
        content = content.get(task, content)
        parts = {role: np.asarray(content[role], np.int64) for role in ("train", "val", "test")}
        together = np.concatenate(list(parts.values()))
        count = int(content["trajectories"])
        found = Splits(train=np.sort(parts["train"]), val=np.sort(parts["val"]), test=np.sort(parts["test"]))
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; give the split.json of a run") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(f"{path}: is no split ({' '.join(str(error).split())}); give the split.json of a run") from None
    if count != trajectories or not ((together >= 0) & (together < trajectories)).all():
        raise DataError(f"{path}: is a split of {count} trajectories, {name} holds {trajectories}; give its own")
    return found


def fold(train: Int[np.ndarray, " n"], share: float, seed: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Training trajectories that a predictor is trained on, and the share that is held out for its corrector. Raises
    `DataError` where none is left for the predictor."""
    held = _share(share, len(train))
    if held >= len(train):
        raise DataError(
            f"{name}: of {len(train)} training trajectories diffusion.fold={share:g} leaves the predictor none; lower "
            "it, or give more of them"
        )
    order = generator(stream_key(seed, "fold")).permutation(len(train))
    return train[np.sort(order[held:])], train[np.sort(order[:held])]


def as_list(parts: Splits, trajectories: int) -> dict[str, Any]:
    """What a split file holds."""
    return {"trajectories": trajectories} | {role: getattr(parts, role).tolist() for role in ("train", "val", "test")}


def _counts(trajectories: int, cfg: SplitConfig, name: str) -> tuple[int, int]:
    val, test = _share(cfg.val, trajectories), _share(cfg.test, trajectories)
    if trajectories < val + test + 1:
        raise DataError(
            f"{name}: holds {trajectories} trajectories, the split needs {val + test + 1} or more "
            f"(data.split.val={cfg.val}, data.split.test={cfg.test})"
        )
    return val, test


def _cut(order: Int[np.ndarray, " n"], val: int, test: int) -> Splits:
    return Splits(train=np.sort(order[val + test :]), val=np.sort(order[test : val + test]), test=np.sort(order[:test]))


def _share(share: float, trajectories: int) -> int:
    return max(1, round(share * trajectories))


def _order(trajectories: int, seed: int) -> Int[np.ndarray, " n"]:
    return np.random.default_rng(abs(seed)).permutation(trajectories)
