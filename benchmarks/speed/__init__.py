"""How close to the hardware a training step comes: ceilings, least counts, and the steps that are timed."""
