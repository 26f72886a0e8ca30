"""`deterministic: true`: the flags by which XLA gives the same bits in every run, set before JAX starts its backend.

On a GPU atomic additions and timed choices between kernels give other last bits from run to run; the flag forbids both
(it costs speed). A CPU needs nothing. What is random follows from `seed` in any case (`ups_jax.seeding`).
"""

from __future__ import annotations

import os
import sys

from ups_jax.errors import ConfigError

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
    elif not _started():
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}=true".strip()
    elif _platform() != "cpu":
        raise ConfigError(
            "key `deterministic`: is true, but JAX has started its GPU already; "
            f"start Python with XLA_FLAGS={_FLAG}=true in the environment"
        )


def _started() -> bool:
    # Asking for it must not import JAX: the flags may still be set then.
    if "jax" not in sys.modules:
        return False
    from jax._src import xla_bridge

    return xla_bridge.backends_are_initialized()


def _platform() -> str:
    import jax

    return jax.default_backend()
