"""Cached latents of a frozen codec: their manifest, writer and windows."""
