"""Cached latents of a frozen codec: manifest, writer, and windows for training."""
