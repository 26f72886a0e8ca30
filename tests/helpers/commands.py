"""How tests run the project's scripts: as a user would, in processes of their own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"


def command(name: str, *arguments: str) -> list[str]:
    """The command line of a script."""
    return [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)]


def quiet() -> dict[str, str]:
    """The environment without a terminal's width or a W&B login."""
    return os.environ | {"COLUMNS": "200", "WANDB_MODE": "offline"}


def kill_after(run: Path, arguments: list[str], records: int, number: int) -> int:
    """Start training and send a signal once `records` lines were logged; the exit code."""
    process = subprocess.Popen(
        command("train.py", *arguments, "--run-dir", str(run)),
        env=quiet(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        lines = (run / "metrics.jsonl").read_text().count("\n") if (run / "metrics.jsonl").exists() else 0
        if lines >= records:
            process.send_signal(number)
            break
        time.sleep(0.005)
    process.communicate(timeout=120)
    return process.returncode


def in_process(name: str, *arguments: object) -> int:
    """The exit code of a script's `main` in this process, for tests of what it does and not of how it starts."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / "scripts" / name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    code: int = module.main(list(map(str, arguments)))
    return code
