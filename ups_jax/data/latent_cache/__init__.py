"""Folders of latents, which the encoder of a frozen codec computes once: writing, and reading of training windows."""
