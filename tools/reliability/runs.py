"""The real scripts on a configuration of seconds, started with faults put into them from outside.

One configuration has all that a resume could lose: accumulation, an average, Muon, a plateau schedule, a window of
losses for spikes, input noise and two reading threads. XLA's flags are those of a user.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "helpers"))

from commands import CONFIGS, ROOT, command, quiet

INJECTION = Path(__file__).resolve().parent / "injection"
# Steps between two saves, in every stage.
EVERY = 4
STEPS = {"operator": 24, "steady_prior": 24, "diffusion_residual": 16, "consistency_distill": 16}
CONFIGURATION = {name: "tiny_steady.yaml" if name == "steady_prior" else "tiny.yaml" for name in (*STEPS, "all")}
_ALIKE = (
    "latent.dim=4",
    "operator.spectral.hidden_dim=8",
    "operator.spectral.depth=1",
    "operator.spectral.modes=4",
    "diffusion.num_steps=2",
    "training.batch_size=2",
    "training.accum_steps=2",
    "training.ema_decay=0.9",
    "training.input_noise=1e-3",
    "training.spike_sigma=6",
    "training.spike_window=5",
    # Without a warm-up, a share of the run, programs do not depend on its length: one compilation for all lengths.
    "scheduler.warmup=0",
    "scheduler.name=plateau",
    "scheduler.patience_steps=0",
    "scheduler.factor=0.7",
    "data.loader.threads=2",
    "checkpoint.every_seconds=100000",
    "evaluation.val_trajectories=1",
    "evaluation.bootstrap=2",
    "evaluation.members=2",
    "evaluation.plots=false",
    "logging.every_steps=1",
    *(f"stages.{name}.steps={steps}" for name, steps in STEPS.items() if name != "steady_prior"),
)
# An epoch is 64 steps of a transient task, and 32 of the steady one.
_OWN = {"tiny.yaml": ("training.eval_every=0.0625",), "tiny_steady.yaml": ("training.eval_every=0.125",)}
TWO_TASKS = (
    "data.tasks=[{name: burgers1d, preset: tiny, periodic: [x], conserved: [u], coefficients: {nu: log10}}, "
    "{name: advection1d, preset: tiny, periodic: [x], conserved: [u], coefficients: {beta: linear}}]",
    "data.mixing.method=proportional",
)
_STEADY = ("stages.operator.steps=0", "stages.diffusion_residual.steps=0", "stages.consistency_distill.steps=0")


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a script ended: its exit code, minus the signal that killed it, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def resumed(self) -> int | None:
        """The step that it went on from, of the first stage that it trained."""
        match = re.search(r"(?:resumed|restarted) +at step (\d+)", self.out)
        return None if match is None else int(match[1])

    @property
    def last_line(self) -> str:
        lines = self.err.strip().splitlines()
        return lines[-1] if lines else ""


def training(stage: str, run: Path, data_root: Path, *overrides: str) -> list[str]:
    """The command line that trains a stage, or `all` of a transient task, in the run directory."""
    config = CONFIGURATION[stage]
    steady = (*_STEADY, f"stages.steady_prior.steps={STEPS['steady_prior']}") if config == "tiny_steady.yaml" else ()
    settings = [*_ALIKE, *_OWN[config], *steady, f"data.root={data_root}", *overrides]
    return command("train.py", "--config", str(CONFIGS / config), "--stage", stage, "--run-dir", str(run), *settings)


def environment(faults: Sequence[Mapping[str, Any]] = (), **variables: str) -> dict[str, str]:
    """A user's, without this process's XLA flags; all programs are kept, so that a second start compiles none."""
    env = {name: value for name, value in quiet().items() if name != "XLA_FLAGS"}
    paths = [str(INJECTION), str(ROOT), *filter(None, [env.get("PYTHONPATH")])]
    kept = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    env |= kept | {"PYTHONPATH": os.pathsep.join(paths), "UPS_FAULTS": json.dumps(list(faults))}
    return env | variables


def start(
    line: Sequence[str], faults: Sequence[Mapping[str, Any]] = (), *, stdout: Any = subprocess.PIPE, **variables: str
) -> subprocess.Popen[str]:
    """Start a command."""
    return subprocess.Popen(
        line, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment(faults, **variables)
    )


def ended(process: subprocess.Popen[str], timeout: float = 1500) -> Ended:
    """Wait for its end; it is killed where that does not come."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return Ended(code=process.returncode, out=out or "", err=err)


def run(line: Sequence[str], faults: Sequence[Mapping[str, Any]] = (), **options: Any) -> Ended:
    """Start a command and wait for its end."""
    return ended(start(line, faults, **options))


def reached(run: Path, stage: str) -> int:
    """The newest step of a stage that its curve tells of."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return 0
    steps = re.findall(rf'^{{"stage": "{stage}", "step": (\d+),.*}}$', path.read_text(errors="replace"), re.MULTILINE)
    return max(map(int, steps), default=0)


def begun(process: subprocess.Popen[str], run: Path) -> bool:
    """Whether the curve's file is open for writing in the process."""
    curve = str((run / "metrics.jsonl").resolve())
    with contextlib.suppress(OSError):
        return any(os.readlink(item) == curve for item in Path(f"/proc/{process.pid}/fd").iterdir())
    return False
