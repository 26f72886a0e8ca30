"""Latents that were encoded once: a folder of arrays with a manifest, what it depends on, and how windows are read."""
