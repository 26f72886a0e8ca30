"""The stages, one a file: what each is made of. A new stage is a file here and an entry of `StagesConfig`."""

from __future__ import annotations

import importlib
from dataclasses import fields
from typing import TYPE_CHECKING

from ups_jax.config import StagesConfig

if TYPE_CHECKING:
    from ups_jax.training.stages.spec import StageSpec

# In the order in which they are trained. Their files are imported when they are used: reading the names is cheap.
STAGES = tuple(field.name for field in fields(StagesConfig))


def stage_of(name: str) -> StageSpec:
    """What the stage of a name is made of."""
    return importlib.import_module(f"ups_jax.training.stages.{name}").STAGE


__all__ = ["STAGES", "stage_of"]
