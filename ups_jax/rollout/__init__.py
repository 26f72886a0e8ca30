"""Pure functions that step a model in time: autoregressive and latent rollouts, corrections, steady solutions."""

from ups_jax.rollout.autoregressive import latent_rollout, reconstruct, rollout
from ups_jax.rollout.steady import solve
