"""Which trajectories train, validate and test: disjoint, never empty, a function of the split's seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int

from ups_jax.config import SplitConfig
from ups_jax.errors import DataError

Split = Literal["train", "val", "test"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Splits:
    """Ascending trajectory ids of each split."""

    train: Int[np.ndarray, " n"]
    val: Int[np.ndarray, " m"]
    test: Int[np.ndarray, " k"]

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
    """Shares of one file's trajectories. Raises `DataError` if there are too few for three splits."""
    val, test = _share(cfg.val, trajectories), _share(cfg.test, trajectories)
    if trajectories < val + test + 1:
        raise DataError(
            f"{name}: holds {trajectories} trajectories, the split needs {val + test + 1} or more "
            f"(data.split.val={cfg.val}, data.split.test={cfg.test})"
        )
    order = _order(trajectories, cfg.seed)
    return Splits(train=np.sort(order[val + test :]), val=np.sort(order[test : val + test]), test=np.sort(order[:test]))


def draw_pair(first: int, second: int, cfg: SplitConfig, name: str) -> Splits:
    """Validation as a share of the first file's trajectories; test is all of the second file, numbered after them."""
    val = _share(cfg.val, first)
    if first < val + 1 or second < 1:
        raise DataError(
            f"{name}: hold {first} and {second} trajectories, the split needs {val + 1} and 1 or more "
            f"(data.split.val={cfg.val})"
        )
    order = _order(first, cfg.seed)
    return Splits(train=np.sort(order[val:]), val=np.sort(order[:val]), test=np.arange(first, first + second))


def _share(share: float, trajectories: int) -> int:
    return max(1, round(share * trajectories))


def _order(trajectories: int, seed: int) -> Int[np.ndarray, " n"]:
    return np.random.default_rng(abs(seed)).permutation(trajectories)
