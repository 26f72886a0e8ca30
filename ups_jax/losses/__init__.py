"""Training losses: pure functions of fields and latent tokens, and the stage losses that weight and sum them.

Every loss function takes `reduction="mean" | "sum" | "none"` and a `mask`; `ups_jax.losses.reduction` defines both.
"""

from ups_jax.losses.boundary import boundary
from ups_jax.losses.diffusion import diffusion_draws, diffusion_losses, flow_draws, predictor_error_function
from ups_jax.losses.distillation import distillation_draws, distillation_losses, level_count_schedule
from ups_jax.losses.field import h1, mse, nrmse, relative_mse, rollout_mse
from ups_jax.losses.latent import inverse_decoding, inverse_encoding, inverse_weight, latent_diversity, latent_norm
from ups_jax.losses.operator import latent_losses, operator_draws, operator_losses, steady_losses
from ups_jax.losses.physics import conservation, divergence, positivity, smoothness
from ups_jax.losses.reduction import per_task_metrics, per_task_terms
from ups_jax.losses.spectral import spectral_band, spectral_energy
from ups_jax.losses.step_context import Draw, StageLoss, StepContext, Terms
from ups_jax.losses.terms import sample_present_points, sample_queries, take_points
from ups_jax.losses.weights import has_epoch_schedule, term_weights, weight_key
