"""Errors, tasks, random streams, file writing, locks and XLA settings, which every other package may import."""
