"""The stages, one a file: what each is made of. A new stage is a file here and an entry of
`StagesConfig` and `STAGES`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ups_jax.config import Config
from ups_jax.core.errors import ConfigError
from ups_jax.core.stage_names import STAGES

if TYPE_CHECKING:
    from ups_jax.training.stages.spec import StageSpec


def stage_spec(name: str) -> StageSpec:
    """What the stage of a name is made of."""
    return importlib.import_module(f"ups_jax.training.stages.{name}").STAGE


def enabled_stages(cfg: Config) -> tuple[str, ...]:
    """The stages with epochs or steps above 0, in their order; ConfigError where there is none."""
    own = {name: getattr(cfg.stages, name) for name in STAGES}
    enabled = tuple(name for name, item in own.items() if (item.epochs if item.steps is None else item.steps) > 0)
    if not enabled:
        raise ConfigError("no stage is enabled: give one of `stages` epochs or steps, or name one by --stage")
    return enabled
