"""The halvings of a stage's micro-batch as run.json keeps them, and where a run that goes on starts from them.

What fits depends on the device and on what is computed again: an entry counts where both are as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from ups_jax.config import Config
from ups_jax.data import windows_per_step
from ups_jax.training.accumulate import group_size
from ups_jax.training.run_directory import now

Halving = dict[str, Any]


def halving(cfg: Config, rows: int, groups: int) -> Halving:
    """The entry of a step that is done in `groups` micro-batches of `rows` rows from now on."""
    return {"micro_batch": rows, "accum_steps": groups, "time": now()} | _where(cfg)


def micro_batches(cfg: Config, stage: str, entries: Sequence[Halving]) -> int:
    """How many micro-batches a step starts with: the stage's `accum_steps`, or those of the last entry that counts
    where they are more."""
    known = [entry["accum_steps"] for entry in entries if _where(cfg).items() <= entry.items()]
    return max([getattr(cfg.stages, stage).accum_steps, *known[-1:]])


def sizes(cfg: Config, stage: str, groups: int) -> str:
    """`groups` micro-batches of a stage's step in words."""
    return f"{groups} micro-batches of {group_size(windows_per_step(cfg, stage), groups)} rows a step"


def _where(cfg: Config) -> dict[str, str]:
    return {"device": str(jax.devices()[0].device_kind), "remat": cfg.training.remat}
