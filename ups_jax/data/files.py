"""A task's data files: their paths, the sources that read them, and which of their trajectories train and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ups_jax.config import Config, DataConfig, FilePair, SplitConfig, TaskConfig
from ups_jax.core.commands import command
from ups_jax.core.errors import ConfigError, DataError
from ups_jax.data import splits
from ups_jax.data.sources import JoinedSource, SeedsSource, SettledSource, ShardsSource, Source, open_file
from ups_jax.data.sources.detect import is_whole
from ups_jax.data.sources.shards import is_converted
from ups_jax.data.splits import Splits

_FOLDERS = {"train": ("train",), "val": ("valid", "val", "validation"), "test": ("test",)}
_SUFFIXES = (".hdf5", ".h5", ".yaml", ".yml")


def open_source(cfg: Config, wanted: TaskConfig) -> tuple[Source, Splits]:
    """A configured task's files, of which the headers alone are read, and its splits. Raises `DataError`."""
    files = data_files(cfg.data, wanted)
    if wanted.path is None and not files["all"][0].is_file():
        raise DataError(
            f"{files['all'][0]}: there is no such file; make it: `{command('generate')} --task {wanted.name} "
            f"--preset {wanted.preset} --out {cfg.data.root}`"
        )
    opened = {role: [open_task_file(path, wanted) for path in own] for role, own in files.items()}
    every = [part for own in opened.values() for part in own]
    source = every[0] if len(every) == 1 else JoinedSource(tuple(every))
    return source, _split(cfg.data.split, wanted, opened, source)


def open_task_file(path: Path, wanted: TaskConfig) -> Source:
    """One of a task's files. Raises `DataError`."""
    if wanted.solution == "last_frame":
        return SettledSource(open_file(path, "transient", wanted.channels), wanted.channels, wanted.steady_tolerance)
    return open_file(path, wanted.kind, wanted.channels)


def single_task(cfg: Config) -> TaskConfig:
    """The task of a configuration that has one. Raises `ConfigError`."""
    if len(cfg.data.tasks) != 1:
        names = ", ".join(task.name for task in cfg.data.tasks) or "none"
        raise ConfigError(f"key `data.tasks`: one task is wanted here, there are {len(cfg.data.tasks)} ({names})")
    return cfg.data.tasks[0]


def configured_tasks(cfg: Config) -> tuple[TaskConfig, ...]:
    """The tasks of a configuration, one at the least. Raises `ConfigError`."""
    if not cfg.data.tasks:
        raise ConfigError("key `data.tasks`: names no task; give one, such as [{name: burgers1d}]")
    return cfg.data.tasks


def data_path(data: DataConfig, task: TaskConfig) -> Path:
    """The task's (first training) file: its `path`, else the file of its preset, which may not have been written."""
    return next(iter(data_files(data, task).values()))[0]


def data_files(data: DataConfig, task: TaskConfig) -> dict[str, tuple[Path, ...]]:
    """The task's files: `all`, or those of `train`, `val` (where it has its own) and `test`, in this order.

    Raises `DataError` for a folder that does not hold them.
    """
    if isinstance(task.path, FilePair):
        given = {"train": task.path.train, "val": task.path.val, "test": task.path.test}
        return {
            role: (Path(paths),) if isinstance(paths, str) else tuple(map(Path, paths))
            for role, paths in given.items()
            if paths
        }
    if task.path is None:
        return {"all": (generated_file(data.root, task.name, task.preset),)}
    if isinstance(task.path, tuple):
        return {"all": tuple(map(Path, task.path))}
    path = Path(task.path)
    return files_in_folder(path) if path.is_dir() and not is_whole(path) else {"all": (path,)}


def files_in_folder(path: Path) -> dict[str, tuple[Path, ...]]:
    """The data files of a folder with `train`, `test` and perhaps `valid`, as The Well has it. Raises `DataError`."""
    root = path / "data" if (path / "data" / "train").is_dir() else path
    found: dict[str, tuple[Path, ...]] = {}
    for role, names in _FOLDERS.items():
        inside = sorted(file for name in names for file in (root / name).glob("*"))
        files = [file for file in inside if file.suffix in _SUFFIXES or is_converted(file)]
        if files:
            found[role] = tuple(files)
        elif role != "val":
            raise DataError(f"{path}: has no data files in a folder `{names[0]}`; give such a folder, or a file")
    return found


def generated_file(root: str | Path, task: str, preset: str) -> Path:
    """The file that the embedded generator writes for a preset of a task."""
    return Path(root) / f"{task}_{preset}.hdf5"


def _split(cfg: SplitConfig, wanted: TaskConfig, opened: Mapping[str, Sequence[Source]], source: Source) -> Splits:
    key, count, by_role = f"data.tasks.{wanted.name}.path", source.trajectories, "all" not in opened
    if cfg.method == "listed" and cfg.path is not None:
        return splits.listed(cfg.path, count, source.name, wanted.name)
    native = by_role and not isinstance(wanted.path, FilePair)
    if (cfg.method == "file" and (native or not by_role)) or (cfg.method == "native" and not native):
        given = {"file": "{train: FILE, test: FILE}", "native": "a folder with train, valid and test"}[cfg.method]
        raise ConfigError(f"key `data.split.method`: {cfg.method} needs `{key}` to be {given}")
    if by_role:
        if cfg.method in ("pdebench", "hash"):
            raise ConfigError(f"key `data.split.method`: is {cfg.method}, but `{key}` names the files of each split")
        sizes = {role: sum(part.trajectories for part in own) for role, own in opened.items()}
        return splits.by_files(sizes, cfg, source.name)
    parts = opened["all"]
    if cfg.method == "pdebench":
        # Of each file its own: the first of several may be all of one coefficient.
        each = [splits.by_place(part.trajectories, cfg, part.name, test_last=_by_seeds(part)) for part in parts]
        return splits.one_after_another(each, [part.trajectories for part in parts])
    if cfg.method == "hash":
        keys = [f"{_file_name(part)}|{n}" for part in parts for n in range(part.trajectories)]
        return splits.by_hash(keys, cfg, source.name)
    return splits.draw(count, cfg, source.name)


def _by_seeds(part: Source) -> bool:
    """Whether a file is of groups by seed, of which PDEBench tests on the last, or was converted from one."""
    part = part.trajectories_source if isinstance(part, SettledSource) else part
    return isinstance(part, SeedsSource) or (isinstance(part, ShardsSource) and part.layout == "pdebench seeds")


def _file_name(part: Source) -> str:
    """The name of a file, or of the one that it was converted from: shards are split as it was."""
    part = part.trajectories_source if isinstance(part, SettledSource) else part
    return part.original if isinstance(part, ShardsSource) else Path(part.name).name
