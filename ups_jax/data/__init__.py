"""Datasets of trajectories, their splits, and batches of windows. This package never imports jax."""

from ups_jax.data.batches import (
    batch_at,
    first_batches,
    stage_trajectory_ids,
    steps_per_epoch,
    training_batches,
    windows_per_step,
)
from ups_jax.data.dataset import Dataset, Trajectories
from ups_jax.data.files import data_path
from ups_jax.data.mixture import Mixture, as_mixture
from ups_jax.data.open import from_arrays, open_dataset, open_mixture
from ups_jax.data.splits import Split, Splits
