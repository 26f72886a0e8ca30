"""The predictor that a corrector belongs to: the model of the stage whose error it learns."""

from __future__ import annotations

from ups_jax.config import STAGE_NEEDS, Config
from ups_jax.models import Simulator, SteadySimulator
from ups_jax.task import Task
from ups_jax.training.stages import operator, steady_prior

_STAGES = {"operator": operator.STAGE, "steady_prior": steady_prior.STAGE}


def predictor_stage(kind: str) -> str:
    """The stage that trains it, on a kind of task."""
    (name,) = STAGE_NEEDS[kind]["diffusion_residual"]
    return name


def predictor_model(cfg: Config, task: Task) -> Simulator | SteadySimulator:
    """Its model, as its own stage builds it."""
    model: Simulator | SteadySimulator = _STAGES[predictor_stage(task.kind)].model(cfg, task)
    return model
