"""Recovery from running out of device memory: the micro-batch is halved and the same optimizer step is repeated.

If the failed step destroyed the train state, training restarts from the newest checkpoint. The repeated steps give the
same results as the lost steps, except for round-off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import jax

from ups_jax.config import Config
from ups_jax.core.errors import ConfigError
from ups_jax.core.xla import compile_ahead
from ups_jax.data import windows_per_step
from ups_jax.models import Batch
from ups_jax.runs.directory import utc_now
from ups_jax.training.gradients import rows_per_micro_batch
from ups_jax.training.multi_step import Batches
from ups_jax.training.stages.spec import Validate
from ups_jax.training.state import TrainState
from ups_jax.training.step import Metrics, TrainStep

T = TypeVar("T")
# Entry of the list `out_of_memory` in run.json.
HalvingRecord = dict[str, Any]


class StateLost(RuntimeError):
    """Device memory ran out in a step that had destroyed its input state, so that the step cannot be repeated."""


class OomRetryStep:
    """A train step that halves its micro-batch and repeats itself each time the device runs out of memory.

    Args:
        make_step: Function `make_step(micro_batches=n)` that returns the train step with `n` micro-batches.
        rows: Rows of a step, summed over micro-batches.
        micro_batches: Number of micro-batches of the first attempt.
        config_key: Configuration key of the batch size, for messages.
        ahead_of_time: Whether to compile the step before its first call.
        on_halved: Callback `(rows of a micro-batch, number of micro-batches)`, called after each halving.
        on_compiled: Callback with the total seconds of all compilations, called after each of them.
    """

    def __init__(
        self,
        make_step: Callable[..., TrainStep],
        rows: int,
        micro_batches: int,
        *,
        config_key: str,
        ahead_of_time: bool = True,
        on_halved: Callable[[int, int], None] = lambda rows, micro_batches: None,
        on_compiled: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._make_step, self._rows, self._config_key = make_step, rows, config_key
        self._micro_batches = micro_batches
        self._step = make_step(micro_batches=micro_batches)
        self._ahead_of_time, self._compiled_structures = ahead_of_time, set[Any]()
        self._on_halved, self._on_compiled = on_halved, on_compiled
        self.compile_seconds = 0.0

    def __call__(self, state: TrainState, batch: Batch | Batches) -> tuple[TrainState, Metrics]:
        """Return the next state and the metrics of a step.

        Raises:
            StateLost: Memory ran out and the step destroyed `state`; repeat the step from another state.
            ConfigError: A micro-batch of one row does not fit into memory.
        """
        while True:
            try:
                # Batches of different tasks have different tree structures, and each structure has its own program.
                if self._ahead_of_time and (structure := jax.tree.structure(batch)) not in self._compiled_structures:
                    self.compile_seconds += compile_ahead(self._step, state, batch)
                    self._compiled_structures.add(structure)
                    self._on_compiled(self.compile_seconds)
                return self._step(state, batch)
            except jax.errors.JaxRuntimeError as error:
                self.halve_or_raise(error)
            # Leave the handler first: the exception keeps the failed step's buffers alive.
            if is_state_lost(state):
                raise StateLost

    def halve_or_raise(self, error: jax.errors.JaxRuntimeError) -> None:
        """Halve the rows of a micro-batch for all further steps; raise `error` if it is not an out-of-memory error."""
        if not is_out_of_memory(error):
            raise error
        if jax.process_count() > 1:
            # The other processes did not fail, and all processes must run the same program.
            raise ConfigError(
                f"{self._config_key}: the device of process {jax.process_index()} ran out of memory; lower batch_size "
                "and raise accum_steps by the same factor, which leaves the optimizer step unchanged"
            ) from None
        size = rows_per_micro_batch(self._rows, self._micro_batches)
        if size == 1:
            raise row_too_large_error(self._config_key) from None
        self._micro_batches = -(-self._rows // -(-size // 2))
        self._step = self._make_step(micro_batches=self._micro_batches)
        self._compiled_structures.clear()
        self._on_halved(rows_per_micro_batch(self._rows, self._micro_batches), self._micro_batches)

    def run_with_retry(self, call: Callable[[], T]) -> T:
        """Return `call()`; each time memory runs out and the state is lost, halve the micro-batch and repeat the call.

        Steps run asynchronously, so the error of a step may be raised wherever `call` reads the results of this step.
        """
        while True:
            try:
                return call()
            except StateLost:
                pass
            except jax.errors.JaxRuntimeError as error:
                self.halve_or_raise(error)


def batch_size_key(stage: str) -> str:
    """Return the configuration key of a stage's batch size."""
    return f"stages.{stage}.batch_size"


def row_too_large_error(config_key: str) -> ConfigError:
    """Return the error for a step of one row that does not fit into memory; `config_key` names the batch size."""
    return ConfigError(
        f"{config_key}: a training step of one row does not fit into the device's memory; set training.remat=full or "
        "training.precision=bf16, or use a smaller model or a shorter rollout_horizon"
    )


@contextmanager
def raise_on_oom(replacement: ConfigError) -> Iterator[None]:
    """Raise `replacement` in place of an out-of-memory error of the device in the context; keep other errors."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise replacement from None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a runtime error reports that device memory ran out."""
    text = str(error)
    return "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()


def is_retried(error: Exception) -> bool:
    """Return whether `OomRetryStep.run_with_retry` halves the micro-batch and starts again after this error."""
    return isinstance(error, StateLost) or (isinstance(error, jax.errors.JaxRuntimeError) and is_out_of_memory(error))


def is_state_lost(state: Any) -> bool:
    """Return whether a state cannot be used: its buffers are deleted, or memory ran out while it was computed."""
    leaves = [leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array)]
    if any(leaf.is_deleted() for leaf in leaves):
        return True
    try:
        jax.block_until_ready(leaves)
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return True
    return False


def halving_record(cfg: Config, rows: int, micro_batches: int) -> HalvingRecord:
    """Return the run.json entry of a halving, after which a step has `micro_batches` micro-batches of `rows` rows."""
    return {"micro_batch": rows, "accum_steps": micro_batches, "time": utc_now()} | _device_and_remat(cfg)


def initial_micro_batches(cfg: Config, stage: str, halvings: Sequence[HalvingRecord]) -> int:
    """Return the number of micro-batches with which a training starts.

    This is `accum_steps` of the stage, unless the newest halving with the same device kind and `training.remat` has a
    larger number.
    """
    recorded = [record["accum_steps"] for record in halvings if _device_and_remat(cfg).items() <= record.items()]
    return max([getattr(cfg.stages, stage).accum_steps, *recorded[-1:]])


def describe_micro_batches(cfg: Config, stage: str, micro_batches: int) -> str:
    """Return a text with the number and the size of the micro-batches of a step."""
    rows = rows_per_micro_batch(windows_per_step(cfg, stage), micro_batches)
    return f"{micro_batches} micro-batches of {rows} rows per step"


def _device_and_remat(cfg: Config) -> dict[str, str]:
    """Return the device kind and `training.remat`; a halving record is valid only for the same values."""
    return {"device": str(jax.devices()[0].device_kind), "remat": cfg.training.remat}


def with_validation_oom_error(validate: Validate) -> Validate:
    """Return `validate`, wrapped to raise a ConfigError if the validation runs out of device memory."""

    def validate_or_raise(params: Any) -> dict[str, float]:
        message = "evaluation.val_trajectories: the validation does not fit into the device's memory; lower this key"
        with raise_on_oom(ConfigError(message)):
            return validate(params)

    return validate_or_raise
