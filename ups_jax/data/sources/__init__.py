"""File formats. A source hands out windows of trajectories, with their grid, times and coefficients."""

from ups_jax.data.sources.base import Grid, Source
from ups_jax.data.sources.concatenated import JoinedSource
from ups_jax.data.sources.described_arrays import DescribedSource
from ups_jax.data.sources.detect import LAYOUTS, layout_of, open_file
from ups_jax.data.sources.fixed_points import SettledSource
from ups_jax.data.sources.in_memory import MemorySource
from ups_jax.data.sources.pdebench_cfd import CFDSource
from ups_jax.data.sources.pdebench_incompressible import IncompressibleSource
from ups_jax.data.sources.pdebench_seeds import SeedsSource
from ups_jax.data.sources.pdebench_tensor import DarcySource, TensorSource
from ups_jax.data.sources.points import PointsSource
from ups_jax.data.sources.shards import ShardsSource
from ups_jax.data.sources.well import WellSource

__all__ = [
    "LAYOUTS",
    "CFDSource",
    "DarcySource",
    "DescribedSource",
    "Grid",
    "IncompressibleSource",
    "JoinedSource",
    "MemorySource",
    "PointsSource",
    "SeedsSource",
    "SettledSource",
    "ShardsSource",
    "Source",
    "TensorSource",
    "WellSource",
    "layout_of",
    "open_file",
]
