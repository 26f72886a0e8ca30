"""File formats. A source hands out windows of trajectories, with their grid, times and coefficients."""

from ups_jax.data.sources.base import Grid, Source
from ups_jax.data.sources.joined import JoinedSource
from ups_jax.data.sources.memory import MemorySource
from ups_jax.data.sources.pdebench_darcy import DarcySource
from ups_jax.data.sources.pdebench_tensor import TensorSource

__all__ = ["DarcySource", "Grid", "JoinedSource", "MemorySource", "Source", "TensorSource"]
