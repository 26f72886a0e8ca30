"""Model options that all stages share: checks of the widths, compute type, matmul precision, rematerialisation."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import DTypeLike

from ups_jax.config import Config, OperatorConfig
from ups_jax.core.errors import ConfigError


def check_widths(operator: OperatorConfig, section: str = "operator.pdet") -> None:
    """Raise ConfigError if the widths of the chosen architecture are inconsistent; messages name `section`."""
    pdet = operator.pdet
    grouped = operator.architecture_type == "pdet_unet" or pdet.attention_type == "channel_separated"
    if operator.architecture_type == "spectral":
        return
    if grouped and pdet.hidden_dim % pdet.group_size:
        raise ConfigError(
            f"{section}.hidden_dim={pdet.hidden_dim} is not a multiple of group_size={pdet.group_size}; change either"
        )
    heads_in = pdet.group_size if grouped else pdet.hidden_dim
    if heads_in % pdet.num_heads:
        raise ConfigError(
            f"operator.pdet.num_heads={pdet.num_heads} does not divide the width {heads_in} of the attention; set "
            f"num_heads to a divisor of {heads_in}"
        )


def check_pooling(cfg: Config) -> None:
    """Raise ConfigError if the pooling yields tokens without a grid and the architecture requires a grid."""
    architecture = cfg.operator.architecture_type
    if cfg.latent.pooling == "queries" and architecture != "pdet_stack":
        raise ConfigError(
            f"latent.pooling=queries yields tokens without a grid, but operator.architecture_type={architecture} "
            "requires a grid; set operator.architecture_type=pdet_stack"
        )


def compute_dtype(cfg: Config) -> DTypeLike:
    """Return the data type in which models compute, according to `training.precision`."""
    return jnp.bfloat16 if cfg.training.precision == "bf16" else jnp.float32


def matmul_precision(cfg: Config) -> str:
    """Return the precision of float32 matrix products, `default` or `highest` (`jax.default_matmul_precision`)."""
    return "default" if cfg.training.precision == "tf32" else "highest"


def recomputes_blocks(cfg: Config) -> bool:
    """Return whether the architecture's blocks are rematerialised in the backward pass (`training.remat`)."""
    return cfg.training.remat != "none"
