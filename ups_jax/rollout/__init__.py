"""Pure functions that apply a simulator: autoregressive and latent rollouts, their correction, steady solutions."""

from ups_jax.rollout.autoregressive import latent_rollout, reconstruct, rollout
from ups_jax.rollout.steady import solve
