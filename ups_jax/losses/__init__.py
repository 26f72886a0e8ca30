"""Training losses: pure functions of fields and tokens, one file a family, and the bundles that weigh them.

All take `reduction="mean" | "sum" | "none"` (`none`: one value a sample) and a `mask` of samples `(b,)` or points.
"""

from ups_jax.losses.boundary import boundary
from ups_jax.losses.diffusion import diffusion_losses, draw_bare, draw_flow, residual_of
from ups_jax.losses.distillation import distillation_losses, draw_levels, level_counts
from ups_jax.losses.field import forward, h1, nrmse, relative_mse, rollout
from ups_jax.losses.latent import inverse_decoding, inverse_encoding, inverse_weight, latent_diversity, latent_norm
from ups_jax.losses.operator import draw_rows, latent_losses, operator_losses, steady_losses
from ups_jax.losses.physics import conservation, divergence, positivity, smoothness
from ups_jax.losses.reduction import per_task_metrics, per_task_terms
from ups_jax.losses.spectral import spectral_band, spectral_energy
from ups_jax.losses.step_context import Draw, StageLoss, StepContext, Terms
from ups_jax.losses.terms import sample_present, sample_queries, take_points
from ups_jax.losses.weights import key_of, scheduled, term_weights

__all__ = [
    "Draw",
    "StageLoss",
    "StepContext",
    "Terms",
    "boundary",
    "conservation",
    "diffusion_losses",
    "distillation_losses",
    "divergence",
    "draw_bare",
    "draw_flow",
    "draw_levels",
    "draw_rows",
    "forward",
    "h1",
    "inverse_decoding",
    "inverse_encoding",
    "inverse_weight",
    "key_of",
    "latent_diversity",
    "latent_losses",
    "latent_norm",
    "level_counts",
    "nrmse",
    "operator_losses",
    "per_task_metrics",
    "per_task_terms",
    "positivity",
    "relative_mse",
    "residual_of",
    "rollout",
    "sample_present",
    "sample_queries",
    "scheduled",
    "smoothness",
    "spectral_band",
    "spectral_energy",
    "steady_losses",
    "take_points",
    "term_weights",
]
