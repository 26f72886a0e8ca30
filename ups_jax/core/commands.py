"""The project's commands: their names, and how the running one was called, which is the form that messages use."""

from __future__ import annotations

import sys
from pathlib import Path

# Name of each command: the script of a checkout that is the same command, and what it does.
COMMANDS: dict[str, tuple[str | None, str]] = {
    "train": ("train.py", "train a stage, or all, and evaluate it"),
    "evaluate": ("evaluate.py", "evaluate a trained run"),
    "rollout": ("rollout.py", "predict from given fields"),
    "export": ("export.py", "write a trained model as one StableHLO file"),
    "inspect": ("inspect_data.py", "say what data files hold"),
    "generate": ("generate_data.py", "write the data of an embedded task"),
    "convert": ("convert_data.py", "convert data files to shards"),
    "encode": ("encode_latents.py", "write the latents of a frozen codec"),
    "validate": ("validate.py", "check configurations and their data"),
    "verify": ("verify_run.py", "check that a run directory is whole"),
    "profile": ("profile_step.py", "measure the parts of a train step"),
    "pipeline": ("run_fast_to_sota.py", "validate, train, evaluate, and promote a better model"),
    "leaderboard": ("leaderboard.py", "list and compare the pipeline's runs"),
    "configs": (None, "list the packaged configurations"),
}


def command(name: str) -> str:
    """A command as text, in the form in which the running one was called: `ups-jax train`, `python -m ups_jax train`
    or `python scripts/train.py`; outside of a command `ups-jax train`."""
    script, _ = COMMANDS[name]
    if script is not None and _called_as_script():
        return f"python scripts/{script}"
    return f"python -m ups_jax {name}" if _called_as_module() else f"ups-jax {name}"


def command_line(name: str) -> list[str]:
    """A command as the first words of a process, started in the form in which the running one was called."""
    script, _ = COMMANDS[name]
    program = Path(sys.argv[0]).absolute()
    if script is not None and _called_as_script():
        return [sys.executable, str(program.with_name(script))]
    if program.name == "ups-jax" and program.is_file():
        return [sys.executable, str(program), name]
    return [sys.executable, "-m", "ups_jax", name]


def _called_as_script() -> bool:
    program = Path(sys.argv[0]).absolute()
    return program.parent.name == "scripts" and any(program.name == script for script, _ in COMMANDS.values())


def _called_as_module() -> bool:
    program = Path(sys.argv[0]).absolute()
    return program.parts[-2:] == ("ups_jax", "__main__.py")
