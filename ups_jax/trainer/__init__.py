"""Training of a stage in a run directory: preflight checks, training loop, resuming, retries and console output."""
