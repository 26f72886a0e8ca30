"""Embedded solvers that write data files. Nothing here is needed to read them; jax is imported by a solve only."""

from ups_jax.simulate.generator import generate, prepare
from ups_jax.simulate.presets import PRESETS, Preset
