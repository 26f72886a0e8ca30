"""Checkpoints of one stage: the full train state with its JSON metadata. The only file that imports orbax.

A save is asynchronous and commits by one atomic rename, of files that are sealed with their checksums by then; what a
killed process leaves half written is swept away.
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

# orbax tells every save and restore through absl, and prints tracebacks of what arrives as an exception as well.
logging.getLogger("absl").setLevel(logging.CRITICAL)


class Checkpoints:
    """Saves and restores in `directory/<step>/`; keeps the `keep` latest and the one with the lowest metric.

    `quarantined` are the damaged steps that were found here, with the folders that they were renamed to.
    """

    def __init__(self, directory: Path, *, keep: int = 2, read_only: bool = False) -> None:
        self.directory = directory.absolute()
        self._keep = keep
        self._read_only = read_only
        self._sound: set[int] = set()
        self._saving = -1
        self.quarantined: dict[int, Path] = {}
        self._moved = [] if read_only else self._move_unopenable()
        self._manager = self._open()

    def _move_unopenable(self) -> list[str]:
        """Rename the checkpoints that keep orbax from listing the folder, where there is a sound one; what to tell."""
        every = sorted(int(item.name) for item in self.directory.glob("*") if item.name.isdecimal())
        reasons = {step: reason for step in every if (reason := self._why_unlisted(step)) is not None}
        sound = reasons and any(
            checksums.find_damage(self.directory / str(step)) is None for step in every if step not in reasons
        )
        damaged = broadcast_from_host0(list(reasons.items()) if sound else [])
        return [f"damaged checkpoint {reason}; {self._rename(step)}" for step, reason in damaged]

    def _why_unlisted(self, step: int) -> str | None:
        folder = self.directory / str(step)
        try:
            validation_of(folder)
        except CheckpointError as error:
            return str(error)
        return None if checksums.is_committed(folder) else f"{folder}: its commit is not what was written"

    def _open(self) -> ocp.CheckpointManager:
        policy = preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(self._keep),
                preservation_policy.BestN(
                    get_metric_fn=_validation, reverse=True, n=1, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            best_fn=_validation,
            best_mode="min",
            cleanup_tmp_directories=not self._read_only,
            read_only=self._read_only,
            # A reader comes past the metrics that cannot be read.
            lightweight_initialize=self._read_only,
            create=not self._read_only,
            multiprocessing_options=_alone() if self._read_only else ocp.options.MultiprocessingOptions(),
            async_options=ocp.options.AsyncOptions(
                post_finalization_callback=None if self._read_only else self._seal_ahead
            ),
        )
        try:
            return ocp.CheckpointManager(self.directory, options=options)
        except OSError as error:
            raise storage_error(self.directory, error) from None
        except Exception as error:
            raise CheckpointError(
                f"{self.directory}: cannot be read ({first_line(error)}); bring the checkpoints back from a copy"
            ) from None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def steps(self) -> list[int]:
        """The steps that are saved, in order."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The saved step with the lowest validation metric; the latest where none has one."""
        return next(iter(self.ranked()), None)

    def ranked(self) -> list[int]:
        """The saved steps, the best first; ahead of it what may have been the best, were its metric not damaged."""
        return ranked(self.directory, self._manager.all_steps())

    def validation(self, step: int) -> float | None:
        """The validation metric that a step was saved with, None for none."""
        return validation_of(self.directory / str(step))

    def step_with_validation(self, validation: float) -> int | None:
        """The first saved step whose validation metric is this one in float32; None where none on disk has it."""
        for step in self.steps():
            own = self.validation(step)
            if own is not None and np.float32(own) == np.float32(validation):
                return step
        return None

    def save(self, state: TrainState, meta: dict[str, Any], *, validation: float | None) -> None:
        """Begin to save `state`; a step that is already saved is left as it is.

        A `validation` that is not finite is as none: such a checkpoint can be the latest, never the best.
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
        known = validation is not None and math.isfinite(validation)
        with storage_errors(self.directory):
            saved = self._manager.save(step, args=arguments, metrics={"validation": validation} if known else None)
        if not saved:
            raise CheckpointError(f"{self.directory}: step {step} was not saved; a later step is there already")

    def wait(self) -> None:
        """Return when the last save is on disk and its seal is complete; its errors are raised here."""
        with storage_errors(self.directory):
            self._manager.wait_until_finished()
        if not self._read_only and is_host0():
            for step in self.steps():
                checksums.seal(self.directory / str(step))

    def _seal_ahead(self) -> None:
        """The first process's thread that writes comes here when all files are whole, and commits them next."""
        checksums.seal_before_commit(self.directory / f"{self._saving}{atomicity.TMP_DIR_SUFFIX}")

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state saved at `step`, in the structure and placement of the (abstract) state `like`.

        Raises CheckpointError, whatever the reader of a damaged file raises; memory that runs out is no damage.
        """
        return self._restored(step, ocp.args.StandardRestore(jax.tree.map(_placed, like)))

    def restore_weights(self, step: int, like: TrainState) -> TrainState:
        """Return the (abstract) state `like` with the saved step, parameters, average and scale; the optimizer's state
        is not read and stays abstract. One object reads states either so or by `restore`. Errors are those of that."""
        parts = {name: part for name, part in vars(like).items() if name in ("step", "params", "ema", "scale")}
        parts = jax.tree.map(_placed, parts)
        self._check_names(step, parts)
        wanted = ocp.checkpoint_utils.construct_restore_args(parts)
        arguments = ocp.args.PyTreeRestore(item=parts, restore_args=wanted, partial_restore=True)
        return replace(like, **self._restored(step, arguments))

    def _check_names(self, step: int, parts: dict[str, Any]) -> None:
        """CheckpointError where the saved arrays of these parts have other names: orbax reads those that it finds."""
        self._check(step)
        folder = self.directory / str(step)
        saved = ocp.PyTreeCheckpointHandler().metadata((folder / "state").resolve()).tree
        names, expected = (
            {keystr(path, simple=True, separator="/") for path, _ in tree_leaves_with_path(tree)}
            for tree in ({name: saved.get(name) for name in parts}, parts)
        )
        if differing := sorted(names ^ expected):
            reason = "is in the checkpoint alone" if differing[0] in names else "is in the model alone"
            raise CheckpointError(f"{folder}: cannot be read ({differing[0]} {reason})")

    def _restored(self, step: int, arguments: Any) -> Any:
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
        """The JSON metadata saved at `step`."""
        self._check(step)
        try:
            found = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
            if not isinstance(found, dict):
                raise TypeError(f"it is of type {type(found).__name__}")
            return found
        except Exception as error:
            if is_memory_error(error):
                raise
            raise CheckpointError(
                f"{self.directory / str(step)}: metadata cannot be read ({first_line(error)})"
            ) from None

    def _check(self, step: int) -> None:
        """CheckpointError where a file is not what was written; each step is read through once."""
        if step in self._sound:
            return
        reason = checksums.find_damage(self.directory / str(step))
        if reason is not None:
            raise CheckpointError(f"{self.directory / str(step)}: {reason}")
        self._sound.add(step)

    def restore_latest(
        self, like: TrainState, check: Callable[[dict[str, Any]], None], report: Callable[[str], None]
    ) -> TrainState | None:
        """The newest state that can be read, None if none was ever saved.

        `check` sees a checkpoint's metadata first. Once one has proved readable, the others that are damaged are
        reported and renamed out of the way, never deleted: `quarantined` says where. CheckpointError if none can be read.
        """
        unreadable: list[int] = []
        for line in self._moved:
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
                self._set_aside(unreadable + self._damaged_before(step, report), report)
                return state
        if unreadable:
            raise CheckpointError(
                f"{self.directory}: none of the checkpoints {unreadable} can be read; "
                "bring one back from a copy, or train in another run directory"
            )
        return None

    def _damaged_before(self, step: int, report: Callable[[str], None]) -> list[int]:
        """The steps below one whose files are not what was written: one of them may be the best."""
        reasons = [(own, checksums.find_damage(self.directory / str(own))) for own in self.steps() if own < step]
        found = broadcast_from_host0([own for own in reasons if own[1] is not None])
        for own, reason in found:
            report(f"damaged checkpoint {self.directory / str(own)}: {reason}")
        return [own for own, _ in found]

    def _set_aside(self, steps: list[int], report: Callable[[str], None]) -> None:
        if not steps:
            return
        self._manager.close()
        for step in steps:
            report(f"damaged checkpoint {self.directory / str(step)}: {self._rename(step)}")
        self._manager = self._open()

    def _rename(self, step: int) -> str:
        """Set a damaged checkpoint aside; what is to be told of it."""
        aside = unused_path(self.directory / f"damaged-{step}")
        on_host0(partial((self.directory / str(step)).rename, aside))
        self.quarantined[step] = aside
        return f"moved to {aside}"

    def close(self) -> None:
        """Wait for the last save and let go."""
        try:
            self.wait()
        finally:
            self._manager.close()


def checkpoint_meta(cfg: Config, stage: str, data: Dataset | Mixture) -> dict[str, Any]:
    """What a checkpoint says of itself: enough to rebuild model and normaliser, and to refuse another run or data."""
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
    """The tasks that a checkpoint is of; one of before there could be several has its only one by itself."""
    return tuple(map(Task.from_dict, meta["tasks"] if "tasks" in meta else [meta["task"]]))


def _validation(metrics: Any) -> float:
    """What orbax ranks by; a metric that is damaged beyond that is never the best of those that it keeps."""
    value = metrics.get("validation") if isinstance(metrics, dict) else None
    return value if isinstance(value, float | int) else math.inf


def _alone() -> ocp.options.MultiprocessingOptions:
    """A reader waits for no other process."""
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"reader{own}"
    )


def _placed(leaf: Any) -> Any:
    """The leaf as an abstract array where `like` has it, or else on a device of this process: a restore does not depend
    on where it was saved."""
    where = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


# Where orbax keeps the metrics of a step.
_FILE = "metrics/metrics"


def validation_of(folder: Path) -> float | None:
    """The validation metric that a checkpoint was saved with, None for none; CheckpointError where it is damaged."""
    if not (folder / _FILE).exists() and not checksums.is_listed(folder, _FILE):
        return None
    try:
        value = read_json(folder / _FILE)["validation"]
    except (OSError, ValueError, KeyError, TypeError):
        value = None
    if not isinstance(value, float | int) or not checksums.matches_checksum(folder, _FILE):
        raise CheckpointError(f"{folder}: {_FILE} is not what was written")
    return float(value)


def ranked(directory: Path, steps: Iterable[int]) -> list[int]:
    """The best first, by their metrics, of equal ones the latest; at the end those that were saved with none, the
    latest first. One whose metric is damaged may have been the best: it comes ahead."""

    def place(step: int) -> tuple[int, float, int]:
        try:
            value = validation_of(directory / str(step))
        except CheckpointError:
            return 0, 0.0, -step
        return (2, 0.0, -step) if value is None else (1, value, -step)

    return sorted(steps, key=place)
