"""A step's profile: which part an operation is of, and that its time is counted once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from ups_jax.models.batch import Batch
from ups_jax.trainer.profile import part_and_direction, profile_step, scope_paths_by_instruction, self_times
from ups_jax.training.state import create_train_state
from ups_jax.training.step import TrainStep


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("jit(s)/jvp()/while/body/closed_call/Model/Model.f/core/Block_2/local/dot", ("core/Block/local", "forward")),
        ("jit(s)/transpose(jvp(Model))/core/Block_2/local/conv", ("core/Block/local", "backward")),
        ("jit(s)/transpose(jvp())/Model/Model.operate/core/Block_0/dot_general", ("core/Block", "backward")),
        ("jit(s)/Model/Model.operate/core/jit(silu)/mul", ("core", "forward")),
        ("jit(s)/transpose(jvp(eval_jaxpr))/Model/core/Block_1/dot_general", ("core/Block", "backward")),
        ("jit(s)/jvp(jit(_normal))/mul", ("loss and feeding", "forward")),
        ("jit(s)/optimizer/dot_general", ("optimizer", "-")),
        ("jit(s)/add", ("rest of the step", "-")),
        ("", ("rest of the step", "-")),
    ],
)  # fmt: skip
def test_a_part_is_the_modules_and_scopes_of_a_path(path: str, expected: tuple[str, str]) -> None:
    assert part_and_direction(path, 3) == expected


def test_an_operation_does_not_count_what_runs_inside_it() -> None:
    lines = [("loop", 0.0, 100.0), ("dot", 10.0, 30.0), ("add", 40.0, 20.0), ("after", 100.0, 5.0), ("dot", 60.0, 10.0)]
    assert sorted(self_times(lines)) == [("add", 20.0), ("after", 5.0), ("dot", 10.0), ("dot", 30.0), ("loop", 40.0)]


def test_a_fusion_has_the_path_of_what_it_computes() -> None:
    hlo = "\n".join(
        [
            "%fused.1 (p: f32[2]) -> f32[2] {",
            '  %a = f32[2] sine(%p), metadata={op_name="jit(f)/first/sin"}',
            '  ROOT %b = f32[2] tanh(%a), metadata={op_name="jit(f)/second/tanh"}',
            "}",
            "ENTRY %main (p: f32[2]) -> f32[2] {",
            "  ROOT %fusion.7 = f32[2] fusion(%p), kind=kLoop, calls=%fused.1",
            "}",
        ]
    )
    assert scope_paths_by_instruction(hlo)["fusion.7"] == "jit(f)/second/tanh"


def test_the_profile_of_a_step_names_its_scopes_and_counts_its_steps(tmp_path: Path) -> None:
    def step(state: Any, batch: Batch, parents: Any) -> tuple[Any, Any]:
        def loss(weights: Any) -> Any:
            with jax.named_scope("layer"):
                return jnp.sum(jnp.tanh(batch.inputs @ weights) ** 2)

        value, gradient = jax.value_and_grad(loss)(state.params)
        with jax.named_scope("optimizer"):
            params = state.params - 0.1 * jnp.linalg.matrix_power(gradient, 3)
            return replace(state, params=params), {"loss": value}

    state = create_train_state(jnp.ones((64, 64)), optax.identity(), jax.random.key(0))
    batches = iter(lambda: Batch(inputs=jnp.ones((64, 64))), None)
    result = profile_step(TrainStep(jax.jit(step), {}), state, batches, tmp_path, steps=3)
    parts = {(part.part, part.direction): part for part in result.parts}
    assert {("layer", "forward"), ("layer", "backward"), ("optimizer", "-")} <= parts.keys()
    assert parts["optimizer", "-"].operations >= 2
    assert sum(part.share for part in result.parts) == pytest.approx(1)
    assert result.trace.is_file() and (result.trace.parent / "perfetto_trace.json.gz").is_file()
