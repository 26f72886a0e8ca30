"""Memory that runs out: the micro-batch is halved, and the same optimizer step is done again.

Where the failed step took the state with it, whoever trains starts from the newest checkpoint; what it then does again
is the same to round-off.
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
from ups_jax.runs.directory import now
from ups_jax.training.gradients import group_size
from ups_jax.training.multi_step import Batches
from ups_jax.training.stages.spec import Validate
from ups_jax.training.state import TrainState
from ups_jax.training.step import Metrics, TrainStep

T = TypeVar("T")


class StateLost(RuntimeError):
    """Memory ran out while a step had the buffers of the only state there was."""


class FittingStep:
    """A train step in as many micro-batches as the device's memory needs: more of them each time that it runs out.

    `make(micro_batches=n)` returns the step of `rows` rows in that many groups, compiled `ahead` of its first call.
    `halved(rows of a group, groups)` is called at every change, `compiled(seconds)` with the seconds that all
    compilations have taken so far.
    """

    def __init__(
        self,
        make: Callable[..., TrainStep],
        rows: int,
        micro_batches: int,
        *,
        key: str,
        ahead: bool = True,
        halved: Callable[[int, int], None] = lambda rows, groups: None,
        compiled: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._make, self._rows, self._key = make, rows, key
        self._groups = micro_batches
        self._step = make(micro_batches=micro_batches)
        self._ahead, self._known = ahead, set[Any]()
        self._halved, self._compiled = halved, compiled
        self.compile_seconds = 0.0

    def __call__(self, state: TrainState, batch: Batch | Batches) -> tuple[TrainState, Metrics]:
        """The step; raises `StateLost` where it has to be done again from another state, ConfigError where one row does
        not fit."""
        while True:
            try:
                # A batch of another task is of another structure, and its step another program.
                if self._ahead and (structure := jax.tree.structure(batch)) not in self._known:
                    self.compile_seconds += compile_ahead(self._step, state, batch)
                    self._known.add(structure)
                    self._compiled(self.compile_seconds)
                return self._step(state, batch)
            except jax.errors.JaxRuntimeError as error:
                self.halve(error)
            # Outside of the handler, whose error holds on to what the failed step had allocated.
            if is_lost(state):
                raise StateLost

    def halve(self, error: jax.errors.JaxRuntimeError) -> None:
        """Take half of the rows at a time from now on; `error` itself is raised where it is about something else."""
        if not is_out_of_memory(error):
            raise error
        if jax.process_count() > 1:
            # The others know nothing of it, and one step cannot be two programs.
            raise ConfigError(
                f"{self._key}: memory ran out in process {jax.process_index()}; "
                "lower it and raise accum_steps, the step is the same"
            ) from None
        size = group_size(self._rows, self._groups)
        if size == 1:
            raise row_too_large(self._key) from None
        self._groups = -(-self._rows // -(-size // 2))
        self._step = self._make(micro_batches=self._groups)
        self._known.clear()
        self._halved(group_size(self._rows, self._groups), self._groups)

    def run_with_retry(self, call: Callable[[], T]) -> T:
        """`call()`, and again from its beginning each time that memory ran out and took the state with it.

        An error of a step that was dispatched may arrive anywhere, wherever its numbers are read.
        """
        while True:
            try:
                return call()
            except StateLost:
                pass
            except jax.errors.JaxRuntimeError as error:
                self.halve(error)


def batch_key(stage: str) -> str:
    """The key that says how many rows of a stage are in memory at a time."""
    return f"stages.{stage}.batch_size"


def row_too_large(key: str) -> ConfigError:
    """What to say where there is nothing left to halve."""
    return ConfigError(
        f"{key}: the device's memory does not hold a training step of one row; set training.remat=full, "
        "training.precision=bf16, a smaller model or a shorter rollout_horizon"
    )


@contextmanager
def memory_for(refusal: ConfigError) -> Iterator[None]:
    """`refusal` where memory runs out inside; every other error is itself."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise refusal from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of the runtime is about memory."""
    text = str(error)
    return "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()


def takes_fewer_rows(error: Exception) -> bool:
    """Whether `FittingStep.carried_through` answers an error by beginning again with half of the rows."""
    return isinstance(error, StateLost) or (isinstance(error, jax.errors.JaxRuntimeError) and is_out_of_memory(error))


def is_lost(state: Any) -> bool:
    """Whether a failed step has used up buffers of its state, or what they hold never came about."""
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


Halving = dict[str, Any]


def halving(cfg: Config, rows: int, groups: int) -> Halving:
    """The entry of a step that is done in `groups` micro-batches of `rows` rows from now on."""
    return {"micro_batch": rows, "accum_steps": groups, "time": now()} | _where(cfg)


def micro_batches(cfg: Config, stage: str, entries: Sequence[Halving]) -> int:
    """How many micro-batches a step starts with: the stage's `accum_steps`, or those of the last entry that counts
    where they are more."""
    known = [entry["accum_steps"] for entry in entries if _where(cfg).items() <= entry.items()]
    return max([getattr(cfg.stages, stage).accum_steps, *known[-1:]])


def sizes(cfg: Config, stage: str, groups: int) -> str:
    """`groups` micro-batches of a stage's step in words."""
    return f"{groups} micro-batches of {group_size(windows_per_step(cfg, stage), groups)} rows a step"


def _where(cfg: Config) -> dict[str, str]:
    return {"device": str(jax.devices()[0].device_kind), "remat": cfg.training.remat}


def fitting_validation(validate: Validate) -> Validate:
    """`validate`, with a ConfigError where it does not fit into the device's memory."""

    def checked(params: Any) -> dict[str, float]:
        refusal = "evaluation.val_trajectories: their rollouts do not fit into the device's memory at once; lower it"
        with memory_for(ConfigError(refusal)):
            return validate(params)

    return checked
