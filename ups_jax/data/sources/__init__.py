"""Readers of the supported file formats. A source returns windows of trajectories, the grid, times and coefficients."""

from ups_jax.data.sources.base import Grid, Source
from ups_jax.data.sources.concatenated import ConcatenatedSource
from ups_jax.data.sources.detect import detect_layout, open_file
from ups_jax.data.sources.fixed_points import SteadyStateSource
from ups_jax.data.sources.in_memory import MemorySource
from ups_jax.data.sources.pdebench_seeds import SeedsSource
from ups_jax.data.sources.shards import ShardsSource
