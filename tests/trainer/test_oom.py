"""Memory that runs out in a step: which micro-batches are tried, and what becomes of the state."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax._src import dispatch

from ups_jax.core.errors import ConfigError
from ups_jax.models import Batch
from ups_jax.trainer.oom import OomRetryStep, StateLost, is_out_of_memory, is_state_lost, with_validation_oom_error
from ups_jax.training.state import TrainState, create_train_state

FULL = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4294967296 bytes.")
OTHER = jax.errors.JaxRuntimeError("INVALID_ARGUMENT: shapes differ")


class Device:
    """Steps that fail as long as a group has more than `fits` rows, and what they were asked for."""

    def __init__(self, fits: int, rows: int) -> None:
        self.fits, self.rows = fits, rows
        self.asked: list[int] = []

    def make(self, micro_batches: int) -> Callable[[Any, Any], Any]:
        self.asked.append(micro_batches)

        def step(state: Any, batch: Any) -> Any:
            if -(-self.rows // micro_batches) > self.fits:
                raise FULL
            return replace(state, step=state.step + 1), {}

        return step


def blank() -> TrainState:
    return create_train_state({"w": jax.numpy.ones(2)}, optax.sgd(1.0), jax.random.key(0))


@pytest.mark.parametrize(
    ("rows", "start", "fits", "asked"),
    [(16, 1, 2, [1, 2, 4, 8]), (6, 1, 1, [1, 2, 3, 6]), (12, 3, 2, [3, 6]), (5, 1, 9, [1])],
)
def test_rows_are_halved_until_they_fit_and_stay_so(rows: int, start: int, fits: int, asked: list[int]) -> None:
    device, halvings = Device(fits, rows), []
    step = OomRetryStep(
        device.make, rows, start, config_key="k", ahead_of_time=False, on_halved=lambda *sizes: halvings.append(sizes)
    )
    assert int(step(step(blank(), Batch())[0], Batch())[0].step) == 2
    assert device.asked == asked
    assert halvings == [(-(-rows // groups), groups) for groups in asked[1:]]


def test_one_row_that_does_not_fit_is_one_line_and_another_error_is_itself() -> None:
    step = OomRetryStep(Device(0, 4).make, 4, 1, config_key="stages.operator.batch_size", ahead_of_time=False)
    with pytest.raises(ConfigError, match=r"^stages\.operator\.batch_size.*training\.remat=full") as error:
        step(blank(), Batch())
    assert "\n" not in str(error.value)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT"):
        step.halve_or_raise(OTHER)
    assert is_out_of_memory(FULL) and not is_out_of_memory(OTHER)


def test_a_validation_that_does_not_fit_names_its_own_key() -> None:
    def validate(params: Any) -> dict[str, float]:
        raise FULL

    with pytest.raises(ConfigError, match=r"^evaluation\.val_trajectories"):
        with_validation_oom_error(validate)({})


def test_a_state_is_lost_with_any_of_its_buffers() -> None:
    state = {"a": jax.numpy.ones(3), "b": jax.numpy.ones(2), "c": 1.0}
    assert not is_state_lost(state)
    state["b"].delete()
    assert is_state_lost(state)


class Compiling:
    """Steps that compile only where a group has at most `fits` rows, and those that did."""

    def __init__(self, fits: int, rows: int) -> None:
        self.fits, self.rows = fits, rows
        self.compiled: list[int] = []

    def make(self, micro_batches: int) -> Any:
        device = self

        class Step:
            def lower(self, *_: object) -> Step:
                return self

            def compile(self) -> None:
                if -(-device.rows // micro_batches) > device.fits:
                    raise FULL
                device.compiled.append(micro_batches)

            def __call__(self, state: Any, batch: Any) -> Any:
                return replace(state, step=state.step + 1), {}

        return Step()


def test_rows_are_halved_until_the_step_can_be_compiled_and_the_state_is_kept() -> None:
    device, compile_seconds = Compiling(2, 8), []
    step = OomRetryStep(device.make, 8, 1, config_key="k", on_compiled=lambda seconds: compile_seconds.append(seconds))
    state, _ = step(blank(), Batch())
    assert int(step(state, Batch())[0].step) == 2
    assert device.compiled == [4] and len(compile_seconds) == 1


def test_memory_that_runs_out_where_numbers_are_read_halves_the_rows_and_calls_again() -> None:
    device = Device(8, 8)
    step = OomRetryStep(device.make, 8, 1, config_key="stages.operator.batch_size", ahead_of_time=False)
    failures = iter([FULL, FULL])

    def call() -> str:
        for failure in failures:
            raise failure
        return "done"

    assert step.run_with_retry(call) == "done"
    assert device.asked == [1, 2, 4]
    failures = iter([OTHER])
    with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT"):
        step.run_with_retry(call)
    failures = iter([FULL, FULL])
    with pytest.raises(ConfigError, match="one row"):
        step.run_with_retry(call)
    assert device.asked == [1, 2, 4, 8]


@contextlib.contextmanager
def poisoned(message: str) -> Iterator[jax.Array]:
    """An array that was dispatched and never comes about: what reads it has the error of the program that failed."""

    def fail(_: Any) -> Any:
        raise RuntimeError(message)

    def slow(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 1000, lambda _, x: jnp.sin(x @ x), x)

    def failing(x: jax.Array) -> jax.Array:
        return jax.pure_callback(fail, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    x = jnp.ones((256, 256))
    # A program whose operands are there would run, and fail, in its call.
    first, second = (jax.jit(function).lower(x).compile() for function in (slow, failing))
    yield second(first(x))
    # Else the failure is told once more when the process ends.
    dispatch.runtime_tokens.clear()


def test_a_state_is_lost_whose_buffers_never_came_about_for_want_of_memory() -> None:
    with poisoned("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes.") as array:
        state = replace(blank(), params={"w": array})
        assert not array.is_deleted() and is_state_lost(state)
        device = Device(2, 4)
        step = OomRetryStep(device.make, 4, 1, config_key="k", ahead_of_time=False)
        with pytest.raises(StateLost):
            step(state, Batch())
        # What was halved stays so, and another state goes on.
        assert int(step(blank(), Batch())[0].step) == 1 and device.asked == [1, 2]


def test_a_state_that_failed_for_another_reason_is_an_error() -> None:
    with poisoned("the callback is broken") as array, pytest.raises(jax.errors.JaxRuntimeError, match="is broken"):
        is_state_lost({"w": array})
