"""Stepping a model in time, as pure functions: autoregressive and latent rollouts, corrections, steady solutions."""
