"""How programs are compiled: kept on disk, timed apart from running, or not at all, to look into them."""

from __future__ import annotations

import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import jax

from ups_jax.core.errors import ConfigError


def enable_compilation_cache() -> None:
    """Keep compiled programs under the user's cache directory, those that took a fifth of a second and more, unless
    JAX_COMPILATION_CACHE_DIR and JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS say otherwise."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(base) / "ups_jax" / "compilation"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def compiling(enabled: bool) -> AbstractContextManager[Any]:
    """As ever, or with every operation run apart and nothing compiled as a whole: slow, and open to a debugger."""
    return nullcontext() if enabled else jax.disable_jit()


def compile_ahead(function: Any, *arguments: Any) -> float:
    """Trace and compile a jitted function for these arguments, and say how many seconds of wall time that took.

    Its next call with arguments of these shapes compiles nothing any more. Arguments are not used up.
    """
    start = time.perf_counter()
    function.lower(*arguments).compile()
    return time.perf_counter() - start


def remat_options(remat: str) -> dict[str, str | bool] | None:
    """What XLA must be told for a program that computes blocks again instead of keeping them.

    On a CPU it drops the barriers between the first computation and the second before it looks for common
    subexpressions, merges the two and keeps everything: 26.7 MB of temporaries as without, where 6.6 would do (eight
    blocks of width 32, 16 tokens, 64 rows).
    """
    if remat == "none" or jax.default_backend() != "cpu":
        return None
    return {"xla_disable_hlo_passes": "cse_barrier_expander"}


# "Guarantees run-to-run determinism on GPU": it leaves out such operations, and turns autotuning off.
_FLAG = "--xla_gpu_deterministic_ops"


def require_determinism(deterministic: bool) -> None:
    """Ask XLA for it if `deterministic`; ConfigError where that comes too late, or XLA_FLAGS say the opposite.

    JAX may have been imported, but must not have used a device other than a CPU.
    """
    if not deterministic:
        return
    given = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if flag.split("=")[0] == _FLAG]
    if given:
        if given[-1].lower() not in (_FLAG, f"{_FLAG}=true", f"{_FLAG}=1"):
            raise ConfigError(
                f"key `deterministic`: is true, and XLA_FLAGS say {given[-1]}; take that out of XLA_FLAGS"
            )
    elif not backend_started():
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}=true".strip()
    else:
        import jax

        if jax.default_backend() != "cpu":
            raise ConfigError(
                "key `deterministic`: is true, but JAX has started its GPU already; "
                f"start Python with XLA_FLAGS={_FLAG}=true in the environment"
            )


def backend_started() -> bool:
    """Return whether JAX has started its backend; JAX is not imported for it, as the flags may still be set then."""
    if "jax" not in sys.modules:
        return False
    from jax._src import xla_bridge

    return xla_bridge.backends_are_initialized()
