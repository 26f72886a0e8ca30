"""Checkpoints of a stage: the full train state with JSON metadata. No other module imports orbax.

A save is asynchronous and is committed by an atomic rename, after the checksums of its files have been written. The
next start deletes the incomplete checkpoint of a killed process.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.tree_util import keystr, tree_leaves_with_path
from orbax.checkpoint.checkpoint_managers import preservation_policy
from orbax.checkpoint.path import atomicity

from ups_jax.config import Config, digest, to_dict
from ups_jax.core.errors import CheckpointError, first_line
from ups_jax.core.files import read_json, storage_error, unused_path
from ups_jax.core.task import Task
from ups_jax.data import Dataset, Mixture, as_mixture
from ups_jax.distributed.processes import broadcast_from_host0, is_host0, on_host0
from ups_jax.runs import checksums
from ups_jax.runs.orbax_errors import drop_abandoned_reads, is_memory_error, storage_errors
from ups_jax.training.state import TrainState

# orbax logs every save and restore through absl, including tracebacks of exceptions that it raises anyway.
logging.getLogger("absl").setLevel(logging.CRITICAL)


class Checkpoints:
    """The checkpoints of a stage, in the folders `directory/<step>/`.

    A save deletes older checkpoints, except for the `keep` latest and the one with the lowest validation metric.

    Attributes:
        directory: Folder of the checkpoints.
        quarantined: Folders to which damaged checkpoints were renamed, by step. They are never deleted.
    """

    def __init__(self, directory: Path, *, keep: int = 2, read_only: bool = False) -> None:
        """Open the checkpoints of a stage.

        Args:
            directory: Folder of the checkpoints.
            keep: Number of latest checkpoints to keep.
            read_only: Do not create, rename or delete anything.

        Raises:
            CheckpointError: The folder cannot be read.
            StorageError: The disk is full or read-only.
        """
        self.directory = directory.absolute()
        self._keep = keep
        self._read_only = read_only
        self._intact: set[int] = set()
        self._saving = -1
        self.quarantined: dict[int, Path] = {}
        self._quarantine_notes = [] if read_only else self._quarantine_unlistable()
        self._manager = self._open()

    def _quarantine_unlistable(self) -> list[str]:
        """Quarantine the checkpoints that keep orbax from listing the folder, if another is intact; return messages."""
        steps = sorted(int(item.name) for item in self.directory.glob("*") if item.name.isdecimal())
        reasons = {step: reason for step in steps if (reason := self._unlistable_reason(step)) is not None}
        any_intact = reasons and any(
            checksums.find_damage(self.directory / str(step)) is None for step in steps if step not in reasons
        )
        damaged = broadcast_from_host0(list(reasons.items()) if any_intact else [])
        return [f"damaged checkpoint {reason}; {self._rename(step)}" for step, reason in damaged]

    def _unlistable_reason(self, step: int) -> str | None:
        """Return why orbax cannot list the folder with this checkpoint, None if it can."""
        folder = self.directory / str(step)
        try:
            validation_of(folder)
        except CheckpointError as error:
            return str(error)
        return None if checksums.is_committed(folder) else f"{folder}: its commit metadata is damaged"

    def _open(self) -> ocp.CheckpointManager:
        """Return the orbax manager of the folder."""
        policy = preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(self._keep),
                preservation_policy.BestN(
                    get_metric_fn=_ranking_metric, reverse=True, n=1, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            best_fn=_ranking_metric,
            best_mode="min",
            cleanup_tmp_directories=not self._read_only,
            read_only=self._read_only,
            # With this option a reader can open the folder although some metrics are damaged.
            lightweight_initialize=self._read_only,
            create=not self._read_only,
            multiprocessing_options=_single_process() if self._read_only else ocp.options.MultiprocessingOptions(),
            async_options=ocp.options.AsyncOptions(
                post_finalization_callback=None if self._read_only else self._write_checksums
            ),
        )
        try:
            return ocp.CheckpointManager(self.directory, options=options)
        except OSError as error:
            raise storage_error(self.directory, error) from None
        except Exception as error:
            raise CheckpointError(
                f"{self.directory}: cannot be read ({first_line(error)}); restore the checkpoints from a copy"
            ) from None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def steps(self) -> list[int]:
        """Return the saved steps in ascending order."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """Return the saved step with the lowest validation metric, or the latest if none has a metric."""
        return next(iter(self.ranked()), None)

    def ranked(self) -> list[int]:
        """Return the saved steps, best first; those with a damaged metric come before the best (see `rank_steps`)."""
        return rank_steps(self.directory, self._manager.all_steps())

    def validation(self, step: int) -> float | None:
        """Return the validation metric of a step, None if it was saved without one."""
        return validation_of(self.directory / str(step))

    def step_with_validation(self, validation: float) -> int | None:
        """Return the first saved step whose validation metric equals `validation` in float32, or None."""
        for step in self.steps():
            metric = self.validation(step)
            if metric is not None and np.float32(metric) == np.float32(validation):
                return step
        return None

    def save(self, state: TrainState, meta: dict[str, Any], *, validation: float | None) -> None:
        """Start an asynchronous save of a state, unless its step is saved already.

        Args:
            state: Train state.
            meta: JSON metadata, from `checkpoint_meta`.
            validation: Validation metric, lower is better. A checkpoint whose metric is None or not finite is never
                the best.

        Raises:
            CheckpointError: A later step is saved already.
            StorageError: The disk is full or read-only.
        """
        step = int(state.step)
        self.wait()
        if step in self._manager.all_steps():
            return
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=ocp.args.JsonSave({"next_batch": step}),
            meta=ocp.args.JsonSave(meta),
        )
        self._saving = step
        has_metric = validation is not None and math.isfinite(validation)
        with storage_errors(self.directory):
            saved = self._manager.save(step, args=arguments, metrics={"validation": validation} if has_metric else None)
        if not saved:
            raise CheckpointError(
                f"{self.directory}: step {step} was not saved because a later one exists; use another run directory"
            )

    def wait(self) -> None:
        """Block until the last save is complete, with its checksums, and raise its errors."""
        with storage_errors(self.directory):
            self._manager.wait_until_finished()
        if not self._read_only and is_host0():
            for step in self.steps():
                checksums.complete_checksums(self.directory / str(step))

    def _write_checksums(self) -> None:
        """Write the checksums of a save whose files are complete; orbax calls this on host 0 before the commit."""
        checksums.write_checksums(self.directory / f"{self._saving}{atomicity.TMP_DIR_SUFFIX}")

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Return the saved state of a step.

        Args:
            step: Step of the checkpoint.
            like: State or abstract state, whose structure and sharding the result has.

        Raises:
            CheckpointError: The checkpoint is damaged or has another structure. Out-of-memory errors are passed on.
        """
        return self._restore_state(step, ocp.args.StandardRestore(jax.tree.map(_with_sharding, like)))

    def restore_weights(self, step: int, like: TrainState) -> TrainState:
        """Return the state `like` with the saved step, parameters, average and scale.

        The optimizer's state is not read and stays abstract. Call either this method or `restore` on an object, not
        both.

        Args:
            step: Step of the checkpoint.
            like: Abstract state.

        Raises:
            CheckpointError: The checkpoint is damaged or has another structure.
        """
        fields = {name: value for name, value in vars(like).items() if name in ("step", "params", "ema", "scale")}
        fields = jax.tree.map(_with_sharding, fields)
        self._check_names(step, fields)
        restore_args = ocp.checkpoint_utils.construct_restore_args(fields)
        arguments = ocp.args.PyTreeRestore(item=fields, restore_args=restore_args, partial_restore=True)
        return replace(like, **self._restore_state(step, arguments))

    def _check_names(self, step: int, fields: dict[str, Any]) -> None:
        """Raise CheckpointError if the saved arrays of these fields have other names; orbax ignores missing ones."""
        self._check(step)
        folder = self.directory / str(step)
        saved = ocp.PyTreeCheckpointHandler().metadata((folder / "state").resolve()).tree
        names, expected = (
            {keystr(path, simple=True, separator="/") for path, _ in tree_leaves_with_path(tree)}
            for tree in ({name: saved.get(name) for name in fields}, fields)
        )
        if differing := sorted(names ^ expected):
            reason = "is in the checkpoint only" if differing[0] in names else "is in the model only"
            raise CheckpointError(f"{folder}: cannot be read ({differing[0]} {reason})")

    def _restore_state(self, step: int, arguments: Any) -> Any:
        """Return what orbax restores for these arguments, with its errors as CheckpointError."""
        self._check(step)
        try:
            return self._manager.restore(step, args=ocp.args.Composite(state=arguments))["state"]
        except Exception as error:
            if is_memory_error(error):
                raise
            reason = first_line(error)
        drop_abandoned_reads()
        raise CheckpointError(f"{self.directory / str(step)}: cannot be read ({reason})")

    def meta(self, step: int) -> dict[str, Any]:
        """Return the JSON metadata of a step; raise CheckpointError if it is damaged."""
        self._check(step)
        try:
            meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
            if not isinstance(meta, dict):
                raise TypeError(f"expected a JSON object, got {type(meta).__name__}")
            return meta
        except Exception as error:
            if is_memory_error(error):
                raise
            raise CheckpointError(
                f"{self.directory / str(step)}: metadata cannot be read ({first_line(error)})"
            ) from None

    def _check(self, step: int) -> None:
        """Raise CheckpointError if a file differs from its checksum; each step is checked only once."""
        if step in self._intact:
            return
        reason = checksums.find_damage(self.directory / str(step))
        if reason is not None:
            raise CheckpointError(f"{self.directory / str(step)}: {reason}")
        self._intact.add(step)

    def restore_latest(
        self, like: TrainState, check: Callable[[dict[str, Any]], None], report: Callable[[str], None]
    ) -> TrainState | None:
        """Return the latest readable state, None if there is no checkpoint.

        Damaged checkpoints are then reported and quarantined, that is renamed (`quarantined`), never deleted.

        Args:
            like: State or abstract state, whose structure and sharding the result has.
            check: Function that raises an error if the metadata of a checkpoint is unsuitable.
            report: Function that prints a message about a damaged checkpoint.

        Raises:
            CheckpointError: None of the checkpoints can be read.
        """
        unreadable: list[int] = []
        for line in self._quarantine_notes:
            report(line)
        for step in reversed(self.steps()):
            try:
                meta = self.meta(step)
                check(meta)
                state = self.restore(step, like)
            except CheckpointError as error:
                report(f"damaged checkpoint {error}")
                unreadable.append(step)
            else:
                self._quarantine(unreadable + self._damaged_before(step, report), report)
                return state
        if unreadable:
            raise CheckpointError(
                f"{self.directory}: none of the checkpoints {unreadable} can be read; "
                "restore one from a copy, or train in another run directory"
            )
        return None

    def _damaged_before(self, step: int, report: Callable[[str], None]) -> list[int]:
        """Return the damaged steps below `step`, one of which may be the best, and report them."""
        reasons = [
            (earlier, checksums.find_damage(self.directory / str(earlier)))
            for earlier in self.steps()
            if earlier < step
        ]
        damaged = broadcast_from_host0([item for item in reasons if item[1] is not None])
        for earlier, reason in damaged:
            report(f"damaged checkpoint {self.directory / str(earlier)}: {reason}")
        return [earlier for earlier, _ in damaged]

    def _quarantine(self, steps: list[int], report: Callable[[str], None]) -> None:
        """Quarantine damaged checkpoints and reopen the folder."""
        if not steps:
            return
        self._manager.close()
        for step in steps:
            report(f"damaged checkpoint {self.directory / str(step)}: {self._rename(step)}")
        self._manager = self._open()

    def _rename(self, step: int) -> str:
        """Quarantine a damaged checkpoint by renaming it, and return the message about it."""
        folder = unused_path(self.directory / f"damaged-{step}")
        on_host0(partial((self.directory / str(step)).rename, folder))
        self.quarantined[step] = folder
        return f"moved to {folder}"

    def close(self) -> None:
        """Wait for the last save and release the resources of orbax."""
        try:
            self.wait()
        finally:
            self._manager.close()


def checkpoint_meta(cfg: Config, stage: str, data: Dataset | Mixture) -> dict[str, Any]:
    """Return the metadata of a checkpoint, from which its model and normalisation can be rebuilt.

    The digest of the configuration and the fingerprint of the data allow a resume to refuse another run or other data.

    Args:
        cfg: Configuration.
        stage: Name of the stage.
        data: Training data.
    """
    mixture = as_mixture(data)
    return {
        "stage": stage,
        "digest": digest(cfg, stage),
        "fingerprint": mixture.fingerprint,
        "tasks": [task.to_dict() for task in mixture.tasks],
        "ema_decay": getattr(cfg.stages, stage).ema_decay,
        "config": to_dict(cfg),
    }


def tasks_of(meta: dict[str, Any]) -> tuple[Task, ...]:
    """Return the tasks of a checkpoint from its metadata, which in older checkpoints has a single task as `task`."""
    return tuple(map(Task.from_dict, meta["tasks"] if "tasks" in meta else [meta["task"]]))


def _ranking_metric(metrics: Any) -> float:
    """Return the value by which orbax ranks checkpoints, infinity for a damaged metric."""
    value = metrics.get("validation") if isinstance(metrics, dict) else None
    return value if isinstance(value, float | int) else math.inf


def _single_process() -> ocp.options.MultiprocessingOptions:
    """Return the options of a reader that does not synchronise with other processes."""
    process = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"reader{process}"
    )


def _with_sharding(leaf: Any) -> Any:
    """Return a leaf as an abstract array with its sharding, by default on the first device of this process.

    With an explicit sharding, a restore does not depend on the devices of the save.
    """
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


# File of orbax with the metrics of a checkpoint.
_METRICS_FILE = "metrics/metrics"


def validation_of(folder: Path) -> float | None:
    """Return the validation metric of a checkpoint, None if it was saved without one.

    Args:
        folder: Folder of the checkpoint.

    Raises:
        CheckpointError: The metric is damaged.
    """
    if not (folder / _METRICS_FILE).exists() and not checksums.is_listed(folder, _METRICS_FILE):
        return None
    try:
        value = read_json(folder / _METRICS_FILE)["validation"]
    except (OSError, ValueError, KeyError, TypeError):
        value = None
    if not isinstance(value, float | int) or not checksums.matches_checksum(folder, _METRICS_FILE):
        raise CheckpointError(f"{folder}: {_METRICS_FILE} is damaged")
    return float(value)


def rank_steps(directory: Path, steps: Iterable[int]) -> list[int]:
    """Return steps sorted by validation metric, lowest first; of equal ones the latest comes first.

    Steps with a damaged metric come before all others, since one of them may be the best. Steps without a metric come
    last, latest first.

    Args:
        directory: Folder of the checkpoints.
        steps: Steps of checkpoints in it.
    """

    def sort_key(step: int) -> tuple[int, float, int]:
        try:
            value = validation_of(directory / str(step))
        except CheckpointError:
            return 0, 0.0, -step
        return (2, 0.0, -step) if value is None else (1, value, -step)

    return sorted(steps, key=sort_key)
