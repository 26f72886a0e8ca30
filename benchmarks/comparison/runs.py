"""Which rows a command asks for, and the data that they need."""

from __future__ import annotations

import argparse

from comparison.models import MODELS
from comparison.row import Row
from ups_jax import simulate


def rows_of(args: argparse.Namespace) -> list[Row]:
    """Task by task and seed by seed, so that an interrupted comparison has whole tables first."""
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
    return [
        row
        for task in args.tasks
        for row in (
            *(Row(task=task, model=name, seed=0, budget=0.0, **shared) for name in untrained),
            *(
                Row(task=task, model=name, seed=seed, budget=args.budget, **shared)
                for seed in range(args.seeds)
                for name in trained
            ),
        )
    ]


def prepare(rows: list[Row]) -> None:
    """Write the data of every task before the workers look for it."""
    for row in {row.task: row for row in rows}.values():
        for file in simulate.prepare(row.config()):
            print(f"generated   {file}", flush=True)
