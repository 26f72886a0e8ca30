"""Messages between points, and learned queries in the place of nodes: what holds for every simulator of points."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from point_tasks import conditions, example, still_task, swarm_task

from ups_jax.config import LatentConfig, OperatorConfig, PdetConfig, SpectralConfig
from ups_jax.models import Geometry, LatentState, PointSimulator, step
from ups_jax.models.points import simulator as simulators

SPECTRAL = OperatorConfig(spectral=SpectralConfig(hidden_dim=8, depth=1, modes=2))
STACK = OperatorConfig(architecture_type="pdet_stack", pdet=PdetConfig(hidden_dim=16, num_heads=2, depth=1))
OPTIONS = {
    "neighbours": (LatentConfig(dim=6, nodes=9, neighbours=4, rounds=2), SPECTRAL),
    "radius": (LatentConfig(dim=6, nodes=9, neighbours=6, radius=0.4, rounds=2), SPECTRAL),
    "queries": (LatentConfig(dim=6, nodes=9, pooling="queries"), STACK),
    "both": (LatentConfig(dim=6, nodes=9, pooling="queries", neighbours=4), STACK),
}
TASKS = {"still": still_task(), "swarm": swarm_task(), "volume": still_task(axes=3)}
EVERY = [("still", "radius"), ("still", "queries"), ("swarm", "neighbours"), ("swarm", "both"), ("volume", "both")]
CONTEXT = 2


@functools.cache
def made(kind: str, option: str, remat: bool = False) -> tuple[Any, Any, Any]:
    """A model, fresh parameters, and such as are far from those of the start, which would let nothing through."""
    latent, operator = OPTIONS[option]
    model = PointSimulator(TASKS[kind], latent, operator, CONTEXT, remat=remat)
    params = jax.device_get(jax.jit(model.init)(jax.random.key(0), *example(TASKS[kind], context=CONTEXT))["params"])
    rng = np.random.default_rng(1)
    moved = jax.tree.map(lambda leaf: leaf + 0.2 * rng.normal(size=leaf.shape).astype(np.float32), params)
    return model, params, moved


@functools.cache
def step_and_slopes(model: Any) -> Any:
    """A step, and the gradient by the parameters of the sum of its squares: one program."""

    def loss(params: Any, fields: Any, cond: Any) -> Any:
        after = step(model, params, fields, cond)
        return jnp.square(after).sum(), after

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def compiled(model: Any) -> Any:
    return lambda *arguments: np.asarray(step_and_slopes(model)(*arguments)[0][1])


@pytest.mark.parametrize(("kind", "option"), EVERY)
def test_an_untrained_step_is_persistence_and_every_parameter_is_heard_later(kind: str, option: str) -> None:
    model, fresh, moved = made(kind, option)
    fields, cond = example(TASKS[kind], context=CONTEXT)
    assert np.array_equal(compiled(model)(fresh, fields, cond), fields[:, -1])
    slopes = step_and_slopes(model)(moved, fields, cond)[1]
    silent = {
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(slopes)
        if not (np.isfinite(leaf).all() and np.abs(leaf).max() > 1e-7)
    }
    # There is one time step, and a softmax does not hear what all scores have in common.
    assert silent <= {"['condition']['others']['kernel']"} | {name for name in silent if "key']['bias']" in name}


@pytest.mark.parametrize(("kind", "option"), EVERY)
def test_points_in_another_order_give_the_same_points_in_that_order(kind: str, option: str) -> None:
    model, _, params = made(kind, option)
    fields, cond = example(TASKS[kind], context=CONTEXT)
    order = np.random.default_rng(5).permutation(TASKS[kind].num_points)
    shuffled = conditions(TASKS[kind], None, geometry=jax.tree.map(lambda x: x[:, order], cond.geometry), like=cond)
    plain = compiled(model)(params, fields, cond)
    np.testing.assert_allclose(compiled(model)(params, fields[:, :, order], shuffled), plain[:, order], atol=5e-5)
    assert np.abs(plain - fields[:, -1]).max() > 0.1


@pytest.mark.parametrize(("kind", "option"), EVERY)
def test_a_point_that_is_not_there_is_never_heard(kind: str, option: str) -> None:
    task = TASKS[kind]
    model, _, params = made(kind, option)
    fields, cond = example(task, context=CONTEXT)
    mask = np.ones((2, task.num_points), np.float32)
    mask[0, 7:], mask[1, 3] = 0, 0
    there = mask > 0

    def stepped(fields: Any, coords: Any, inputs: Any, mask: Any = mask) -> Any:
        geometry = Geometry(coords=coords, mask=jnp.asarray(mask), inputs=inputs)
        return np.asarray(compiled(model)(params, fields, conditions(task, None, geometry=geometry, like=cond)))

    geometry = cond.geometry
    first = stepped(fields, geometry.coords, geometry.inputs)
    other = jnp.where(there[:, None, :, None], fields, 100.0 + fields)
    coords = jnp.where(there[..., None], geometry.coords, 0.3) if geometry.coords.shape[-1] else geometry.coords
    second = stepped(other, coords, jnp.where(there[..., None], geometry.inputs, 9.0))
    np.testing.assert_array_equal(second[there], first[there])
    np.testing.assert_array_equal(second[~there], np.asarray(other)[:, -1][~there])
    # It was, while it was there.
    assert (
        np.abs(stepped(fields, geometry.coords, geometry.inputs, np.ones_like(mask))[there] - first[there]).max() > 1e-3
    )


@pytest.mark.parametrize("option", ["neighbours", "both"])
def test_a_periodic_box_has_no_seam(option: str) -> None:
    task = TASKS["swarm"]
    model, _, params = made("swarm", option)
    fields, cond = example(task, context=CONTEXT)
    std = np.asarray(task.statistics.std, np.float32)
    lap = np.zeros(len(std), np.float32)
    lap[list(task.moving)] = np.asarray(task.box) / std[list(task.moving)]
    # Some points have gone round more often than others.
    laps = np.random.default_rng(0).integers(-2, 3, (2, 1, task.num_points, 1))
    shifted = fields + jnp.asarray(laps * lap, jnp.float32)
    change = compiled(model)(params, shifted, cond) - shifted[:, -1]
    np.testing.assert_allclose(change, compiled(model)(params, fields, cond) - fields[:, -1], atol=5e-4)


@pytest.mark.parametrize("option", ["radius", "queries"])
def test_any_points_are_decoded_and_the_own_ones_as_the_step_has_them(option: str) -> None:
    model, fresh, params = made("still", option)
    fields, cond = example(TASKS["still"], context=CONTEXT)

    @jax.jit
    def at(weights: Any, query: Any) -> Any:
        def both(module: Any) -> Any:
            state = LatentState(z=module.encode(fields, cond), t=jnp.zeros(2), cond=cond)
            return module.decode(module.operate(state).z, fields, cond, query)

        return model.apply({"params": weights}, method=both)

    where = cond.geometry.coords
    np.testing.assert_allclose(at(params, where), compiled(model)(params, fields, cond), atol=1e-3)
    newest = np.asarray(fields[:, -1])
    plain = np.asarray(at(fresh, 0.5 * (where[:, :1] + where[:, 1:2])))
    assert ((newest.min(1) < plain[:, 0]) & (plain[:, 0] < newest.max(1))).all()


@pytest.mark.parametrize("option", ["radius", "queries"])
def test_blocks_that_are_computed_again_change_no_parameter_and_no_value(option: str) -> None:
    fields, cond = example(TASKS["still"], context=CONTEXT)
    results = []
    for remat in (False, True):
        model, fresh, moved = made("still", option, remat=remat)
        results.append((fresh, step_and_slopes(model)(moved, fields, cond)))
    jax.tree.map(np.testing.assert_array_equal, results[0][0], results[1][0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), results[0][1], results[1][1])


def test_neighbours_are_looked_for_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = PointSimulator(TASKS["still"], *OPTIONS["neighbours"], CONTEXT)
    fields, cond = example(TASKS["still"], context=CONTEXT)
    params = jax.eval_shape(model.init, jax.random.key(0), fields, cond)["params"]
    searches: list[int] = []
    search = simulators.nearest_neighbours
    monkeypatch.setattr(simulators, "nearest_neighbours", lambda *arguments: searches.append(1) or search(*arguments))
    jax.eval_shape(lambda params: step(model, params, fields, cond), params)
    assert searches == [1]


def test_without_the_options_there_are_the_parameters_that_there_were() -> None:
    model = PointSimulator(TASKS["still"], LatentConfig(dim=6, nodes=9), SPECTRAL, CONTEXT)
    params = jax.eval_shape(model.init, jax.random.key(0), *example(TASKS["still"], context=CONTEXT))["params"]
    assert params.keys() == {"features", "condition", "core", "entrance", "field_exit"}
