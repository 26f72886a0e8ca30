"""Training sets of runs: hashes of the trajectories that a run, and the runs it started from, were trained on.

The hashes identify a trajectory in any file, at any position. They are in `training_set.json` of the run directory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields

import numpy as np
from jaxtyping import Int

from ups_jax.core.errors import CheckpointError, ConfigError, DataError
from ups_jax.core.files import read_json, write_atomically
from ups_jax.data import Dataset, Mixture
from ups_jax.data.content import list_first
from ups_jax.data.scan import is_former_fingerprint, trajectory_keys
from ups_jax.data.splits import Splits, read_split
from ups_jax.distributed.processes import is_host0
from ups_jax.runs.directory import RunDirectory


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """The trajectories that weights were trained on, in this run or in a run that it started from.

    Attributes:
        fingerprints: Fingerprints of the data whose training trajectories are in the set.
        hashes: Keys of whole trajectories, from `trajectory_keys`.
        start_hashes: Their numbers of frames and the keys of their first two frames, as `FRAMES:KEY`.
        unknown_runs: Run directories whose training trajectories are missing, because an earlier version, which
            recorded no hashes, trained them on data that is not open.
    """

    fingerprints: frozenset[str] = frozenset()
    hashes: frozenset[str] = frozenset()
    start_hashes: frozenset[str] = frozenset()
    unknown_runs: frozenset[str] = frozenset()

    @staticmethod
    def of_dataset(dataset: Dataset, fingerprint: str, train_ids: Int[np.ndarray, " n"]) -> TrainingSet:
        """Return the set of the trajectories `train_ids` of a dataset."""
        keys, frames = trajectory_keys(dataset.record), dataset.record.frames
        whole = frozenset(key for index in train_ids.tolist() if (key := keys.whole[index]) is not None)
        start = frozenset(
            f"{frames[index]}:{key}" for index in train_ids.tolist() if (key := keys.start[index]) is not None
        )
        return TrainingSet(fingerprints=frozenset({fingerprint}), hashes=whole, start_hashes=start)

    @staticmethod
    def union(sets: Iterable[TrainingSet]) -> TrainingSet:
        """Return the set of the trajectories that are in at least one of the sets."""
        listed = list(sets)
        names = [field.name for field in fields(TrainingSet)]
        return TrainingSet(**{name: frozenset().union(*(getattr(item, name) for item in listed)) for name in names})

    def trained_ids(self, dataset: Dataset) -> Int[np.ndarray, " n"]:
        """Return the ids of the trajectories of a dataset that are in the set.

        A trajectory is recognised by its content, or by its first two frames if it has another number of frames.
        """
        keys, frames = trajectory_keys(dataset.record), dataset.record.frames.tolist()
        frames_of_start: dict[str | None, set[int]] = {}
        for text in self.start_hashes:
            count, _, key = text.partition(":")
            frames_of_start.setdefault(key, set()).add(int(count))
        return np.flatnonzero(
            [
                whole in self.hashes or bool(frames_of_start.get(start, set()) - {count})
                for whole, start, count in zip(keys.whole, keys.start, frames, strict=True)
            ]
        )


def recorded_training_set(run: RunDirectory) -> TrainingSet | None:
    """Return the content of the file `training_set.json` of a run, None if it is missing.

    Raises:
        CheckpointError: The file is damaged.
    """
    path = run.training_set_path
    try:
        values = read_json(path)
        return TrainingSet(**{field.name: frozenset(map(str, values[field.name])) for field in fields(TrainingSet)})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{path}: is not the training set of a run ({reason}); restore it from a copy, or delete it to treat the "
            "run as one of an earlier version"
        ) from None


def read_training_set(run: RunDirectory, fingerprint: str, data: Mixture) -> TrainingSet:
    """Return the training set of weights in a run directory.

    If an earlier version trained the weights, which recorded no hashes, the set has the training trajectories only if
    the fingerprint shows that they are in `data`; otherwise the run is in `unknown_runs`. So are the runs from which a
    run of an earlier version started.

    Args:
        fingerprint: Fingerprint of the data on which the weights were trained.
        data: The data that is to be compared with the set.

    Raises:
        CheckpointError: The file `training_set.json` is damaged.
    """
    recorded = recorded_training_set(run)
    sets = [recorded or TrainingSet()]
    for part in sorted(set(fingerprint.split("+")) - sets[0].fingerprints):
        in_data = (_find_in_dataset(run, part, dataset) for dataset in data.datasets)
        sets.append(next(filter(None, in_data), None) or TrainingSet(unknown_runs=frozenset({str(run.path)})))
    if recorded is None and run.has_record():
        parents = [entry.get("parent") for entry in run.read_record()["stages"].values()]
        names = frozenset(str(parent.get("run")) for parent in parents if isinstance(parent, dict))
        sets.append(TrainingSet(unknown_runs=names))
    return TrainingSet.union(sets)


def extend_training_set(
    run: RunDirectory, data: Mixture, parent_fingerprints: Iterable[str] = (), inherited: TrainingSet | None = None
) -> TrainingSet:
    """Return the training set of a run together with the training trajectories of `data`.

    Args:
        parent_fingerprints: Fingerprints of the data on which earlier stages of this run were trained.
        inherited: Training set of the weights from which the run starts.
    """
    sets = [read_training_set(run, fingerprint, data) for fingerprint in (data.fingerprint, *parent_fingerprints)]
    return TrainingSet.union([*sets, *([] if inherited is None else [inherited])])


def write_training_set(run: RunDirectory, training_set: TrainingSet) -> None:
    """Write the training set of a run unless it is already recorded; with several processes, only host 0 writes."""
    if is_host0() and training_set != recorded_training_set(run):
        values = {name: sorted(items) for name, items in asdict(training_set).items()}
        write_atomically(run.training_set_path, json.dumps(values) + "\n")


def check_unseen(training_set: TrainingSet, data: Mixture, run: RunDirectory, source: str) -> list[str]:
    """Check that no validation or test trajectory of `data` is in the training set of a run.

    Args:
        run: The run with this training set.
        source: The option or stage that the weights come from, at the beginning of messages.

    Returns:
        Notes on runs whose training trajectories are unknown.

    Raises:
        ConfigError: A validation or test trajectory is in the training set.
    """
    for dataset in data.datasets:
        trained_ids = training_set.trained_ids(dataset)
        listed = [
            f"{len(seen)} of {len(ids)} {split} trajectories ({list_first(seen.tolist())})"
            for split, ids in (("test", dataset.splits.test), ("val", dataset.splits.val))
            if len(seen := np.intersect1d(ids, trained_ids))
        ]
        if listed:
            raise ConfigError(
                f"{source}: {run.path} was trained on {' and '.join(listed)} of {dataset.task.name}; "
                f"{_remedy(run, dataset, trained_ids)}"
            )
    return [
        f"{source}: it cannot be checked whether {unknown} was trained on validation or test trajectories, because an "
        "earlier version of ups_jax trained it"
        for unknown in sorted(training_set.unknown_runs)
    ]


def _remedy(run: RunDirectory, dataset: Dataset, trained_ids: Int[np.ndarray, " n"]) -> str:
    """Return how to avoid that the given trajectories are in the validation or test split."""
    splits = _splits_of_run(run, dataset)
    if splits is not None and not np.isin(np.concatenate([splits.val, splits.test]), trained_ids).any():
        return f"set data.split.method=listed and data.split.path={run.split_path}, the split of that run"
    return (
        "list them as training trajectories (data.split.method=listed, data.split.path), leave them out of the data, "
        "or start from other weights"
    )


def _find_in_dataset(run: RunDirectory, fingerprint: str, dataset: Dataset) -> TrainingSet | None:
    """Return the training set of a run that was trained on `dataset`, perhaps with another split; otherwise None."""
    if fingerprint == dataset.fingerprint:
        return TrainingSet.of_dataset(dataset, fingerprint, dataset.splits.train)
    splits = _splits_of_run(run, dataset) or dataset.splits
    if is_former_fingerprint(fingerprint) and fingerprint == dataset.former_fingerprint(splits):
        return TrainingSet.of_dataset(dataset, fingerprint, splits.train)
    return None


def _splits_of_run(run: RunDirectory, dataset: Dataset) -> Splits | None:
    """Return the splits that a run recorded for data with as many trajectories as `dataset`, None without such data."""
    source = dataset.source
    try:
        splits = read_split(run.split_path, source.trajectories, source.name, dataset.task.name)
    except DataError:
        return None
    pairs = ((splits.ids(role), dataset.splits.ids(role)) for role in ("train", "val", "test"))
    # The fingerprints of the dataset's own splits are computed once.
    return dataset.splits if all(np.array_equal(*pair) for pair in pairs) else splits
