"""Conversion of data to folders of ArrayRecord shards and to HDF5 files. `ups_jax.data.sources` reads both."""
