"""Loss terms do not depend on the units of fields and lengths, and a target at rest does not dominate them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ups_jax import losses
from ups_jax.config import PhysicsPriorsConfig, TrainingConfig
from ups_jax.core.errors import ConfigError
from ups_jax.core.task import LossScales, Statistics, Task
from ups_jax.losses.boundary import find_walls, point_location
from ups_jax.losses.terms import RESTING, field_terms, prior_terms
from ups_jax.losses.weights import PHYSICS_TERMS, checked_weights

SHAPE = (8, 6)
MEAN, STD = (300.0, -2.0), (0.5, 3.0)
FIELD_TERMS = ("relative", "relative_mse", "h1", "spectral", "spectral_low", "spectral_mid")
RNG = np.random.default_rng(5)
PRED, TRUTH = RNG.normal(size=(2, 3, *SHAPE, 2)).astype(np.float32)


def task_in_units(field: float = 1.0, length: float = 1.0) -> Task:
    """A task between walls along x, whose fields and lengths are multiplied by the two numbers."""
    return Task(
        name="any", channels=("a", "b"), axes=("x", "y"), shape=SHAPE, origin=(0.05 * length, 0.0),
        spacing=(0.1 * length, 0.3 * length), periodic=(False, True), dt=1.0,
        statistics=Statistics(
            mean=tuple(field * m for m in MEAN), std=tuple(field * s for s in STD), delta_std=(field, field)
        ),
        loss_scales=LossScales(mean=(0.0, 0.0), std=(1.0, 1.0), square=1.0, gradient=40.0, bands=(0.9, 0.1, 0.0)),
    )  # fmt: skip


def all_terms(task: Task, condition: str, value: float) -> dict[str, Any]:
    priors = PhysicsPriorsConfig(velocity=("b", "a"), bc_condition=condition, bc_value=value)  # type: ignore[arg-type]
    pred, truth = jnp.asarray(PRED), jnp.asarray(TRUTH)
    fields = field_terms(FIELD_TERMS, pred, truth, task)
    return fields | prior_terms(PHYSICS_TERMS, pred, truth, task, priors)


@pytest.mark.parametrize("condition", ["dirichlet", "neumann", "periodic"])
def test_no_term_depends_on_the_unit_of_fields_or_lengths(condition: str) -> None:
    slope = condition == "neumann"
    reference = all_terms(task_in_units(), condition, 299.0)
    assert all((np.asarray(values) > 0).all() for name, values in reference.items() if name != "positivity")
    for field, length in ((-30, 30), (30, -30), (19, 5), (-9, 0), (0, -9)):
        value = 299.0 * 10.0 ** (field - length if slope else field)
        terms = all_terms(task_in_units(10.0**field, 10.0**length), condition, value)
        for name, values in terms.items():
            np.testing.assert_allclose(values, reference[name], rtol=1e-5, err_msg=f"{name} {field} {length}")


def test_priors_are_in_deviations_of_the_training_fields_and_lengths_of_the_domain() -> None:
    task, pred, start = task_in_units(), jnp.asarray(PRED), jnp.asarray(TRUTH)
    length = np.sqrt(0.8 * 1.8)
    spacing = (0.1 / length, 0.3 / length)
    priors = PhysicsPriorsConfig(bc_value=299.0, boundary_channels=("a",))
    terms = prior_terms(PHYSICS_TERMS[1:], pred, start, task, priors)
    unit = {"reduction": "none"}
    expected = {
        # About the training mean: an offset of 300 does not hide the change of the mean.
        "conservation": losses.conservation(pred, start, **unit),
        "boundary": losses.boundary(
            pred[..., :1], spacing, task.periodic, value=(299.0 - 300.0) / 0.5, location="cells", **unit
        ),
        "positivity": losses.positivity(pred + np.asarray([600.0, -2 / 3], np.float32).reshape(1, 1, 1, 2), **unit),
        "smoothness": losses.smoothness(pred, spacing, task.periodic, **unit),
    }
    assert expected.keys() == terms.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(terms[name], values, rtol=1e-5, err_msg=name)


def test_the_units_are_those_of_the_training_fields_whatever_normalises_them() -> None:
    priors = PhysicsPriorsConfig(velocity=("b", "a"), bc_value=299.0)
    by_deviation = task_in_units()
    # Fields that are not normalised: the scales hold what the statistics do not.
    raw = replace(
        by_deviation,
        statistics=Statistics(mean=(0.0, 0.0), std=(1.0, 1.0), delta_std=(1.0, 1.0)),
        loss_scales=replace(by_deviation.loss_scales, mean=MEAN, std=STD),
    )
    physical = [jnp.asarray(x * np.asarray(STD, np.float32) + np.asarray(MEAN, np.float32)) for x in (PRED, TRUTH)]
    expected = prior_terms(PHYSICS_TERMS, jnp.asarray(PRED), jnp.asarray(TRUTH), by_deviation, priors)
    for name, values in prior_terms(PHYSICS_TERMS, *physical, raw, priors).items():
        # 300 in float32 resolves 1e-4 of a deviation.
        np.testing.assert_allclose(values, expected[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_a_task_recorded_without_scales_keeps_its_physical_units_and_constant_floors() -> None:
    task = replace(task_in_units(), loss_scales=None)
    values = task.to_dict()
    del values["loss_scales"]
    assert Task.from_dict(json.loads(json.dumps(values))) == task
    scaled = task_in_units()
    assert Task.from_dict(json.loads(json.dumps(scaled.to_dict()))) == scaled
    pred, truth = jnp.asarray(PRED), jnp.asarray(TRUTH)
    physical, start = (x * np.asarray(STD, np.float32) + np.asarray(MEAN, np.float32) for x in (PRED, TRUTH))
    terms = prior_terms(PHYSICS_TERMS[1:], pred, truth, task, PhysicsPriorsConfig(bc_value=299.0))
    expected = {
        "conservation": losses.conservation(physical, start, reduction="none"),
        "boundary": losses.boundary(physical, task.spacing, task.periodic, value=299.0, reduction="none"),
        "positivity": losses.positivity(physical, reduction="none"),
        "smoothness": losses.smoothness(physical, task.spacing, task.periodic, reduction="none"),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(terms[name], values, rtol=1e-4, err_msg=name)


def test_h1_does_not_depend_on_the_unit_of_length() -> None:
    pred, truth = jnp.asarray(PRED[..., :1]), jnp.asarray(TRUTH[..., :1])
    values = [
        losses.h1(pred, truth, (0.1 * unit, 0.3 * unit), (True, False), reduction="none")
        for unit in (1.0, 1e-30, 1e5, 1e30)
    ]
    for other in values[1:]:
        np.testing.assert_allclose(other, values[0], rtol=1e-6)


def test_a_target_at_rest_is_divided_by_the_floor_and_any_other_to_the_bit_by_itself() -> None:
    task = task_in_units()
    truth, error = jnp.asarray(TRUTH), 0.1 * jnp.asarray(PRED)
    resting = truth.at[0].multiply(1e-4)
    floored = field_terms(FIELD_TERMS, resting + error, resting, task)
    constant = field_terms(FIELD_TERMS, resting + error, resting, replace(task, loss_scales=None))
    for name in FIELD_TERMS:
        np.testing.assert_array_equal(floored[name][1:], constant[name][1:], err_msg=name)
        assert floored[name][0] < 0.1 * constant[name][0], name
    # Relative to a tenth of the training scale, the root of the floor.
    square = np.mean(np.asarray(error[0]) ** 2)
    np.testing.assert_allclose(floored["relative"][0], np.sqrt(square / RESTING), rtol=1e-5)
    gradient = jax.grad(lambda pred: field_terms(("h1",), pred, 0 * truth, task)["h1"].sum())(error)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() < 10


def test_the_walls_of_a_grid_follow_from_its_first_coordinate() -> None:
    walls = find_walls((False,), "all")
    assert point_location(walls, (0.0,), (0.02,)) == "nodes"
    assert point_location(walls, (1 / 128,), (1 / 64,)) == "cells"
    # Nodes or cells, depending on where the domain begins.
    assert point_location(walls, (-1.0,), (0.02,)) is None
    assert point_location(walls, (-1.0,), (2 / 63,)) is None
    assert point_location(walls, (0.5,), (1 / 63,)) is None
    assert point_location(walls, (1e30 / 128,), (1e30 / 64,)) == "cells"
    assert point_location(walls, (0.3,), (0.07,)) is None
    # A mixture of both kinds cannot be told from a shifted grid; a periodic axis has no walls and does not count.
    assert point_location(find_walls((False, False), "all"), (0.0, 0.5), (1.0, 1.0)) is None
    assert point_location(find_walls((False, True), "all"), (0.0, 0.5), (1.0, 1.0)) == "nodes"


def test_a_grid_whose_walls_are_unclear_needs_the_key() -> None:
    task = replace(task_in_units(), origin=(0.03, 0.0))
    config = TrainingConfig(physics_priors=PhysicsPriorsConfig(lambda_boundary=1.0))
    with pytest.raises(ConfigError, match=r"training\.physics_priors\.bc_points"):
        checked_weights(config, task)
    for location in ("nodes", "cells"):
        priors = PhysicsPriorsConfig(lambda_boundary=1.0, bc_points=location)  # type: ignore[arg-type]
        assert "boundary" in checked_weights(replace(config, physics_priors=priors), task)
