"""One row of the comparison: what it is, under which key it is kept, and with which settings it was made."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from comparison.models import MODELS
from comparison.tasks import TASKS
from ups_jax.config import Config, LatentConfig, OperatorConfig, SpectralConfig, digest, load, to_dict
from ups_jax.config.packaged import CONFIGS

_KEY = re.compile(
    r"(?P<task>\w+)/(?P<model>\w+)/seed(?P<seed>\d+)/(?P<length>[\d.e+-]+)(?P<unit>s|steps)(?P<val>/val)?"
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A model trained on a task for `budget` CPU-seconds and measured on `split`; `overrides` are the caller's own.

    `steps`, where given, are what the budget has been found to hold. `fixed_steps` are
    trained whatever the budget. `double` measures on the finer data too; with `needs_double` a row on file that lacks
    it is run again.
    """

    worker: ClassVar[str] = "comparison.worker"

    task: str
    model: str
    seed: int
    budget: float
    split: str = "test"
    data_root: str = "data"
    overrides: tuple[str, ...] = ()
    steps: int | None = None
    fixed_steps: int | None = None
    double: bool = False
    needs_double: bool = False

    @property
    def key(self) -> str:
        """Where the store keeps it."""
        length = f"{self.budget:g}s" if self.fixed_steps is None else f"{self.fixed_steps}steps"
        return f"{self.task}/{self.model}/seed{self.seed}/{length}" + ("" if self.split == "test" else "/val")

    def config(self, *more: str) -> Config:
        """The task's configuration as this model is trained with it."""
        peer, task = MODELS[self.model], TASKS[self.task]
        overrides = peer.overrides[task.group]
        settings = (f"seed={self.seed}", f"data.root={self.data_root}", *self.overrides)
        return load(CONFIGS / task.config, [*overrides, *settings, *more])

    @staticmethod
    def from_key(key: str, *, data_root: str, overrides: tuple[str, ...]) -> Row | None:
        """The row that is kept under a key, where it is still one of this comparison."""
        match = _KEY.fullmatch(key)
        if match is None or match["task"] not in TASKS or match["model"] not in MODELS:
            return None
        task, model = match["task"], match["model"]
        if TASKS[task].group not in MODELS[model].overrides:
            return None
        return Row(
            task=task,
            model=model,
            seed=int(match["seed"]),
            budget=float(match["length"]) if match["unit"] == "s" else 0.0,
            fixed_steps=int(match["length"]) if match["unit"] == "steps" else None,
            split="val" if match["val"] else "test",
            data_root=data_root,
            overrides=overrides,
        )

    @property
    def trained(self) -> bool:
        """Is there anything to train, so that the row depends on its length and seed?"""
        return MODELS[self.model].trained_by != "nothing"

    @property
    def length(self) -> str:
        """How long it is trained, in words."""
        return f"{self.budget:g} CPU-seconds" if self.fixed_steps is None else f"{self.fixed_steps} steps"

    def files(self) -> list[Any]:
        """The data files that the caller's overrides name; none where the built-in data is used."""
        return [task["path"] for task in to_dict(self.config())["data"]["tasks"] if task["path"] is not None]

    def finer_config(self) -> Config:
        """Return the configuration with the same trajectories on twice the points per axis."""
        return self.config(f"data.tasks.0.preset={TASKS[self.task].double}")

    def long_config(self) -> Config | None:
        """Return the configuration with longer test trajectories of the built-in generator, or None without such."""
        preset = TASKS[self.task].long
        if preset is None or self.files():
            return None
        return self.config(f"data.tasks.0.preset={preset}")

    def complete(self, values: Mapping[str, Any]) -> bool:
        """Is a row on file what is asked for: of these settings, and with the scores that it needs?"""
        return values["digest"] == self.digest() and (not self.needs_double or "double_resolution" in values)

    def digest(self) -> str:
        """Twelve hex digits over the resolved settings, the same for all seeds: a row with another one is stale."""
        peer, task = MODELS[self.model], TASKS[self.task]
        values: dict[str, Any] = {"sizes": peer.sizes[task.group], "trained_by": peer.trained_by}
        values["scored_frames"] = task.scored_frames
        if files := self.files():
            values["files"] = files
        elif task.long is not None:
            values["long"] = task.long
        config = self.config()
        config = replace(config, seed=0)
        if peer.trained_by == "nothing":
            config = Config(data=config.data)
        elif peer.net is not None or peer.trained_by == "torch":
            # A field simulator has neither tokens nor a core.
            config = replace(config, latent=LatentConfig(), operator=OperatorConfig())
        elif config.operator.architecture_type != "spectral":
            config = replace(config, operator=replace(config.operator, spectral=SpectralConfig()))
        # Values at their defaults do not enter, so that a key which comes later leaves older rows valid.
        values["configuration"] = digest(config, task.stage)
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_json(self) -> str:
        """For the command line of a worker."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Row:
        """Inverse of `to_json`."""
        values = json.loads(text)
        return Row(**(values | {"overrides": tuple(values["overrides"])}))
