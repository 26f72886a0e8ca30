"""XLA's persistent compilation cache, so that a program that was compiled once starts in a second ever after."""

from __future__ import annotations

import os
from pathlib import Path

import jax


def enable_compilation_cache() -> None:
    """Keep compiled programs under the user's cache directory, unless JAX_COMPILATION_CACHE_DIR names another."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(base) / "ups_jax" / "compilation"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
