"""Trajectories from files or arrays: checked, split, and handed out as batches of windows. Never imports jax."""

from ups_jax.data.batches import (
    batch_at,
    first_batches,
    steps_per_epoch,
    trained_on,
    training_batches,
    windows_per_step,
)
from ups_jax.data.dataset import Dataset, Trajectories
from ups_jax.data.files import data_path
from ups_jax.data.mixture import Mixture, mixture_of
from ups_jax.data.open import from_arrays, open_dataset, open_mixture
from ups_jax.data.splits import Split

__all__ = [
    "Dataset",
    "Mixture",
    "Split",
    "Trajectories",
    "batch_at",
    "data_path",
    "first_batches",
    "from_arrays",
    "mixture_of",
    "open_dataset",
    "open_mixture",
    "steps_per_epoch",
    "trained_on",
    "training_batches",
    "windows_per_step",
]
