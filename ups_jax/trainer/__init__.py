"""Training a stage with disk and console: preflight checks, the loop, resuming, and memory that runs out."""
