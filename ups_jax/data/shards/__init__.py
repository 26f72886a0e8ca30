"""Conversion between data files and folders of ArrayRecord shards. `ups_jax.data.sources.shards` reads the folders."""
