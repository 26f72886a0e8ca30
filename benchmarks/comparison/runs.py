"""Which rows a command asks for, and the data that they need."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from comparison.models import MODELS
from comparison.row import Row
from comparison.tasks import TASKS
from ups_jax import simulate
from ups_jax.config import Config
from ups_jax.core.errors import ConfigError
from ups_jax.data.files import data_path


def rows_of(args: argparse.Namespace) -> list[Row]:
    """Task by task and seed by seed, so that an interrupted comparison has whole tables first.

    A model that is not for a task's kind, such as persistence of a steady task, has no row of it.
    """
    models = []
    for name in args.models:
        if missing := MODELS[name].missing():
            print(f"left out    {name}: needs {', '.join(missing)}; pip install -e '.[bench]'")
        else:
            models.append(name)
    shared = {"split": args.split, "data_root": args.data_root, "overrides": tuple(args.set)}
    # What is not trained is the same for every seed and budget.
    untrained = [name for name in models if MODELS[name].trained_by == "nothing"]
    trained = [name for name in models if name not in untrained]
    rows = [
        row
        for task in args.tasks
        for row in (
            *(Row(task=task, model=name, seed=0, budget=0.0, **shared) for name in untrained),
            *(
                Row(task=task, model=name, seed=seed, budget=args.budget, fixed_steps=args.fixed_steps, **shared)
                for seed in range(args.seeds)
                for name in trained
            ),
        )
        if TASKS[task].group in MODELS[row.model].overrides
    ]
    return [replace(row, double=_doubled(row, args.double, args.quick), needs_double=args.double) for row in rows]


def _doubled(row: Row, asked: bool, quick: bool) -> bool:
    """Is the finer data part of the row: where it is asked for, and by default where it is there or quickly made.

    A file of the caller's own has none.
    """
    files = row.files()
    if asked and files:
        raise ConfigError(f"{files[0]}: the comparison knows no finer data of this file; leave --double out")
    if asked or quick or files:
        return asked
    return not TASKS[row.task].slow_double or _own_file(row.finer_config()).is_file()


def _own_file(config: Config) -> Path:
    return data_path(config.data, config.data.tasks[0])


def prepare(rows: list[Row]) -> None:
    """Write the data of every task before the workers look for it."""
    for row in {row.task: row for row in rows}.values():
        for config in filter(None, [row.config(), row.finer_config() if row.double else None, row.long_config()]):
            for file in simulate.generate_missing(config):
                print(f"generated   {file}", flush=True)
