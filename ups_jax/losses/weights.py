"""Which terms a configuration asks for, with which weights, and whether a task can have them."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ups_jax.config import TrainingConfig
from ups_jax.core.errors import ConfigError
from ups_jax.core.task import Task
from ups_jax.losses.boundary import find_walls
from ups_jax.losses.spectral import BANDS

_PRIORS = ("divergence", "conservation", "boundary", "positivity", "smoothness", "latent_norm", "latent_diversity")
# The configuration's key of each term, below `training`.
WEIGHT_KEYS = {
    "relative": "lambda_relative",
    "relative_mse": "lambda_relative_mse",
    "h1": "lambda_h1",
    "forward": "lambda_forward",
    "rollout": "lambda_rollout",
    "spectral": "lambda_spectral",
    **{f"spectral_{band}": "lambda_spectral_bands" for band in BANDS},
    "inverse_encoding": "lambda_inv_enc",
    "inverse_decoding": "lambda_inv_dec",
    **{name: f"physics_priors.lambda_{name}" for name in _PRIORS},
}
INVERSE_TERMS = ("inverse_encoding", "inverse_decoding")
LATENT_TERMS = ("latent_norm", "latent_diversity")
PHYSICS_TERMS = tuple(name for name in _PRIORS if name not in LATENT_TERMS)
# Terms that compare a prediction with data point by point, so that any points will do.
POINTWISE_TERMS = ("relative", "relative_mse", "forward", "rollout", "inverse_encoding")
# Those that a set of points can have.
POINT_SET_TERMS = ("relative", "relative_mse", "forward", "rollout")
# Terms of a step in time or of a latent state, which a steady task has not.
TRANSIENT_TERMS = ("rollout", "conservation", *INVERSE_TERMS, *LATENT_TERMS)


def term_weights(config: TrainingConfig) -> dict[str, float]:
    """The weight of each term that has one; of the physics priors only where they are enabled."""
    priors = config.physics_priors
    weights = {
        "relative": config.lambda_relative,
        "relative_mse": config.lambda_relative_mse,
        "h1": config.lambda_h1,
        "forward": config.lambda_forward,
        "rollout": config.lambda_rollout,
        "spectral": config.lambda_spectral,
        **{f"spectral_{band}": weight for band, weight in zip(BANDS, config.lambda_spectral_bands, strict=True)},
        "inverse_encoding": config.lambda_inv_enc,
        "inverse_decoding": config.lambda_inv_dec,
    }
    if priors.enabled:
        weights |= {
            "divergence": priors.lambda_divergence,
            "conservation": priors.lambda_conservation,
            "boundary": priors.lambda_boundary,
            "positivity": priors.lambda_positivity,
            "smoothness": priors.lambda_smoothness,
            "latent_norm": priors.lambda_latent_norm,
            "latent_diversity": priors.lambda_latent_diversity,
        }
    return {name: weight for name, weight in weights.items() if weight > 0}


def checked_weights(config: TrainingConfig, task: Task) -> dict[str, float]:
    """`term_weights`, or ConfigError where there is none, or where the task lacks what a term needs."""
    weights = term_weights(config)
    if not weights:
        raise ConfigError("no loss term has a weight; set training.lambda_relative, whose default is 1")
    if task.kind == "steady":
        for name in weights:
            if name in TRANSIENT_TERMS:
                raise ConfigError(f"{weight_key(name)} is of tasks in time, and {task.name} is steady; set it to 0")
    if task.scattered:
        _check_points(weights, config, task)
    if "rollout" in weights and config.rollout_horizon == 1:
        raise ConfigError(
            "training.lambda_rollout weighs the steps after the first, and training.rollout_horizon is 1; "
            "set that to 2 or more, or the weight to 0"
        )
    _check_bands(weights, task)
    _check_queries(weights, config)
    _check_priors(weights, config, task)
    return weights


def has_epoch_schedule(config: TrainingConfig) -> bool:
    """Whether the weight of any term depends on the epoch."""
    return any(name in INVERSE_TERMS for name in term_weights(config))


def weight_key(term: str) -> str:
    """The full key of a term's weight."""
    return f"training.{WEIGHT_KEYS[term]}"


def channel_indices(names: tuple[str, ...], key: str, task: Task) -> tuple[int, ...]:
    """Positions of the channels that a key of the priors names, of all where it is empty; ConfigError for others."""
    unknown = [name for name in names if name not in task.channels]
    if unknown:
        raise ConfigError(
            f"training.physics_priors.{key}: task {task.name} has no channel {_listed(unknown)}; "
            f"it has {_listed(task.channels)}"
        )
    return tuple(task.channels.index(name) for name in names or task.channels)


def _check_points(weights: dict[str, float], config: TrainingConfig, task: Task) -> None:
    """ConfigError for a term that a set of points has no grid for."""
    of_grids = [name for name in weights if name not in POINT_SET_TERMS]
    if of_grids:
        keys = _listed(dict.fromkeys(weight_key(name) for name in of_grids))
        raise ConfigError(f"{keys}: needs a grid, and task {task.name} is of points; set it to 0")
    if config.query_sampling.enabled and config.query_sampling.strategy != "uniform":
        raise ConfigError(f"training.query_sampling.strategy: task {task.name} is of points; set it to uniform")


def _check_bands(weights: dict[str, float], task: Task) -> None:
    top = round(math.sqrt(sum((size // 2) ** 2 for size in task.shape)))
    for name, (first, _) in BANDS.items():
        if f"spectral_{name}" in weights and first > top:
            raise ConfigError(
                f"training.lambda_spectral_bands: task {task.name} has wavenumbers up to {top}, and the band {name} "
                f"starts at {first}; set its weight to 0"
            )


def _check_queries(weights: dict[str, float], config: TrainingConfig) -> None:
    if not config.query_sampling.enabled:
        return
    if config.query_sampling.num_queries is None:
        raise ConfigError("training.query_sampling is enabled without num_queries; set it, or enabled to false")
    if not any(name in POINTWISE_TERMS for name in weights):
        keys = _listed(weight_key(name) for name in POINTWISE_TERMS)
        raise ConfigError(
            f"training.query_sampling is enabled, and no term uses it; weigh one of {keys}, or disable it"
        )


def _check_priors(weights: dict[str, float], config: TrainingConfig, task: Task) -> None:
    priors = config.physics_priors
    if "divergence" in weights:
        channel_indices(priors.velocity, "velocity", task)
        if len(priors.velocity) != len(task.axes):
            raise ConfigError(
                f"{weight_key('divergence')}: the velocity needs a channel for each of the axes {_listed(task.axes)}; name "
                f"them in training.physics_priors.velocity (task {task.name} has {_listed(task.channels)})"
            )
    for name in ("conservation", "boundary", "positivity", "smoothness"):
        if name in weights:
            channel_indices(getattr(priors, f"{name}_channels"), f"{name}_channels", task)
    if "positivity" in weights and not priors.positivity_channels and len(task.channels) > 1:
        raise ConfigError(
            f"{weight_key('positivity')}: name the channels that cannot be negative in "
            f"training.physics_priors.positivity_channels (task {task.name} has {_listed(task.channels)})"
        )
    if "boundary" in weights:
        try:
            walls = find_walls(task.periodic, priors.bc_type)
        except ValueError as error:
            raise ConfigError(f"training.physics_priors.bc_type: {error}") from None
        if not walls:
            raise ConfigError(
                f"{weight_key('boundary')}: task {task.name} has no wall at {priors.bc_type}, its axes are periodic there; "
                "set the weight to 0"
            )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
