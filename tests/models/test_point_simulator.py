"""A simulator of points: persistence untrained, whatever the order of the points and whatever fills a row up."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from point_tasks import conditions, example, still_task, swarm_task

from ups_jax.config import LatentConfig, OperatorConfig, PdetConfig, SpectralConfig
from ups_jax.models import LatentState, PointSimulator, step
from ups_jax.models.points.node_pooling import gather_from_nodes, node_grid, scatter_to_nodes, spline_weights

LATENT = LatentConfig(dim=6, nodes=16)
CORES = {
    "spectral": OperatorConfig(spectral=SpectralConfig(hidden_dim=8, depth=1, modes=3)),
    "pdet_stack": OperatorConfig(architecture_type="pdet_stack", pdet=PdetConfig(hidden_dim=16, num_heads=2, depth=1)),
}
TASKS = {"still": still_task, "swarm": swarm_task}
CONTEXT = 2


@functools.cache
def model_and_params(task, core="spectral"):
    """A model, fresh parameters, and such as are far from those of the start, which would let nothing through."""
    model = PointSimulator(task, LATENT, CORES[core], CONTEXT)
    fields, cond = example(task, context=CONTEXT)
    params = jax.device_get(jax.jit(model.init)(jax.random.key(0), fields, cond)["params"])
    rng = np.random.default_rng(1)
    return model, params, jax.tree.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32), params)


@functools.cache
def compiled(model):
    """The step."""
    return jax.jit(lambda params, fields, cond: step(model, params, fields, cond))


@pytest.mark.parametrize(("kind", "core"), [("still", "spectral"), ("swarm", "spectral"), ("still", "pdet_stack")])
def test_untrained_step_is_persistence_and_a_moved_one_is_not(kind: str, core: str) -> None:
    task = TASKS[kind]()
    model, fresh, moved = model_and_params(task, core)
    fields, cond = example(task, context=CONTEXT)
    assert np.array_equal(compiled(model)(fresh, fields, cond), fields[:, -1])
    assert np.abs(compiled(model)(moved, fields, cond) - fields[:, -1]).max() > 0.1


@pytest.mark.parametrize("kind", TASKS)
def test_points_in_another_order_give_the_same_points_in_that_order(kind: str) -> None:
    task = TASKS[kind]()
    model, _, params = model_and_params(task)
    fields, cond = example(task, context=CONTEXT)
    order = np.random.default_rng(5).permutation(task.num_points)
    geometry = cond.geometry
    shuffled = jax.tree.map(lambda x: x[:, order], geometry)
    other = compiled(model)(params, fields[:, :, order], conditions(task, None, geometry=shuffled, like=cond))
    np.testing.assert_allclose(other, compiled(model)(params, fields, cond)[:, order], atol=2e-5)
    encode = jax.jit(functools.partial(model.apply, method="encode"))
    tokens = [
        encode({"params": params}, values, where)
        for values, where in (
            (fields, cond),
            (fields[:, :, order], conditions(task, None, geometry=shuffled, like=cond)),
        )
    ]
    np.testing.assert_allclose(tokens[1], tokens[0], atol=2e-5)


@pytest.mark.parametrize("kind", TASKS)
def test_a_point_that_is_not_there_has_no_influence_and_does_not_change(kind: str) -> None:
    task = TASKS[kind]()
    model, _, params = model_and_params(task)
    fields, cond = example(task, context=CONTEXT)
    mask = np.ones((2, task.num_points), np.float32)
    mask[0, 7:], mask[1, 3] = 0, 0
    geometry = cond.geometry.__class__(coords=cond.geometry.coords, mask=jnp.asarray(mask), inputs=cond.geometry.inputs)
    masked = conditions(task, None, geometry=geometry, like=cond)
    there = mask > 0
    first = np.asarray(compiled(model)(params, fields, masked))
    disturbed = jnp.where(there[:, None, :, None], fields, 100.0 + fields)
    coords = jnp.where(there[..., None], geometry.coords, 0.3) if geometry.coords.shape[-1] else geometry.coords
    other = geometry.__class__(
        coords=coords, mask=geometry.mask, inputs=jnp.where(there[..., None], geometry.inputs, 9.0)
    )
    second = np.asarray(compiled(model)(params, disturbed, conditions(task, None, geometry=other, like=cond)))
    np.testing.assert_allclose(second[there], first[there], atol=1e-6)
    assert np.array_equal(second[~there], np.asarray(disturbed)[:, -1][~there])
    # It had one while it was there.
    assert np.abs(np.asarray(compiled(model)(params, fields, cond))[there] - first[there]).max() > 1e-3


def test_a_periodic_box_has_no_seam() -> None:
    task = swarm_task()
    model, _, params = model_and_params(task)
    fields, cond = example(task, context=CONTEXT)
    std = np.asarray(task.statistics.std, np.float32)
    lap = np.zeros(len(std), np.float32)
    lap[list(task.moving)] = np.asarray(task.box) / std[list(task.moving)]
    once_round = fields + lap * np.asarray([1.0, -2.0], np.float32)[:, None, None, None]
    shifted = compiled(model)(params, once_round, cond) - once_round[:, -1]
    np.testing.assert_allclose(shifted, compiled(model)(params, fields, cond) - fields[:, -1], atol=2e-4)


def test_kernels_hand_over_constants_and_the_slope_that_a_message_has() -> None:
    nodes = node_grid(36, (0.0, -1.0), (1.0, 1.0), (False, True))
    assert nodes.shape == (6, 6)
    rng = np.random.default_rng(0)
    coords = jnp.asarray(rng.uniform([0.0, -1.0], [1.0, 0.0], (1, 400, 2)), jnp.float32)
    line = np.broadcast_to(np.arange(6.0, dtype=np.float32)[None, :, None, None], (1, 6, 6, 1))

    @jax.jit
    def handed_over(coords, said, line):
        weights = spline_weights(nodes, coords, jnp.ones((1, 400)))
        means, density = scatter_to_nodes(weights, said)
        return means, density, gather_from_nodes(weights, means[..., :1]), gather_from_nodes(weights, line)

    means, density, back, gathered = handed_over(coords, np.full((1, 400, 1), 3.0, np.float32), line)
    np.testing.assert_allclose(means[..., 0], 3.0, rtol=1e-5)
    # Every point's weights add up to one, but for what falls beyond the walls.
    assert 0.9 * 400 < float(density.sum()) < 400
    np.testing.assert_allclose(back[..., 0], 3.0, rtol=1e-5)
    # The second moment of the spline is 1/4: a linear field's tilted copy is its slope times that.
    inside = (np.asarray(coords[0, :, 0]) > 0.3) & (np.asarray(coords[0, :, 0]) < 0.7)
    gathered = np.asarray(gathered)[0, inside]
    np.testing.assert_allclose(gathered[:, 0], np.asarray(coords[0, inside, 0]) * 6 - 0.5, atol=1e-5)


def test_many_points_in_blocks_are_the_same_sums_and_gradients() -> None:
    nodes = node_grid(9, (0.0, 0.0), (1.0, 1.0), (False, True))
    rng = np.random.default_rng(0)
    coords, said, mask = (
        rng.random((2, 25, 2)).astype(np.float32),
        rng.normal(size=(2, 25, 3)).astype(np.float32),
        (rng.random((2, 25)) > 0.3).astype(np.float32),
    )

    @functools.partial(jax.jit, static_argnames="block")
    def values_and_slopes(said, block):
        weights = spline_weights(nodes, jnp.asarray(coords), jnp.asarray(mask))

        def loss(said):
            means, density = scatter_to_nodes(weights, said, block)
            gathered = gather_from_nodes(weights, jnp.concatenate([means, density], -1), block)
            return jnp.sum(gathered**2), gathered

        slopes, gathered = jax.grad(loss, has_aux=True)(said)
        return gathered, slopes

    (values, slopes), (other_values, other_slopes) = (values_and_slopes(said, block) for block in (8, 25))
    np.testing.assert_allclose(values, other_values, atol=1e-5)
    np.testing.assert_allclose(slopes, other_slopes, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("box", "shape"), [((1.0,), (9,)), ((4.0, 1.0), (6, 3)), ((1.0, 1.0, 1.0), (3, 3, 3))])
def test_nodes_are_as_many_as_wanted_and_evenly_spaced(box: tuple[float, ...], shape: tuple[int, ...]) -> None:
    assert node_grid(9, (0.0,) * len(box), box, (True,) * len(box)).shape == shape


def test_three_axes() -> None:
    task = still_task(axes=3)
    model, fresh, moved = model_and_params(task)
    fields, cond = example(task, context=CONTEXT)
    assert np.array_equal(compiled(model)(fresh, fields, cond), fields[:, -1])
    assert np.isfinite(compiled(model)(moved, fields, cond)).all()


def test_any_points_are_decoded_and_the_own_ones_as_the_step_has_them() -> None:
    task = still_task()
    model, fresh, params = model_and_params(task)
    fields, cond = example(task, context=CONTEXT)

    @jax.jit
    def at(weights, query):
        def both(module):
            state = LatentState(z=module.encode(fields, cond), t=jnp.zeros(2), cond=cond)
            return module.decode(module.operate(state).z, fields, cond, query)

        return model.apply({"params": weights}, method=both)

    where = cond.geometry.coords
    np.testing.assert_allclose(at(params, where), compiled(model)(params, fields, cond), atol=1e-3)
    between = 0.5 * (where[:, :1] + where[:, 1:2])
    assert at(params, between).shape == (2, 1, 1)
    # Untrained it is the field as it was, between the values of the points.
    plain = np.asarray(at(fresh, between))
    newest = np.asarray(fields[:, -1])
    assert ((newest.min(1) < plain[:, 0]) & (plain[:, 0] < newest.max(1))).all()
    near = np.asarray(at(fresh, where + 1e-3))
    np.testing.assert_allclose(near, newest, atol=0.05)


def test_particles_have_no_field_elsewhere() -> None:
    task = swarm_task()
    model, params, _ = model_and_params(task)
    fields, cond = example(task, context=CONTEXT)
    with pytest.raises(ValueError, match="move"):
        model.apply({"params": params}, jnp.zeros((2, 18, 8)), fields, cond, jnp.zeros((2, 3, 2)), method="decode")
