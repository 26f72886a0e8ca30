"""File formats. A source hands out windows of trajectories, with their grid, times and coefficients."""

from ups_jax.data.sources.base import Grid, Source
from ups_jax.data.sources.concatenated import JoinedSource
from ups_jax.data.sources.detect import layout_of, open_file
from ups_jax.data.sources.fixed_points import SettledSource
from ups_jax.data.sources.in_memory import MemorySource
from ups_jax.data.sources.pdebench_seeds import SeedsSource
from ups_jax.data.sources.shards import ShardsSource
