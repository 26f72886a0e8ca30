"""A task's files, opened, and which of their trajectories train, validate and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ups_jax.config import Config, FilePair, SplitConfig, TaskConfig
from ups_jax.data import splits
from ups_jax.data.paths import data_files
from ups_jax.data.sources import JoinedSource, SeedsSource, Source, open_file
from ups_jax.data.splits import Splits
from ups_jax.errors import ConfigError, DataError


def open_source(cfg: Config) -> tuple[Source, Splits]:
    """The configured task's file, of which the header alone is read, and its splits. Raises `DataError`."""
    wanted = only_task(cfg)
    files = data_files(cfg.data, wanted)
    if wanted.path is None and not files["all"][0].is_file():
        raise DataError(
            f"{files['all'][0]}: there is no such file; make it: python scripts/generate_data.py --task {wanted.name} "
            f"--preset {wanted.preset} --out {cfg.data.root}"
        )
    opened = {role: [open_file(path, wanted.kind, wanted.channels) for path in own] for role, own in files.items()}
    every = [part for own in opened.values() for part in own]
    source = every[0] if len(every) == 1 else JoinedSource(tuple(every))
    return source, _split(cfg.data.split, wanted, opened, source)


def _split(cfg: SplitConfig, wanted: TaskConfig, opened: Mapping[str, Sequence[Source]], source: Source) -> Splits:
    key, count, by_role = f"data.tasks.{wanted.name}.path", source.trajectories, "all" not in opened
    if cfg.method == "listed" and cfg.path is not None:
        return splits.listed(cfg.path, count, source.name)
    native = by_role and not isinstance(wanted.path, FilePair)
    if (cfg.method == "file" and (native or not by_role)) or (cfg.method == "native" and not native):
        given = {"file": "{train: FILE, test: FILE}", "native": "a folder with train, valid and test"}[cfg.method]
        raise ConfigError(f"key `data.split.method`: {cfg.method} needs `{key}` to be {given}")
    if by_role:
        if cfg.method in ("pdebench", "hash"):
            raise ConfigError(f"key `data.split.method`: is {cfg.method}, but `{key}` names the files of each split")
        sizes = {role: sum(part.trajectories for part in own) for role, own in opened.items()}
        return splits.by_files(sizes, cfg, source.name)
    if cfg.method == "pdebench":
        last = isinstance(source, SeedsSource) or getattr(source, "layout", "") == "pdebench seeds"
        return splits.by_place(count, cfg, source.name, test_last=last)
    if cfg.method == "hash":
        file = getattr(source, "original", Path(source.name).name)
        return splits.by_hash([f"{file}|{n}" for n in range(count)], cfg, source.name)
    return splits.draw(count, cfg, source.name)


def only_task(cfg: Config) -> TaskConfig:
    if len(cfg.data.tasks) != 1:
        names = ", ".join(task.name for task in cfg.data.tasks) or "none"
        raise ConfigError(f"key `data.tasks`: exactly one task for now, there are {len(cfg.data.tasks)} ({names})")
    return cfg.data.tasks[0]
