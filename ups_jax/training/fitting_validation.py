"""A validation whose memory runs out: no micro-batch makes it smaller, so its user is told what does."""

from __future__ import annotations

from typing import Any

from ups_jax.errors import ConfigError
from ups_jax.training.memory import memory_for
from ups_jax.training.stages.spec import Validate


def fitting_validation(validate: Validate) -> Validate:
    """`validate`, with a ConfigError where it does not fit into the device's memory."""

    def checked(params: Any) -> dict[str, float]:
        refusal = "evaluation.val_trajectories: their rollouts do not fit into the device's memory at once; lower it"
        with memory_for(ConfigError(refusal)):
            return validate(params)

    return checked
