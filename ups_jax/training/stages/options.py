"""What the models of all stages take from the configuration: widths that divide, a compute type, what is recomputed."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import DTypeLike

from ups_jax.config import Config, OperatorConfig
from ups_jax.core.errors import ConfigError


def check_widths(operator: OperatorConfig, section: str = "operator.pdet") -> None:
    """ConfigError, naming the section, where the widths of the chosen core do not divide."""
    pdet = operator.pdet
    grouped = operator.architecture_type == "pdet_unet" or pdet.attention_type == "channel_separated"
    if operator.architecture_type == "spectral":
        return
    if grouped and pdet.hidden_dim % pdet.group_size:
        raise ConfigError(f"{section}.hidden_dim {pdet.hidden_dim} is not a multiple of group_size {pdet.group_size}")
    heads_in = pdet.group_size if grouped else pdet.hidden_dim
    if heads_in % pdet.num_heads:
        raise ConfigError(f"operator.pdet.num_heads {pdet.num_heads} does not divide the width {heads_in} it splits")


def check_pooling(cfg: Config) -> None:
    """ConfigError where the tokens of points have no grid and the core needs one."""
    core = cfg.operator.architecture_type
    if cfg.latent.pooling == "queries" and core != "pdet_stack":
        raise ConfigError(
            f"latent.pooling queries makes tokens without a grid, which operator.architecture_type {core} needs; write "
            "operator.architecture_type: pdet_stack"
        )


def compute_dtype(cfg: Config) -> DTypeLike:
    """The type that `training.precision` computes in."""
    return jnp.bfloat16 if cfg.training.precision == "bf16" else jnp.float32


def products(cfg: Config) -> str:
    """How exact float32 products are (`ups_jax.models.layers`): with `tf32` as the device likes them."""
    return "default" if cfg.training.precision == "tf32" else "highest"


def remat(cfg: Config) -> bool:
    """Whether the core's blocks are computed again for the gradient: `full` does that and more, in the losses."""
    return cfg.training.remat != "none"
