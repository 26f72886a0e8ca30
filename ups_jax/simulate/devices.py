"""The device that embedded data is solved on."""

from __future__ import annotations

import jax

from ups_jax.errors import ConfigError


def cpu() -> jax.Device:
    """The CPU, in whose float64 all are solved, whatever a run trains on. Raises `ConfigError` where JAX has none."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        raise ConfigError("the embedded solvers need the CPU, which JAX_PLATFORMS leaves out; add `,cpu`") from None
