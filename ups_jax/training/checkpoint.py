"""Checkpoints of one stage: the full train state with its JSON metadata. The only file that imports orbax.

A save is asynchronous and commits by one atomic rename; what a killed process leaves half written is swept away.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from ups_jax.config import Config, digest, to_dict
from ups_jax.data import Dataset
from ups_jax.errors import CheckpointError, ConfigError, StorageError
from ups_jax.optim import ema_params
from ups_jax.training.state import TrainState

# orbax tells every save and restore at warning level through absl; its errors still arrive as exceptions.
logging.getLogger("absl").setLevel(logging.ERROR)


class Checkpoints:
    """Saves and restores in `directory/<step>/`; keeps the `keep` latest and the one with the lowest metric."""

    def __init__(self, directory: Path, *, keep: int = 2, read_only: bool = False) -> None:
        self.directory = directory.absolute()
        self._keep = keep
        self._read_only = read_only
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        policy = preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(self._keep),
                preservation_policy.BestN(
                    get_metric_fn=lambda metrics: metrics["validation"],
                    reverse=True,
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            best_fn=lambda metrics: metrics["validation"],
            best_mode="min",
            cleanup_tmp_directories=not self._read_only,
            read_only=self._read_only,
            create=not self._read_only,
        )
        try:
            return ocp.CheckpointManager(self.directory, options=options)
        except OSError as error:
            raise StorageError(
                f"{self.directory}: {error.strerror}; free the disk or give another run directory"
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
        best = self._manager.best_step()
        return self._manager.latest_step() if best is None else best

    def save(self, state: TrainState, meta: dict[str, Any], *, validation: float | None) -> None:
        """Begin to save `state`; a step that is already saved is left as it is."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=ocp.args.JsonSave({"next_batch": step}),
            meta=ocp.args.JsonSave(meta),
        )
        metrics = None if validation is None else {"validation": validation}
        with _storage_errors(self.directory):
            if not self._manager.save(step, args=arguments, metrics=metrics):
                raise CheckpointError(f"{self.directory}: step {step} was not saved; a later step is there already")

    def wait(self) -> None:
        """Return when the last save is on disk; its errors are raised here."""
        with _storage_errors(self.directory):
            self._manager.wait_until_finished()

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state saved at `step`, in the structure and placement of the (abstract) state `like`."""
        abstract = jax.tree.map(_placed, like)
        restored = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)))
        return restored["state"]

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON metadata saved at `step`."""
        try:
            return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        except Exception as error:
            raise CheckpointError(
                f"{self.directory / str(step)}: metadata cannot be read ({_first_line(error)})"
            ) from None

    def restore_latest(
        self, like: TrainState, check: Callable[[dict[str, Any]], None], report: Callable[[str], None]
    ) -> TrainState | None:
        """The newest state that can be read, None if none was ever saved.

        `check` sees a checkpoint's metadata first. A damaged one is reported, renamed out of the way (never deleted),
        and the one before is taken; CheckpointError if all are damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                check(self.meta(step))
                return self.restore(step, like)
            except ConfigError:
                raise
            except Exception as error:  # whatever the reader of a damaged file raises
                aside = self.directory / f"damaged-{step}"
                report(
                    f"checkpoint {self.directory / str(step)} is damaged ({_first_line(error)}); moved to {aside.name}"
                )
                self._manager.close()
                (self.directory / str(step)).rename(aside)
                self._manager = self._open()
        if steps:
            raise CheckpointError(
                f"{self.directory}: all {len(steps)} checkpoints are damaged; they were kept as damaged-*; "
                "start again with another run directory"
            )
        return None

    def close(self) -> None:
        """Wait for the last save and let go."""
        with _storage_errors(self.directory):
            self._manager.close()


def checkpoint_meta(cfg: Config, stage: str, dataset: Dataset) -> dict[str, Any]:
    """What a checkpoint says of itself: enough to rebuild model and normaliser, and to refuse another run or data."""
    return {
        "stage": stage,
        "digest": digest(cfg, stage),
        "fingerprint": dataset.fingerprint,
        "task": dataset.task.to_dict(),
        "ema_decay": getattr(cfg.stages, stage).ema_decay,
        "config": to_dict(cfg),
    }


def best_weights(directory: Path, like: TrainState) -> tuple[Any, int]:
    """The averaged parameters of the best checkpoint in a stage's directory, and its step."""
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: there is no such checkpoint; train the stage {directory.name} first")
    with Checkpoints(directory, read_only=True) as checkpoints:
        step = checkpoints.best_step()
        if step is None:
            raise CheckpointError(f"{directory}: holds no checkpoint; train the stage {directory.name} first")
        decay = checkpoints.meta(step)["ema_decay"]
        try:
            state = checkpoints.restore(step, like)
        except Exception as error:  # whatever the reader of a damaged file raises
            raise CheckpointError(f"{directory / str(step)}: cannot be read ({_first_line(error)})") from None
    return ema_params(state.params, state.ema, decay), step


class _storage_errors:
    """Turns a full or read-only disk under a save into `StorageError`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        cause = error
        while cause is not None:
            if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
                raise StorageError(
                    f"{self._directory}: a checkpoint could not be written ({cause.strerror or cause}); "
                    "free the disk and start the same command again"
                ) from error
            cause = cause.__cause__ or cause.__context__


def _placed(leaf: Any) -> Any:
    """The leaf as an abstract array on the default device, so that a restore does not depend on where it was saved."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
