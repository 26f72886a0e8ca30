"""Install ups_jax into fresh environments and train, evaluate and roll out a tiny run in each; print a table.

The environments: each Python that is given, with the newest versions that pip finds, and the first of them with the
lowest versions that pyproject.toml allows.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHOWN = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
COMMANDS = (
    ("train", "--config", "tiny", "--run-dir", "run", "stages.operator.epochs=1"),
    ("evaluate", "--run-dir", "run", "evaluation.plots=false"),
    ("rollout", "--run-dir", "run", "--input", "test:0", "--steps", "5", "--output", "out.hdf5"),
)


def lowest() -> list[str]:
    """Return the lowest version of every direct dependency, as pip's constraints."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return [re.sub(r"\[.*\]", "", item).replace(">=", "==") for item in dependencies]


def checked(python: str, constraints: list[str], folder: Path) -> dict[str, str]:
    """Return versions and outcome of one environment."""
    source, environment = folder / "source", folder / "env"
    source.mkdir(parents=True)
    for name in ("ups_jax", "configs"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    (folder / "constraints.txt").write_text("\n".join(constraints) + "\n")
    inside = environment / "bin" / "python"
    row = {"Python": "?", "outcome": "passed"}
    steps: list[list[str]] = [
        [python, "-m", "venv", str(environment)],
        [str(inside), "-m", "pip", "install", "-q", "-c", str(folder / "constraints.txt"), str(source)],
        *([str(environment / "bin" / "ups-jax"), *command] for command in COMMANDS),
    ]
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"WANDB_MODE": "offline"}
    if shutil.which(python) is None:
        return row | {"outcome": f"`{python}` is not installed"}
    for step in steps:
        done = subprocess.run(step, cwd=folder, env=variables, capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no output"]
            row["outcome"] = f"`{Path(step[0]).name} {' '.join(step[1:3])}` failed: {lines[-1]:.150}"
            break
    if inside.exists():
        code = "import json, sys; from importlib.metadata import version, distributions as d; print(json.dumps("
        code += "{'Python': sys.version.split()[0]} | {x.metadata['Name']: x.version for x in d()}))"
        versions = json.loads(subprocess.run([str(inside), "-c", code], capture_output=True, text=True).stdout)
        row |= {"Python": versions["Python"]} | {name: versions.get(name, "-") for name in SHOWN}
    return row


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pythons", nargs="*", default=["python3.11", "python3.12"], help="default: %(default)s")
    args = parser.parse_args(argv)
    cases = [(python, []) for python in args.pythons] + [(args.pythons[0], lowest())]
    columns = ("versions", "Python", *SHOWN, "outcome")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    outcomes = []
    for python, constraints in cases:
        with tempfile.TemporaryDirectory() as folder:
            row = checked(python, constraints, Path(folder))
        row["versions"] = "lowest" if constraints else "newest"
        print(f"| {' | '.join(row.get(name, '-') for name in columns)} |", flush=True)
        outcomes.append(row["outcome"])
    return int(any(outcome != "passed" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
