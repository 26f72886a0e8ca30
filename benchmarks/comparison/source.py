"""The state of the code that makes the numbers, so that rows made by another one are told apart in the table."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from ups_jax.config.packaged import CONFIGS

_HERE = Path(__file__).resolve().parent
# What shows, stores, drives or describes a run, and has no part in a number of it.
_LIBRARY_ASIDE = (
    *("cli/*", "pipeline/*", "runs/*", "tracking/*", "evaluation/plots/*"),
    *("evaluation/console.py", "evaluation/evaluate_run.py"),
    *("trainer/train.py", "trainer/loop.py", "trainer/console.py"),
)
_OWN_ASIDE = ("table.py", "stage_table.py", "notes.py", "report.py", "store.py", "jobs.py", "runs.py", "source.py")


def source_files() -> Iterator[Path]:
    """Every file that a number depends on: the library's, and the comparison's own."""
    library = CONFIGS.parent / "ups_jax"
    for file in sorted(library.rglob("*.py")):
        if not any(fnmatch(file.relative_to(library).as_posix(), name) for name in _LIBRARY_ASIDE):
            yield file
    yield from sorted(file for file in _HERE.glob("*.py") if file.name not in _OWN_ASIDE)


def source_digest() -> str:
    """Twelve hex digits over those files."""
    digest = hashlib.sha256()
    for file in source_files():
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
