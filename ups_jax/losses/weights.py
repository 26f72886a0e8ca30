"""The weights of the loss terms in a configuration, and the checks that a task supports the weighted terms."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ups_jax.config import PhysicsPriorsConfig, TrainingConfig
from ups_jax.core.errors import ConfigError
from ups_jax.core.task import Task
from ups_jax.losses.boundary import PointLocation, find_walls, point_location
from ups_jax.losses.spectral import BANDS

_PRIORS = ("divergence", "conservation", "boundary", "positivity", "smoothness", "latent_norm", "latent_diversity")
# Configuration key of each term's weight, below `training`.
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
# Terms that compare a prediction with data point by point, so that they can be evaluated at any subset of points.
POINTWISE_TERMS = ("relative", "relative_mse", "forward", "rollout", "inverse_encoding")
# Terms available for tasks on point sets (meshes and particles).
POINT_SET_TERMS = ("relative", "relative_mse", "forward", "rollout")
# Terms that need time steps or latent states, which a steady task does not have.
TRANSIENT_TERMS = ("rollout", "conservation", *INVERSE_TERMS, *LATENT_TERMS)


def term_weights(config: TrainingConfig) -> dict[str, float]:
    """Return the positive weights by term name; physics priors are included only if they are enabled."""
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
    """Return `term_weights` after checking that the task supports every weighted term.

    Raises:
        ConfigError: If no term has a weight, or a weighted term does not suit the task or the other keys.
    """
    weights = term_weights(config)
    if not weights:
        raise ConfigError(
            "training: no loss term has a weight above 0, so there is nothing to minimise; set "
            "training.lambda_relative to its default 1"
        )
    if task.kind == "steady":
        for name in weights:
            if name in TRANSIENT_TERMS:
                raise ConfigError(f"{weight_key(name)}: needs time steps, but task {task.name} is steady; set it to 0")
    if task.scattered:
        _check_point_set(weights, config, task)
    if "rollout" in weights and config.rollout_horizon == 1:
        raise ConfigError(
            "training.lambda_rollout: is the weight of the steps after the first, but training.rollout_horizon is 1; "
            "set training.rollout_horizon to 2 or more, or training.lambda_rollout to 0"
        )
    _check_spectral_bands(weights, task)
    _check_query_sampling(weights, config)
    _check_priors(weights, config, task)
    return weights


def has_epoch_schedule(config: TrainingConfig) -> bool:
    """Return whether the weight of any term depends on the epoch."""
    return any(name in INVERSE_TERMS for name in term_weights(config))


def weight_key(term: str) -> str:
    """Return the full configuration key of a term's weight."""
    return f"training.{WEIGHT_KEYS[term]}"


def channel_indices(names: tuple[str, ...], key: str, task: Task) -> tuple[int, ...]:
    """Return the indices of the channels that a key of the physics priors lists.

    Args:
        names: Channel names; empty for all channels of the task.
        key: Name of the key below `training.physics_priors`, for the error message.

    Raises:
        ConfigError: If the task does not have one of the channels.
    """
    unknown = [name for name in names if name not in task.channels]
    if unknown:
        raise ConfigError(
            f"training.physics_priors.{key}: task {task.name} has no channel {_join(unknown)}; "
            f"choose from {_join(task.channels)}"
        )
    return tuple(task.channels.index(name) for name in names or task.channels)


def wall_location(task: Task, priors: PhysicsPriorsConfig) -> PointLocation:
    """Return whether the grid's outermost points are on the walls of a boundary condition or half a spacing inside.

    For a task that was recorded without `loss_scales`, they count as on the walls.

    Raises:
        ConfigError: If `bc_points` is `auto` and the coordinates of the grid do not decide.
    """
    if priors.bc_points != "auto":
        return priors.bc_points
    if task.loss_scales is None or priors.bc_condition == "periodic":
        return "nodes"
    location = point_location(find_walls(task.periodic, priors.bc_type), task.origin, task.spacing)
    if location is None:
        raise ConfigError(
            f"training.physics_priors.bc_points: the first coordinates {_join_numbers(task.origin)} of task "
            f"{task.name} do not show where the walls are: they are neither 0 nor half of the spacing "
            f"{_join_numbers(task.spacing)}; set the key to nodes if the outermost points are on the walls, or to "
            "cells if they are half a spacing inside"
        )
    return location


def _check_point_set(weights: dict[str, float], config: TrainingConfig, task: Task) -> None:
    """Raise ConfigError if a weighted term or the query sampling needs a grid; `task` is on points."""
    grid_terms = [name for name in weights if name not in POINT_SET_TERMS]
    if grid_terms:
        keys = _join(dict.fromkeys(weight_key(name) for name in grid_terms))
        raise ConfigError(
            f"{keys}: needs a grid, but the fields of task {task.name} are on points; set the weight to 0"
        )
    if config.query_sampling.enabled and config.query_sampling.strategy != "uniform":
        raise ConfigError(
            f"training.query_sampling.strategy: {config.query_sampling.strategy} needs a grid, but the fields of task "
            f"{task.name} are on points; set it to uniform"
        )


def _check_spectral_bands(weights: dict[str, float], task: Task) -> None:
    """Raise ConfigError if a weighted spectral band starts above the largest wavenumber of the grid."""
    top = round(math.sqrt(sum((size // 2) ** 2 for size in task.shape)))
    for name, (first, _) in BANDS.items():
        if f"spectral_{name}" in weights and first > top:
            raise ConfigError(
                f"training.lambda_spectral_bands: the band {name} starts at wavenumber {first}, but the grid of task "
                f"{task.name} ends at {top}; set the weight of this band to 0"
            )


def _check_query_sampling(weights: dict[str, float], config: TrainingConfig) -> None:
    """Raise ConfigError if query sampling is enabled without a number of points or a weighted term that uses it."""
    if not config.query_sampling.enabled:
        return
    if config.query_sampling.num_queries is None:
        raise ConfigError(
            "training.query_sampling.num_queries: is not set; set it, or set training.query_sampling.enabled=false"
        )
    if not any(name in POINTWISE_TERMS for name in weights):
        keys = _join(weight_key(name) for name in POINTWISE_TERMS)
        raise ConfigError(
            "training.query_sampling.enabled: no weighted term uses the sampled points; set the weight of one of "
            f"{keys}, or set training.query_sampling.enabled=false"
        )


def _check_priors(weights: dict[str, float], config: TrainingConfig, task: Task) -> None:
    """Raise ConfigError if a weighted physics prior needs channels or walls that the task does not have."""
    priors = config.physics_priors
    if "divergence" in weights:
        channel_indices(priors.velocity, "velocity", task)
        if len(priors.velocity) != len(task.axes):
            raise ConfigError(
                f"{weight_key('divergence')}: needs one velocity channel for each axis ({_join(task.axes)}); name "
                f"them in training.physics_priors.velocity (task {task.name} has {_join(task.channels)})"
            )
    for name in ("conservation", "boundary", "positivity", "smoothness"):
        if name in weights:
            channel_indices(getattr(priors, f"{name}_channels"), f"{name}_channels", task)
    if "positivity" in weights and not priors.positivity_channels and len(task.channels) > 1:
        raise ConfigError(
            f"{weight_key('positivity')}: training.physics_priors.positivity_channels is empty; name there the "
            f"channels that cannot be negative (task {task.name} has {_join(task.channels)})"
        )
    if "boundary" in weights:
        try:
            walls = find_walls(task.periodic, priors.bc_type)
        except ValueError as error:
            raise ConfigError(f"training.physics_priors.bc_type: {error}") from None
        if not walls:
            raise ConfigError(
                f"{weight_key('boundary')}: needs a wall, but the grid of task {task.name} is periodic at side "
                f"{priors.bc_type} (training.physics_priors.bc_type); set the weight to 0"
            )
        wall_location(task, priors)


def _join_numbers(values: Iterable[float]) -> str:
    """Return the numbers separated by commas."""
    return _join(f"{value:g}" for value in values)


def _join(names: Iterable[str]) -> str:
    """Return the names separated by commas."""
    return ", ".join(names)
