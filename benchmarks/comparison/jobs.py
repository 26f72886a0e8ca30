"""Rows as processes of one thread each, a few side by side, every finished one kept at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from comparison.row import Row
from comparison.stage_row import StageRow
from comparison.store import Store
from ups_jax.config.packaged import CONFIGS

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_FOLDER = Path(__file__).resolve().parent.parent

# Both kinds name their worker's module.
AnyRow = Row | StageRow


@dataclass(frozen=True, kw_only=True)
class Job:
    row: AnyRow
    process: subprocess.Popen[str]
    output: IO[str]
    messages: IO[str]
    core: int
    began: float


def run_rows(rows: Sequence[AnyRow], store: Store, jobs: int) -> list[AnyRow]:
    """Run the rows that the store does not hold yet; those that failed, whose output has been shown."""
    waiting = [row for row in rows if not store.finished(row)]
    kept = len(rows) - len(waiting)
    if kept:
        print(f"kept        {kept} of {len(rows)} rows from {store.path}")
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(jobs))
    free = [cores[index % len(cores)] for index in range(jobs)]
    running: list[Job] = []
    failed: list[AnyRow] = []
    try:
        while waiting or running:
            while waiting and free:
                row = waiting.pop(0)
                row = store.with_steps(row) if isinstance(row, Row) else row
                running.append(_start(row, free.pop(0), pin=jobs > 1))
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                free.append(job.core)
                if not finish(job, store):
                    failed.append(job.row)
            time.sleep(0.1)
    finally:
        for job in running:
            job.process.kill()
            job.process.wait()
    return failed


def environment() -> dict[str, str]:
    """One thread of the CPU for every library, as the budget is process time of it; and the worker's modules."""
    path = os.pathsep.join([str(_FOLDER), str(CONFIGS.parent), os.environ.get("PYTHONPATH", "")])
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    settings = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip(), "PYTHONPATH": path}
    return os.environ | dict.fromkeys(_THREADS, "1") | settings


def _start(row: AnyRow, core: int, *, pin: bool) -> Job:
    # Files, not pipes: nobody reads while the worker writes. Two, so that a warning at its end is no part of the row.
    output, messages = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115
    command = [sys.executable, "-m", row.worker, row.to_json(), *([str(core)] if pin else [])]
    process = subprocess.Popen(command, stdout=output, stderr=messages, text=True, env=environment())
    return Job(row=row, process=process, output=output, messages=messages, core=core, began=time.monotonic())


def finish(job: Job, store: Store) -> bool:
    printed, messages = _lines(job.output), _lines(job.messages)
    result = next((line for line in reversed(printed) if line.startswith("{")), None)
    if job.process.returncode != 0 or result is None:
        last = messages[-3:] or [f"exit code {job.process.returncode} without a message"]
        print(f"failed      {job.row.key}: {' / '.join(last)}", file=sys.stderr, flush=True)
        store.fail(job.row, last[-1])
        return False
    values: dict[str, Any] = json.loads(result)
    store.add(job.row.key, values)
    steps = f", {values['steps']} steps in {values['cpu_seconds']:.1f} CPU-s" if values["steps"] else ""
    print(
        f"done        {job.row.key}: {_headline(values)}{steps} ({time.monotonic() - job.began:.0f} s in all)",
        flush=True,
    )
    return True


def _lines(file: IO[str]) -> list[str]:
    with file:
        file.seek(0)
        return file.read().splitlines()


def _headline(values: dict[str, Any]) -> str:
    names = {"one_step": "one step", "rollout": "rollout", "steady": "nRMSE"}
    return ", ".join(f"{name} {_number(values[key]['nrmse'])}" for key, name in names.items() if key in values)


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"
