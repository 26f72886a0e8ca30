"""A trained model as a function: derivatives in float64, transformations of JAX, and what it refuses."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from commands import CONFIGS
from point_tasks import still_task

from ups_jax import TrainedModel, load_run
from ups_jax.config import Config, load
from ups_jax.core.errors import DataError
from ups_jax.core.task import Coefficient, Input, Statistics, Task
from ups_jax.runs.best_weights import Weights
from ups_jax.training.build import abstract_state, build_joint_model

STEPS = 3
SMALL = ["operator.spectral.hidden_dim=8", "operator.spectral.depth=1", "latent.dim=4", "latent.nodes=9"]


@dataclass(frozen=True)
class Case:
    """A model with the arguments of its rollout, in float64."""

    model: TrainedModel
    u0: np.ndarray
    params: dict[str, float]
    input_fields: Any = None
    task: str | None = None

    def rollout(self, u0: Any = None, value: Any = None, weights: Any = None, steps: int = STEPS) -> Any:
        """The frames, for another state, first coefficient or weights."""
        name = next(iter(self.params))
        params = self.params | ({} if value is None else {name: value})
        u0 = self.u0 if u0 is None else u0
        return self.model.rollout(u0, steps, params, self.input_fields, weights, task=self.task)

    def step(self, u: Any, value: Any) -> Any:
        """One step at another first coefficient."""
        return self.model.step(u, self.params | {next(iter(self.params)): value}, self.input_fields, task=self.task)


def grid_task(name: str = "waves", points: int = 12, axes: tuple[str, ...] = ("x",), **changes: Any) -> Task:
    count = len(axes)
    task = Task(
        name=name, channels=("u",), axes=axes, shape=(points,) * count, origin=(0.0,) * count,
        spacing=(1 / points,) * count, periodic=(True,) * count, dt=0.1,
        coefficients=(Coefficient(name="nu", scale="log10", mean=-1.0, std=0.5),),
        statistics=Statistics(mean=(0.3,), std=(2.0,), delta_std=(0.5,)), **changes,
    )  # fmt: skip
    return task


def model_on(tasks: tuple[Task, ...], stage: str = "operator", seed: int = 0) -> TrainedModel:
    """A model of small random parameters, as if it had been trained."""
    cfg = load(CONFIGS / ("tiny_steady.yaml" if stage == "steady_prior" else "tiny.yaml"), SMALL)
    rng = np.random.default_rng(seed)

    def drawn(path: Any, leaf: Any) -> jax.Array:
        # About the size of a dense layer's initial values.
        size = 1 / np.sqrt(np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.1
        around = 1.0 if "scale" in jax.tree_util.keystr(path[-1:]) else 0.0
        return jnp.asarray((around + size * rng.normal(size=leaf.shape)).astype(np.float32))

    params = jax.tree_util.tree_map_with_path(drawn, abstract_state(cfg, tasks, stage).params)
    weights = Weights(
        params=params, weights=params, digest="", step=0, config=cfg, tasks=tasks,
        fingerprint="+".join(task.name for task in tasks),
    )  # fmt: skip
    return TrainedModel(path=Path(), stage=stage, checkpoint=weights, models=build_joint_model(cfg, tasks, stage))


def fields(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape)


@functools.cache
def grid() -> Case:
    return Case(model_on((grid_task(),)), fields(2, 12, 1), {"nu": 0.1})


@functools.cache
def steady() -> Case:
    task = grid_task("plate", 6, ("x", "y"), kind="steady", inputs=(Input(name="a", std=2.0),))
    return Case(model_on((task,), "steady_prior"), fields(2, 6, 6, 1), {"nu": 0.1})


@functools.cache
def points() -> Case:
    task = still_task()
    places = {"coords": np.random.default_rng(2).random((11, 2)), "inputs": fields(11, 1)}
    return Case(model_on((task,)), fields(2, 11, 1), {"kappa": 0.4}, places)


@functools.cache
def two_tasks() -> Case:
    shared: dict[str, Any] = {"siblings": ("waves", "plane"), "dt_unit": 0.1}
    tasks = (grid_task(**shared), grid_task("plane", 8, ("x", "y"), **shared))
    return Case(model_on(tasks), fields(2, 8, 8, 1), {"nu": 0.1}, task="plane")


CASES: dict[str, Callable[[], Case]] = {"grid": grid, "steady": steady, "points": points, "two tasks": two_tasks}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


@pytest.fixture
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def loss(frames: Any) -> Any:
    """A number that every frame and point has another part in."""
    return (frames * jnp.asarray(np.random.default_rng(5).normal(size=frames.shape), frames.dtype)).sum()


@pytest.mark.usefixtures("x64")
def test_derivatives_of_a_rollout_are_finite_differences(case: Case) -> None:
    inputs = (
        case.u0.astype(np.float64),
        np.float64(next(iter(case.params.values()))),
        jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), case.model.weights),
    )
    slopes = jax.jit(jax.value_and_grad(lambda *of: loss(case.rollout(*of)), argnums=(0, 1, 2)))
    gradients = slopes(*inputs)[1]
    rng = np.random.default_rng(3)
    for number, (start, gradient) in enumerate(zip(inputs, gradients, strict=True)):
        way = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), start)
        # In float64 the error of the quotient is 1e-12 in its step squared and 1e-16 over it.
        size = 1e-5
        ends = [
            slopes(*inputs[:number], jax.tree.map(lambda a, b: a + sign * size * b, start, way), *inputs[number + 1 :])  # noqa: B023
            for sign in (1, -1)
        ]
        expected = (float(ends[0][0]) - float(ends[1][0])) / (2 * size)
        derivative = sum(jax.tree.leaves(jax.tree.map(lambda a, b: np.sum(np.asarray(a) * b), gradient, way)))
        assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(gradient))
        assert abs(expected) > 1e-6
        np.testing.assert_allclose(derivative, expected, rtol=1e-3)


@pytest.mark.usefixtures("x64")
def test_float64_goes_in_and_out_and_float32_stays(case: Case) -> None:
    wide = case.rollout()
    assert isinstance(wide, np.ndarray) and wide.dtype == np.float64
    narrow = replace(case, u0=case.u0.astype(np.float32))
    if case.input_fields is not None:
        narrow = replace(narrow, input_fields={k: v.astype(np.float32) for k, v in case.input_fields.items()})
    frames = narrow.rollout()
    assert frames.dtype == np.float32
    assert jax.eval_shape(narrow.rollout, jnp.asarray(narrow.u0)).dtype == jnp.float32
    # Round-off of float32, and of nothing else.
    np.testing.assert_allclose(frames, wide, atol=1e-4 * np.abs(wide).max())
    assert np.abs(frames - wide).max() > 0


@pytest.mark.usefixtures("x64")
def test_a_map_over_coefficients_is_a_loop(case: Case) -> None:
    values = jnp.asarray([0.05, 0.2, 0.7])
    mapped = jax.vmap(lambda value: case.rollout(value=value))(values)
    looped = jnp.stack([jnp.asarray(case.rollout(value=float(value))) for value in values])
    assert np.abs(mapped[0] - mapped[1]).max() > 1e-6
    np.testing.assert_allclose(mapped, looped, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("x64")
def test_a_scan_over_steps_is_the_rollout_and_jit_changes_nothing(case: Case) -> None:
    value = jnp.asarray(next(iter(case.params.values())))
    steady = case.model.for_task(case.task).task.kind == "steady"
    named = replace(case, input_fields=case.u0) if steady else case
    start = jnp.zeros_like(jnp.asarray(case.u0)) if steady else jnp.asarray(case.u0)

    def one(u: Any, _: None) -> tuple[Any, Any]:
        u = named.step(u, value)
        return u, u

    scanned = jnp.moveaxis(jax.lax.scan(one, start, None, length=STEPS)[1], 0, 1)
    eager = named.rollout(start, value)
    jitted = jax.jit(lambda u, value: named.rollout(u, value))(start, value)
    for frames in (scanned, jitted, case.rollout()):
        np.testing.assert_allclose(frames, eager, rtol=1e-9, atol=1e-9)
    assert isinstance(eager, jax.Array) and isinstance(case.rollout(), np.ndarray)


def test_input_fields_of_another_kind_are_refused() -> None:
    plate, cloud = steady(), points()
    with pytest.raises(DataError, match="input_fields"):
        plate.model.step(None, plate.params)
    with pytest.raises(DataError, match="input_fields"):
        plate.model.step(None, plate.params, {"inputs": plate.u0})
    with pytest.raises(DataError, match="input_fields"):
        cloud.model.step(cloud.u0, cloud.params, cloud.u0)


@pytest.mark.usefixtures("x64")
def test_numpy_arguments_may_be_constants_of_a_jitted_function(case: Case) -> None:
    value = next(iter(case.params.values()))

    def total(scale: Any) -> Any:
        return jnp.sum(scale * case.rollout()) + jnp.sum(case.step(case.u0, value))

    expected = 2 * np.sum(case.rollout()) + np.sum(case.step(case.u0, value))
    np.testing.assert_allclose(jax.jit(total)(2.0), expected, rtol=1e-3)


@pytest.mark.usefixtures("x64")
def test_weights_are_a_tree_that_is_taken_back(case: Case) -> None:
    weights = case.model.weights
    np.testing.assert_array_equal(case.rollout(weights=weights), case.rollout())
    other = jax.tree.map(lambda leaf: 1.1 * leaf, weights)
    assert np.abs(case.rollout(weights=other) - case.rollout()).max() > 0
    first = next(iter(weights))
    for wrong in ({first: weights[first]}, weights | {"more": jnp.zeros(1)}, {}):
        with pytest.raises(DataError):
            case.rollout(weights=wrong)


def test_concrete_values_that_cannot_be_are_refused_and_traced_ones_pass(case: Case) -> None:
    bad = case.u0.copy()
    bad.flat[0] = np.nan
    name, coefficient = next(iter(case.params)), case.model.for_task(case.task).task.coefficients[0]
    impossible = [np.nan, np.inf, *([-1.0] if coefficient.scale == "log10" else [])]
    for start in (bad, jnp.asarray(bad, jnp.float32)):
        with pytest.raises(DataError):
            case.rollout(start)
    for value in impossible:
        with pytest.raises(DataError):
            case.rollout(value=value)
        assert jax.eval_shape(lambda value: case.rollout(value=value), value).shape[1] == STEPS
    assert np.isnan(jax.jit(case.rollout)(bad.astype(np.float32))).any()
    # Shapes are known of traced arrays too.
    for arguments in ((case.u0[..., :0], 0.1), (case.u0, np.full(3, 0.1))):
        with pytest.raises(DataError):
            jax.eval_shape(lambda u, value: case.rollout(u, value), *arguments)
    with pytest.raises(DataError):
        case.model.rollout(case.u0, 2, {name: 0.1, "other": 1.0}, case.input_fields, task=case.task)


@pytest.mark.usefixtures("x64")
def test_a_task_is_named_or_the_only_one() -> None:
    several, single = two_tasks(), grid()
    for call in (several.model.rollout, single.model.rollout):
        with pytest.raises(DataError):
            call(several.u0, 2, several.params, task="other")
    for missing in (lambda: several.model.task, several.model.for_task, lambda: several.model.model):
        with pytest.raises(DataError, match="waves, plane"):
            missing()
    alone = several.model.for_task("plane")
    assert alone.task.name == "plane" and single.model.for_task("waves") is single.model
    np.testing.assert_array_equal(alone.rollout(several.u0, STEPS, several.params), several.rollout())


@pytest.mark.usefixtures("x64")
def test_former_names_warn_once() -> None:
    plate, cloud = steady(), points()
    with pytest.warns(DeprecationWarning) as warned:
        solved = plate.model.solve(plate.u0, plate.params)
        cloud.model.rollout(cloud.u0, 1, cloud.params, places=cloud.input_fields)
    assert len(warned) == 2
    np.testing.assert_array_equal(solved, plate.model.step(plate.u0, plate.params))


@pytest.mark.usefixtures("x64")
def test_a_steady_state_stays_and_needs_no_state() -> None:
    plate = steady()
    frames = plate.rollout(steps=2)
    np.testing.assert_array_equal(frames[:, 0], frames[:, 1])
    np.testing.assert_array_equal(plate.model.step(None, plate.params, plate.u0), frames[:, 0])
    with pytest.raises(DataError):
        plate.model.step(plate.u0[:, :3], plate.params, plate.u0)


def test_a_saved_run_is_restored_without_the_state_of_its_optimizer(
    saved_run: Path, tiny: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Any] = []
    restore = ocp.CheckpointManager.restore
    monkeypatch.setattr(
        ocp.CheckpointManager, "restore", lambda *of, **named: read.append(restore(*of, **named)) or read[-1]
    )
    model = load_run(saved_run)
    (state,) = (restored["state"] for restored in read if restored.get("state") is not None)
    assert state.keys() == {"step", "params", "ema"}
    # The gradient that started this: once a TracerArrayConversionError.
    u0 = fields(1, 64, 1).astype(np.float32)
    gradient = jax.grad(lambda u: model.rollout(u, 2, {"nu": 0.01}).sum())(u0)
    assert gradient.shape == u0.shape and np.isfinite(gradient).all()
