"""The data files of a task: their paths, the sources that read them, and the split of their trajectories."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ups_jax.config import Config, DataConfig, FilePair, SplitConfig, TaskConfig
from ups_jax.core.commands import command
from ups_jax.core.errors import ConfigError, DataError
from ups_jax.data import splits
from ups_jax.data.sources import ConcatenatedSource, SeedsSource, ShardsSource, Source, SteadyStateSource, open_file
from ups_jax.data.sources.base import innermost_source
from ups_jax.data.sources.detect import is_single_dataset
from ups_jax.data.sources.shards import is_shard_folder
from ups_jax.data.splits import Splits

_FOLDERS = {"train": ("train",), "val": ("valid", "val", "validation"), "test": ("test",)}
_SUFFIXES = (".hdf5", ".h5", ".yaml", ".yml")


def open_source(cfg: Config, task_cfg: TaskConfig) -> tuple[Source, Splits]:
    """Open the files of a task, reading only their headers, and split their trajectories.

    Returns:
        One source over all files of the task, and the splits of its trajectories.

    Raises:
        DataError: A file is missing or damaged, or a split would be empty.
        ConfigError: `data.split.method` does not fit the files.
    """
    files = data_files(cfg.data, task_cfg)
    if task_cfg.path is None and not files["all"][0].is_file():
        raise DataError(
            f"{files['all'][0]}: file not found; generate it with `{command('generate')} --task {task_cfg.name} "
            f"--preset {task_cfg.preset} --out {cfg.data.root}`"
        )
    sources_by_role = {role: [open_task_file(path, task_cfg) for path in paths] for role, paths in files.items()}
    sources = [source for role_sources in sources_by_role.values() for source in role_sources]
    source = sources[0] if len(sources) == 1 else ConcatenatedSource(tuple(sources))
    trajectory_splits = _split_trajectories(cfg.data.split, task_cfg, sources_by_role, source)
    _check_equal_frames(task_cfg, sources, trajectory_splits)
    return source, trajectory_splits


def open_task_file(path: Path, task_cfg: TaskConfig) -> Source:
    """Open one file of a task. Raise `DataError` if it cannot be read.

    If the task has `solution: last_frame`, the source contains steady states: the last frame of each trajectory.
    """
    if task_cfg.solution == "last_frame":
        trajectories = open_file(path, "transient", task_cfg.channels)
        return SteadyStateSource(trajectories, task_cfg.channels, task_cfg.steady_tolerance)
    return open_file(path, task_cfg.kind, task_cfg.channels)


def single_task(cfg: Config) -> TaskConfig:
    """Return the only task of a configuration; raise `ConfigError` if it has none or several."""
    if len(cfg.data.tasks) != 1:
        names = ", ".join(task.name for task in cfg.data.tasks) or "none"
        raise ConfigError(f"key `data.tasks`: names {len(cfg.data.tasks)} tasks ({names}); name exactly one")
    return cfg.data.tasks[0]


def configured_tasks(cfg: Config) -> tuple[TaskConfig, ...]:
    """Return the tasks of a configuration; raise `ConfigError` if it has none."""
    if not cfg.data.tasks:
        raise ConfigError("key `data.tasks`: is empty; name at least one task, such as [{name: burgers1d}]")
    return cfg.data.tasks


def data_path(data: DataConfig, task_cfg: TaskConfig) -> Path:
    """Return the path of the task's first data file; a file to be generated from a preset may not exist yet."""
    return next(iter(data_files(data, task_cfg).values()))[0]


def data_files(data: DataConfig, task_cfg: TaskConfig) -> dict[str, tuple[Path, ...]]:
    """Return the paths of the task's files by role, which is `all` if the trajectories are yet to be split.

    Otherwise the roles are `train`, `val` (optional) and `test`, in this order. Raise `DataError` if a folder has no
    training or test files.
    """
    if isinstance(task_cfg.path, FilePair):
        paths_by_role = {"train": task_cfg.path.train, "val": task_cfg.path.val, "test": task_cfg.path.test}
        return {
            role: _expand_paths((paths,) if isinstance(paths, str) else paths)
            for role, paths in paths_by_role.items()
            if paths
        }
    if task_cfg.path is None:
        return {"all": (generated_file(data.root, task_cfg.name, task_cfg.preset),)}
    if isinstance(task_cfg.path, tuple):
        return {"all": _expand_paths(task_cfg.path)}
    paths = _expand_paths((task_cfg.path,))
    is_folder = len(paths) == 1 and paths[0].is_dir() and not is_single_dataset(paths[0])
    return files_in_folder(paths[0]) if is_folder else {"all": paths}


def files_to_inspect(path: str) -> tuple[Path, ...]:
    """Return the data files that a path on the command line names: a file, a pattern, or all files in a folder.

    Raises `DataError` if a pattern matches no file, or if a folder contains no data files.
    """
    files: list[Path] = []
    for item in _expand_paths((path,)):
        if not item.is_dir() or is_single_dataset(item):
            files.append(item)
        elif (item / "train").is_dir() or (item / "data" / "train").is_dir():
            files += [file for role_files in files_in_folder(item).values() for file in role_files]
        else:
            in_folder = _files_directly_in(item)
            if not in_folder:
                raise DataError(
                    f"{item}: contains no data files ({', '.join(_SUFFIXES)}); give a file, or a folder with data files"
                )
            files += in_folder
    return tuple(files)


def files_in_folder(path: Path) -> dict[str, tuple[Path, ...]]:
    """Return the data files in the subfolders `train`, `valid` (optional) and `test` by role: `train`, `val`, `test`.

    As in The Well, the subfolders may also lie in a subfolder `data`. Raise `DataError` if there are no training or
    test files.
    """
    root = path / "data" if (path / "data" / "train").is_dir() else path
    files_by_role: dict[str, tuple[Path, ...]] = {}
    for role, names in _FOLDERS.items():
        files = [file for name in names for file in _files_directly_in(root / name)]
        if files:
            files_by_role[role] = tuple(files)
        elif role != "val":
            raise DataError(
                f"{path}: has no data files in a subfolder `{names[0]}`; give a data file, or a folder with subfolders "
                "`train` and `test`"
            )
    return files_by_role


def generated_file(root: str | Path, task: str, preset: str) -> Path:
    """Return the path of the file that the `generate` command writes for a task and its preset."""
    return Path(root).expanduser() / f"{task}_{preset}.hdf5"


def _files_directly_in(folder: Path) -> list[Path]:
    """Return the data files and folders of shards in a folder, sorted by name."""
    return [file for file in sorted(folder.glob("*")) if file.suffix.lower() in _SUFFIXES or is_shard_folder(file)]


def _expand_paths(paths: Sequence[str]) -> tuple[Path, ...]:
    """Return paths with `~` replaced by the home folder, and patterns such as `data/*.hdf5` by all files that match.

    Raises `DataError` if a pattern matches nothing.
    """
    expanded: list[Path] = []
    for path in map(os.path.expanduser, paths):
        # A file may have a name that looks like a pattern.
        if glob.has_magic(path) and not os.path.lexists(path):
            matches = sorted(glob.glob(path, recursive=True))
            if not matches:
                raise DataError(f"{path}: no file matches this pattern; correct the path")
            expanded += map(Path, matches)
        else:
            expanded.append(Path(path))
    return tuple(expanded)


def _split_trajectories(
    cfg: SplitConfig, task_cfg: TaskConfig, sources_by_role: Mapping[str, Sequence[Source]], source: Source
) -> Splits:
    """Split the trajectories of `source`, the concatenated files of a task, by `cfg.method` and the roles of files."""
    key, count, by_role = f"data.tasks.{task_cfg.name}.path", source.trajectories, "all" not in sources_by_role
    if cfg.method == "listed" and cfg.path is not None:
        return splits.read_split(cfg.path, count, source.name, task_cfg.name)
    native = by_role and not isinstance(task_cfg.path, FilePair)
    if (cfg.method == "file" and (native or not by_role)) or (cfg.method == "native" and not native):
        required = {"file": "{train: FILE, test: FILE}", "native": "a folder with train, valid and test"}[cfg.method]
        raise ConfigError(
            f"key `data.split.method`: {cfg.method} takes the split from `{key}`, which must then be {required}; "
            f"change `{key}`, or give another method"
        )
    if by_role:
        if cfg.method in ("pdebench", "hash"):
            raise ConfigError(
                f"key `data.split.method`: is {cfg.method}, but `{key}` already gives files for each split; remove "
                "`data.split.method`"
            )
        sizes = {role: sum(item.trajectories for item in sources) for role, sources in sources_by_role.items()}
        return splits.split_by_files(sizes, cfg, source.name)
    sources = sources_by_role["all"]
    if cfg.method == "pdebench":
        # Each file is split by itself: the trajectories of the first file may all have one coefficient.
        file_splits = [
            splits.split_by_position(item.trajectories, cfg, item.name, test_last=_is_grouped_by_seed(item))
            for item in sources
        ]
        return splits.concatenate_splits(file_splits, [item.trajectories for item in sources])
    if cfg.method == "hash":
        keys = [f"{_original_name(item)}|{n}" for item in sources for n in range(item.trajectories)]
        return splits.split_by_hash(keys, cfg, source.name)
    return splits.random_split(count, cfg, source.name)


def _check_equal_frames(task_cfg: TaskConfig, sources: Sequence[Source], trajectory_splits: Splits) -> None:
    """Raise `DataError` if the files of one split have different numbers of frames; those of two splits may differ."""
    ends = np.cumsum([source.trajectories for source in sources])
    for role in ("train", "val", "test"):
        numbers = np.unique(np.searchsorted(ends, trajectory_splits.ids(role), side="right"))
        first, *others = [sources[number] for number in numbers]
        for other in others:
            if other.frames != first.frames:
                raise DataError(
                    f"{other.name}: has {other.frames} frames per trajectory, but {first.name} has {first.frames}, and "
                    f"the {role} split has trajectories of both; cut the longer ones, or give the files to different "
                    f"splits, as in `data.tasks.{task_cfg.name}.path={{train: {first.name}, test: {other.name}}}`"
                )


def _is_grouped_by_seed(source: Source) -> bool:
    """Return whether a file, or the file that shards were converted from, has one HDF5 group per random seed.

    PDEBench uses the last of these groups for testing.
    """
    source = innermost_source(source)
    return isinstance(source, SeedsSource) or (isinstance(source, ShardsSource) and source.layout == "pdebench seeds")


def _original_name(source: Source) -> str:
    """Return the name of a file, or of the file that shards were converted from, so that both are split alike."""
    source = innermost_source(source)
    return source.original_name if isinstance(source, ShardsSource) else Path(source.name).name
