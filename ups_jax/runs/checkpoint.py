"""Checkpoints of a stage: the full train state with JSON metadata. No other module imports orbax.

A save is asynchronous. When all files and their checksums are written, an atomic rename commits the checkpoint. If the
process is killed before this, its next start deletes the incomplete checkpoint.
"""

from __future__ import annotations

import contextlib
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
from ups_jax.models.patches import partitions_agree
from ups_jax.runs import checksums
from ups_jax.runs.orbax_errors import drop_abandoned_reads, is_memory_error, storage_errors
from ups_jax.training.state import TrainState

# orbax logs every save and restore through absl, including tracebacks of exceptions that it raises anyway.
logging.getLogger("absl").setLevel(logging.CRITICAL)


class Checkpoints:
    """The checkpoints of a stage, each in a folder `directory/<step>/`.

    A save deletes older checkpoints, except for the `keep` latest and the one with the lowest validation metric.

    Attributes:
        directory: Folder of the checkpoints.
        quarantined: New folders of damaged checkpoints that were quarantined (renamed, never deleted), by step.
    """

    def __init__(self, directory: Path, *, keep: int = 2, read_only: bool = False) -> None:
        """Open the checkpoints of a stage.

        Args:
            directory: Folder of the checkpoints.
            keep: Number of latest checkpoints to keep.
            read_only: Whether to leave the folder unchanged: no file is created, renamed or deleted.

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
        self._quarantine_messages = [] if read_only else self._quarantine_unlistable()
        self._manager = self._open_manager()

    def _quarantine_unlistable(self) -> list[str]:
        """Quarantine checkpoints that keep orbax from listing the folder, if another is intact; return messages."""
        steps = sorted(int(item.name) for item in self.directory.glob("*") if item.name.isdecimal())
        reasons = {step: reason for step in steps if (reason := self._why_unlistable(step)) is not None}
        any_intact = reasons and any(
            checksums.find_damage(self.directory / str(step)) is None for step in steps if step not in reasons
        )
        damaged = broadcast_from_host0(list(reasons.items()) if any_intact else [])
        return [f"damaged checkpoint {reason}; {self._quarantine_step(step)}" for step, reason in damaged]

    def _why_unlistable(self, step: int) -> str | None:
        """Return why the checkpoint of `step` keeps orbax from listing its folder, or None if orbax can list it."""
        folder = self.directory / str(step)
        try:
            read_validation_metric(folder)
        except CheckpointError as error:
            return str(error)
        return f"{folder}: its commit metadata is damaged" if checksums.has_unreadable_commit_metadata(folder) else None

    def _open_manager(self) -> ocp.CheckpointManager:
        """Open the folder and return its orbax manager."""
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
            multiprocessing_options=_single_process_options()
            if self._read_only
            else ocp.options.MultiprocessingOptions(),
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
        return next(iter(self.ranked_steps()), None)

    def ranked_steps(self) -> list[int]:
        """Return the saved steps, best first, as `rank_steps` sorts them."""
        return rank_steps(self.directory, self._manager.all_steps())

    def validation_metric(self, step: int) -> float | None:
        """Return the validation metric of the checkpoint of a step, None if it was saved without one."""
        return read_validation_metric(self.directory / str(step))

    def step_with_validation(self, validation: float) -> int | None:
        """Return the first saved step whose validation metric equals `validation` in float32, or None."""
        for step in self.steps():
            metric = self.validation_metric(step)
            if metric is not None and np.float32(metric) == np.float32(validation):
                return step
        return None

    def save(self, state: TrainState, meta: dict[str, Any], *, validation: float | None) -> None:
        """Start an asynchronous save of a state, unless its step is already saved.

        Args:
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
                f"{self.directory}: step {step} was not saved, because a later step is saved; use another run directory"
            )

    def wait(self) -> None:
        """Block until the last save, with its checksums, is complete; raise an error if it failed."""
        with storage_errors(self.directory):
            self._manager.wait_until_finished()
        if not self._read_only and is_host0():
            for step in self.steps():
                checksums.complete_checksums(self.directory / str(step))

    def _write_checksums(self) -> None:
        """Write the checksums of the current save; orbax calls this on host 0 when the files are complete."""
        checksums.write_checksums(self.directory / f"{self._saving}{atomicity.TMP_DIR_SUFFIX}")

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Return the saved state of a step.

        Args:
            like: State or abstract state; the result has the same structure and sharding.

        Raises:
            CheckpointError: The checkpoint is damaged or has another structure. Out-of-memory errors are not converted.
        """
        return self._restore_state(step, ocp.args.StandardRestore(jax.tree.map(_with_sharding, like)))

    def restore_weights(self, step: int, like: TrainState) -> TrainState:
        """Return a copy of `like` with the step, parameters, parameter average and scale from a checkpoint.

        All other parts stay abstract, such as the optimizer state. Do not also call `restore` on the same object.

        Raises:
            CheckpointError: The checkpoint is damaged or has another structure.
        """
        fields = {name: value for name, value in vars(like).items() if name in ("step", "params", "ema", "scale")}
        fields = jax.tree.map(_with_sharding, fields)
        self._check_array_names(step, fields)
        restore_args = ocp.checkpoint_utils.construct_restore_args(fields)
        arguments = ocp.args.PyTreeRestore(item=fields, restore_args=restore_args, partial_restore=True)
        return replace(like, **self._restore_state(step, arguments))

    def _check_array_names(self, step: int, fields: dict[str, Any]) -> None:
        """Raise CheckpointError if the arrays of `fields` have other names in the checkpoint; orbax ignores this."""
        self._check_checksums(step)
        folder = self.directory / str(step)
        saved = ocp.PyTreeCheckpointHandler().metadata((folder / "state").resolve()).tree
        names, expected = (
            {keystr(path, simple=True, separator="/") for path, _ in tree_leaves_with_path(tree)}
            for tree in ({name: saved.get(name) for name in fields}, fields)
        )
        if differing := sorted(names ^ expected):
            reason = "is in the checkpoint only" if differing[0] in names else "is in the model only"
            raise CheckpointError(f"{folder}: cannot be read ({differing[0]} {reason})")

    def _restore_state(self, step: int, arguments: ocp.args.CheckpointArgs) -> Any:
        """Return the state that orbax restores; convert its errors to CheckpointError, except out-of-memory errors."""
        self._check_checksums(step)
        try:
            return self._manager.restore(step, args=ocp.args.Composite(state=arguments))["state"]
        except Exception as error:
            if is_memory_error(error):
                raise
            reason = first_line(error)
        drop_abandoned_reads()
        raise CheckpointError(f"{self.directory / str(step)}: cannot be read ({reason})")

    def meta(self, step: int) -> dict[str, Any]:
        """Return the JSON metadata of a checkpoint; raise CheckpointError if the checkpoint is damaged."""
        self._check_checksums(step)
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

    def _check_checksums(self, step: int) -> None:
        """Raise CheckpointError if a file of a checkpoint differs from its checksum; check each step only once."""
        if step in self._intact:
            return
        reason = checksums.find_damage(self.directory / str(step))
        if reason is not None:
            raise CheckpointError(f"{self.directory / str(step)}: {reason}")
        self._intact.add(step)

    def restore_latest(
        self, like: TrainState, check_meta: Callable[[dict[str, Any]], None], report: Callable[[str], None]
    ) -> TrainState | None:
        """Return the state of the latest readable checkpoint, None if there are no checkpoints.

        Later and earlier checkpoints that are damaged are reported and quarantined.

        Args:
            like: State or abstract state; the result has the same structure and sharding.
            check_meta: Raises an error if the metadata of a checkpoint does not fit the run.
            report: Prints a message about a damaged checkpoint.

        Raises:
            CheckpointError: There are checkpoints, but none can be read.
        """
        unreadable: list[int] = []
        for line in self._quarantine_messages:
            report(line)
        for step in reversed(self.steps()):
            try:
                meta = self.meta(step)
                check_meta(meta)
                state = self.restore(step, like)
            except CheckpointError as error:
                report(f"damaged checkpoint {error}")
                unreadable.append(step)
            else:
                self._quarantine_and_reopen(unreadable + self._report_damaged_before(step, report), report)
                return state
        if unreadable:
            raise CheckpointError(
                f"{self.directory}: none of the checkpoints {unreadable} can be read; "
                "restore one from a copy, or train in another run directory"
            )
        return None

    def _report_damaged_before(self, step: int, report: Callable[[str], None]) -> list[int]:
        """Report damaged checkpoints of steps before `step`, of which one may be the best, and return these steps."""
        reasons = [
            (earlier, checksums.find_damage(self.directory / str(earlier)))
            for earlier in self.steps()
            if earlier < step
        ]
        damaged = broadcast_from_host0([item for item in reasons if item[1] is not None])
        for earlier, reason in damaged:
            report(f"damaged checkpoint {self.directory / str(earlier)}: {reason}")
        return [earlier for earlier, _ in damaged]

    def _quarantine_and_reopen(self, steps: list[int], report: Callable[[str], None]) -> None:
        """Quarantine the checkpoints of `steps`, which are damaged, and reopen the folder."""
        if not steps:
            return
        self._manager.close()
        for step in steps:
            report(f"damaged checkpoint {self.directory / str(step)}: {self._quarantine_step(step)}")
        self._manager = self._open_manager()

    def _quarantine_step(self, step: int) -> str:
        """Quarantine a damaged checkpoint by renaming its folder; return a text with the new name."""
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
    """Return the metadata to save with a checkpoint, from which its model and normalisation can be rebuilt.

    A resume compares the digest of the configuration and the fingerprint of the data, and fails if they differ.
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


def tasks_from_meta(meta: dict[str, Any]) -> tuple[Task, ...]:
    """Return the tasks in the metadata of a checkpoint; old checkpoints have one task under the key `task`.

    A partition into patches that is the same as `full` for the task's grid becomes `full`, so that the grid of an old
    task can be replaced by one that its patches do not divide.
    """
    tasks = map(Task.from_dict, meta["tasks"] if "tasks" in meta else [meta["task"]])
    patch_size = meta["config"]["latent"]["patch_size"]
    return tuple(
        replace(task, partition="full") if task.scattered or partitions_agree(task.shape, patch_size) else task
        for task in tasks
    )


def recorded_tasks(directory: Path) -> tuple[Task, ...]:
    """Return the tasks of the newest readable checkpoint in a folder, empty if there is none."""
    if directory.is_dir():
        # A damaged checkpoint is reported and quarantined by `restore_latest`.
        with contextlib.suppress(CheckpointError), Checkpoints(directory, read_only=True) as checkpoints:
            for step in reversed(checkpoints.steps()):
                with contextlib.suppress(CheckpointError):
                    return tasks_from_meta(checkpoints.meta(step))
    return ()


def _ranking_metric(metrics: Any) -> float:
    """Return the validation metric by which orbax ranks a checkpoint, infinity if it is damaged."""
    value = metrics.get("validation") if isinstance(metrics, dict) else None
    return value if isinstance(value, float | int) else math.inf


def _single_process_options() -> ocp.options.MultiprocessingOptions:
    """Return orbax options for reading in this process alone, without synchronising with other processes."""
    process = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"reader{process}"
    )


def _with_sharding(leaf: Any) -> jax.ShapeDtypeStruct:
    """Return an abstract array with the shape, type and sharding of `leaf`, by default on the first local device.

    With an explicit sharding, a restore does not depend on the devices that the checkpoint was saved from.
    """
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


# File of orbax with the metrics of a checkpoint.
_METRICS_FILE = "metrics/metrics"


def read_validation_metric(folder: Path) -> float | None:
    """Return the validation metric of the checkpoint in a folder, None if it was saved without one.

    Raises:
        CheckpointError: The metric is damaged.
    """
    if not (folder / _METRICS_FILE).exists() and not checksums.has_recorded_checksum(folder, _METRICS_FILE):
        return None
    try:
        value = read_json(folder / _METRICS_FILE)["validation"]
    except (OSError, ValueError, KeyError, TypeError):
        value = None
    if not isinstance(value, float | int) or not checksums.matches_checksum(folder, _METRICS_FILE):
        raise CheckpointError(f"{folder}: {_METRICS_FILE} is damaged")
    return float(value)


def rank_steps(directory: Path, steps: Iterable[int]) -> list[int]:
    """Return steps sorted by the validation metric of their checkpoints in `directory`, lowest first.

    Steps with a damaged metric come first, since one of them may be the best, and steps without a metric last. Of steps
    with equal metrics, the latest comes first.
    """

    def sort_key(step: int) -> tuple[int, float, int]:
        try:
            value = read_validation_metric(directory / str(step))
        except CheckpointError:
            return 0, 0.0, -step
        return (2, 0.0, -step) if value is None else (1, value, -step)

    return sorted(steps, key=sort_key)
