"""Boundary conditions: zero where a field meets them, on walls alone, in one dimension as in two."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ups_jax import losses

# Compiled whole: operation by operation most of the time would go into compiling each.
boundary = jax.jit(losses.boundary, static_argnames=("spacing", "periodic", "condition", "sides", "location"))

WALLS, TORUS = (False, False), (True, True)
STEP = (1 / 7, 1 / 7)


def square() -> tuple[np.ndarray, np.ndarray]:
    x, y = np.meshgrid(np.linspace(0, 1, 8), np.linspace(0, 1, 8), indexing="ij")
    return x, y


def fields(values: np.ndarray) -> jax.Array:
    return jnp.asarray(values[None, ..., None], jnp.float32)


def test_dirichlet_is_zero_on_a_field_that_has_the_value_and_one_on_ones() -> None:
    x, y = square()
    assert boundary(fields(x * (1 - x) * y * (1 - y)), STEP, WALLS) < 1e-12
    np.testing.assert_allclose(boundary(fields(np.ones((8, 8))), STEP, WALLS), 1.0)
    assert boundary(fields(np.full((8, 8), 2.5)), STEP, WALLS, value=2.5) == 0


def test_a_corner_counts_once() -> None:
    corner = np.zeros((4, 4))
    corner[0, 0] = 1.0
    # 12 points lie on the walls of a 4 x 4 grid.
    np.testing.assert_allclose(boundary(fields(corner), STEP, WALLS), 1 / 12, rtol=1e-6)


def test_in_one_dimension_the_walls_are_the_two_ends() -> None:
    line = fields(np.array([2.0, 7.0, 7.0, 7.0, 4.0]))
    np.testing.assert_allclose(boundary(line, (0.1,), (False,)), (4 + 16) / 2)
    np.testing.assert_allclose(boundary(line, (0.1,), (False,), sides="left"), 4)
    np.testing.assert_allclose(boundary(line, (0.1,), (False,), sides="right"), 16)
    gradient = jax.grad(lambda u: boundary(u, (0.1,), (False,)))(line)
    np.testing.assert_array_equal(gradient[0, 1:-1], 0)
    with pytest.raises(ValueError, match=r"'top'.*left, right"):
        boundary(line, (0.1,), (False,), sides="top")


def test_a_side_is_the_end_of_its_axis() -> None:
    ends = {"left": (0, 0), "right": (0, -1), "bottom": (1, 0), "top": (1, -1), "front": (2, 0), "back": (2, -1)}
    for side, (axis, end) in ends.items():
        cube = np.zeros((3, 4, 5))
        np.moveaxis(cube, axis, 0)[end] = 3.0
        np.testing.assert_allclose(boundary(fields(cube), (1.0,) * 3, (False,) * 3, sides=side), 9.0)


def test_axes_that_wrap_have_no_walls() -> None:
    x, y = square()
    channel = fields(np.sin(2 * np.pi * x) + y * (1 - y) * 0)
    # Only the ends of y are walls; those of x hold 0 as well as any other value.
    expected = (np.sin(2 * np.pi * np.linspace(0, 1, 8)) ** 2).mean()
    np.testing.assert_allclose(boundary(channel, STEP, (True, False)), expected, rtol=1e-5)
    for condition in ("dirichlet", "neumann"):
        with pytest.raises(ValueError, match="periodic"):
            boundary(channel, STEP, TORUS, condition=condition)
    with pytest.raises(ValueError, match="left"):
        boundary(channel, STEP, (True, False), sides="left")


def test_neumann_is_of_the_outward_slope() -> None:
    x, y = square()
    still = fields(np.cos(0 * x) + (x - 0.5) ** 2 * 0)
    assert boundary(still, STEP, WALLS, condition="neumann") == 0
    # u = x^2 - y: outward slopes 0 (left), 2 (right), 1 (bottom), -1 (top); parabolas are met exactly.
    sloped = fields(x**2 - y)
    for side, slope in (("left", 0.0), ("right", 2.0), ("bottom", 1.0), ("top", -1.0)):
        value = boundary(sloped, STEP, WALLS, condition="neumann", value=slope, sides=side)
        assert value < 1e-9
    np.testing.assert_allclose(boundary(sloped, STEP, WALLS, condition="neumann"), (0 + 4 + 1 + 1) / 4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"axis 0.*2"):
        boundary(jnp.zeros((1, 2, 1)), (1.0,), (False,), condition="neumann")


def test_at_cell_centres_the_condition_holds_on_the_wall() -> None:
    centres = (np.arange(8) + 0.5) / 8
    x, y = np.meshgrid(centres, centres, indexing="ij")
    step = (1 / 8, 1 / 8)
    # Parabolas are extrapolated exactly: 0 on every wall, and outward slope -1 there.
    parabola = fields(x * (1 - x))
    assert boundary(parabola, step, (False, True), location="cells") < 1e-12
    assert boundary(parabola, step, (False, True)) > 1e-3
    slope = {"condition": "neumann", "value": -1.0}
    assert boundary(parabola, step, (False, True), location="cells", **slope) < 1e-9
    assert boundary(parabola, step, (False, True), **slope) > 1e-3
    both = jnp.concatenate([fields(x**2 - y), fields(2 * y)], -1)
    values = {"left": [-0.5, 1.0], "bottom": [1 / 3, 0.0], "top": [-2 / 3, 2.0]}
    along = {"left": (-y[0], 2 * y[0]), "bottom": (x[:, 0] ** 2, 0 * x[:, 0]), "top": (x[:, 0] ** 2 - 1, 2 + 0 * y[0])}
    for side, value in values.items():
        expected = np.mean([(u - v) ** 2 for u, v in zip(along[side], value, strict=True)])
        result = boundary(both, step, WALLS, value=value, sides=side, location="cells")
        np.testing.assert_allclose(result, expected, rtol=1e-4)
    with pytest.raises(ValueError, match=r"axis 0.*2"):
        boundary(jnp.zeros((1, 2, 1)), (1.0,), (False,), location="cells")


def test_the_periodic_condition_holds_on_a_periodic_field() -> None:
    closed = np.sin(2 * np.pi * np.linspace(0, 1, 33))
    assert boundary(fields(closed), (1 / 32,), (False,), condition="periodic") < 1e-10
    # A grid that is flagged as periodic leaves the second end out: whatever it holds is periodic.
    assert boundary(fields(closed[:-1]), (1 / 32,), (True,), condition="periodic") == 0
    jump = boundary(fields(np.linspace(0, 3, 33)), (1 / 32,), (False,), condition="periodic")
    np.testing.assert_allclose(jump, 9.0, rtol=1e-6)


def test_an_unknown_condition_is_refused() -> None:
    with pytest.raises(Exception, match="condition"):
        boundary(jnp.zeros((1, 4, 1)), (1.0,), (False,), condition="robin")  # type: ignore[arg-type]
