"""The stages of a training; each is a module that defines its `StageSpec` as `STAGE`.

To add a stage, add a module here, a section in `StagesConfig` and a name in `STAGES`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ups_jax.config import Config
from ups_jax.core.errors import ConfigError
from ups_jax.core.stage_names import STAGES

if TYPE_CHECKING:
    from ups_jax.training.stages.spec import StageSpec


def stage_spec(name: str) -> StageSpec:
    """Return the specification of the stage with this name."""
    return importlib.import_module(f"ups_jax.training.stages.{name}").STAGE


def enabled_stages(cfg: Config) -> tuple[str, ...]:
    """Return the names of the stages with epochs or steps above 0, in training order.

    Raises:
        ConfigError: No stage is enabled.
    """
    settings = {name: getattr(cfg.stages, name) for name in STAGES}
    enabled = tuple(name for name, item in settings.items() if (item.epochs if item.steps is None else item.steps) > 0)
    if not enabled:
        raise ConfigError(
            "no stage is enabled; set `epochs` or `steps` of a stage in the section `stages`, or give --stage"
        )
    return enabled
