"""A codec that is held while the operator is trained on its latents: no step moves it, and no average rounds it."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
from flax.traverse_util import flatten_dict

from ups_jax.config import Config
from ups_jax.models.codec import CODEC
from ups_jax.models.sharing import Part
from ups_jax.optim import ema_params
from ups_jax.training.build import frames_of
from ups_jax.training.joint import example
from ups_jax.training.stages.spec import StageSpec
from ups_jax.training.state import TrainState


def holds_codec(cfg: Config, stage: str) -> bool:
    """Whether a stage is trained on latents."""
    return stage == "operator" and cfg.data.source == "latents"


def all_but_codec(spec: StageSpec, model: Any, cfg: Config) -> Part:
    """The parameters that training on latents moves, as a part of the whole; the codec's are foreign to it."""
    first = example(model.task, frames_of(cfg, model.task))
    paths = frozenset(flatten_dict(jax.eval_shape(partial(spec.init, model), jax.random.key(0), first)))
    codec = frozenset(path for path in paths if path[0] == CODEC)
    return Part(used=paths - codec, foreign=codec)


def averaged(cfg: Config, stage: str, state: TrainState, decay: float | None) -> Any:
    """The averaged parameters of a state; of a held codec its own, whose average differs from it by round-off."""
    average = ema_params(state.params, state.ema, decay)
    return {**average, CODEC: state.params[CODEC]} if holds_codec(cfg, stage) else average
