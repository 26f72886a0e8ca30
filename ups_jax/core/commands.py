"""Names of the commands, and how messages write them: in the form in which the running command was called."""

from __future__ import annotations

import sys
from pathlib import Path

# The folder of scripts in a checkout. An installed package has none, and a user's own `scripts/train.py` is not ours.
_SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
# For each command: the script in a checkout that runs it, and a summary.
COMMANDS: dict[str, tuple[str | None, str]] = {
    "train": ("train.py", "train a stage, or all, and evaluate it"),
    "evaluate": ("evaluate.py", "evaluate a trained run"),
    "rollout": ("rollout.py", "predict from given fields"),
    "export": ("export.py", "write a trained model as one StableHLO file"),
    "inspect": ("inspect_data.py", "show the contents of data files"),
    "generate": ("generate_data.py", "write the data of a built-in task"),
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
    """Return a command as text, in the form in which the running command was called.

    The forms are `ups-jax train`, which is also the default, `python -m ups_jax train` and `python scripts/train.py`.
    """
    script, _ = COMMANDS[name]
    if script is not None and _called_as_script():
        return f"python scripts/{script}"
    return f"{program()} {name}"


def program() -> str:
    """Return how commands are called: `python -m ups_jax`, if this process was called so, otherwise `ups-jax`."""
    return "python -m ups_jax" if _called_as_module() else "ups-jax"


def command_line(name: str) -> list[str]:
    """Return the arguments that start a command as a new process, in the form in which the running one was called."""
    script, _ = COMMANDS[name]
    executable = Path(sys.argv[0]).absolute()
    if script is not None and _called_as_script():
        return [sys.executable, str(executable.with_name(script))]
    if executable.name == "ups-jax" and executable.is_file():
        return [sys.executable, str(executable), name]
    return [sys.executable, "-m", "ups_jax", name]


def _called_as_script() -> bool:
    program = Path(sys.argv[0]).resolve()
    return program.parent == _SCRIPTS and any(program.name == script for script, _ in COMMANDS.values())


def _called_as_module() -> bool:
    return Path(sys.argv[0]).absolute().parts[-2:] == ("ups_jax", "__main__.py")
