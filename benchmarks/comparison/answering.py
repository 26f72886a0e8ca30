"""The command line of a row's process: a row as JSON, optionally a core; it prints one line of JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from ups_jax.core.errors import UserError
from ups_jax.core.xla import enable_compilation_cache


def answer(run: Callable[[str], dict[str, Any]]) -> None:
    """Print what `run` makes of the row; of a user's error one line and its exit code."""
    # Before the first array: threads inherit the core that this one is bound to.
    if len(sys.argv) > 2 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(sys.argv[2])})
    enable_compilation_cache()
    try:
        values = run(sys.argv[1])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(json.dumps(values, allow_nan=False))
