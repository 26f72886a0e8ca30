"""Fields, lengths, times and coefficients in any unit: the same checks, notes, refusals and standardised values.

A unit is a power of ten from -30 to 30. Numbers are equal up to the rounding of float32 values that are not scaled by a
power of two.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from travelling_waves import DT, SPACING, waves
from written_layouts import write_incompressible, write_well

from ups_jax.core.errors import DataError, UserError
from ups_jax.data import from_arrays
from ups_jax.data.inspection import inspect
from ups_jax.data.sources import Grid, MemorySource, open_file
from ups_jax.data.sources.concatenated import ConcatenatedSource
from ups_jax.data.sources.fixed_points import SteadyStateSource
from ups_jax.data.sources.point_trajectories import PointTrajectory, stack_trajectories
from ups_jax.data.statistics import nonzero_std
from ups_jax.models.conditioning import ConditionEmbedding, Conditions, standardize

# The powers of ten of a field, a length, a time and a coefficient.
POWER = st.integers(-30, 30)
EXTREMES = [(-30, -30, -30, -30), (30, 30, 30, 30), (30, -30, 30, -30), (0, 0, 0, -30), (19, 0, 0, 0), (-9, 5, -10, -6)]
FIELDS, SPEEDS = waves(trajectories=24)
VISCOSITIES = np.linspace(0.3, 1.2, 24)
HEAT = 0.1 * np.arange(9)[:, None] / 8


def any_unit(test: Callable) -> Callable:
    """Run a test with the argument `units`, four powers of ten: all extremes and some random ones."""
    for units in EXTREMES:
        test = example(units=units)(test)
    return settings(max_examples=6, deadline=None)(given(units=st.tuples(POWER, POWER, POWER, POWER))(test))


@pytest.fixture(scope="module")
def make_configuration(tmp_path_factory):
    """The fixture `configure` for tests that hypothesis calls several times."""
    from ups_jax import config

    root = str(tmp_path_factory.mktemp("units"))
    return lambda **task: config.from_dict(
        {"data": {"root": root, "tasks": [{"name": "waves", **task}]}, "training": {"batch_size": 8}}
    )


def opened(make_configuration, fields, units, numbers=None, **task):
    """Return the dataset of fields in other units."""
    field, length, time, coefficient = (10.0**power for power in units)
    values = {name: coefficient * item for name, item in (numbers or {}).items()}
    return from_arrays(make_configuration(**task), field * fields, time * DT, values, (-length,), (length * SPACING,))


def outcome(*args, **task):
    """Return what opening data in some units says: its notes, or the class of the error and the keys that it names."""
    try:
        return opened(*args, **task).notes
    except UserError as error:
        return type(error), re.findall(r"`([^`]*)`", str(error))


@pytest.fixture(scope="module")
def expected_outcomes():
    """The outcome of each case in the unit 1, computed once."""
    return {}


CASES = {
    "waves": (FIELDS, {}),
    "waves with declared properties": (FIELDS, {"periodic": ["x"], "conserved": ["u"]}),
    "conserved, heated": (FIELDS + HEAT, {"conserved": ["u"]}),
    "ramps, periodic": (0.1 * FIELDS + np.linspace(0, 4, 32) * (1 + HEAT), {"periodic": ["x"]}),
    "symmetric": (FIELDS, {"periodic": ["x"], "symmetries": [{"negate": ["u"]}], "coefficients": {"c": "linear"}}),
    "not symmetric": (FIELDS, {"periodic": ["x"], "symmetries": [{"reflect": ["x"]}], "coefficients": {"c": "log10"}}),
    "noise": (np.random.default_rng(0).normal(size=(24, 9, 32)), {"symmetries": [{"negate": ["u"]}]}),
    "constant": (np.ones((24, 9, 32)), {}),
    "constant in time": (np.tile(FIELDS[:, :1], (1, 9, 1)), {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@any_unit
def test_checks_say_the_same(make_configuration, expected_outcomes, case, units):
    fields, task = CASES[case]
    speeds = {"c": SPEEDS} if "coefficients" in task else None
    if case not in expected_outcomes:
        expected_outcomes[case] = outcome(make_configuration, fields, (0, 0, 0, 0), speeds, **task)
    assert outcome(make_configuration, fields, units, speeds, **task) == expected_outcomes[case]


@pytest.mark.parametrize(
    "case, key",
    [
        ("conserved, heated", "data.tasks.waves.conserved"),
        ("ramps, periodic", "data.tasks.waves.periodic"),
        ("not symmetric", "data.tasks.waves.symmetries.0"),
    ],
)
@pytest.mark.parametrize("offset", [0.0, 26.85, 300.0])
def test_a_temperature_in_kelvin_is_refused_as_one_in_degrees(make_configuration, case, key, offset):
    fields, task = CASES[case]
    speeds = {"c": SPEEDS} if "coefficients" in task else None
    error, names = outcome(make_configuration, offset + fields, (0, 0, 0, 0), speeds, **task)
    assert error is DataError and names[0] == key


@pytest.mark.parametrize("offset", [300.0, 101325.0])
def test_a_conserved_mean_far_from_zero_passes_though_float32_rounds_it(make_configuration, offset):
    # Waves that move by an eighth of a wave between frames, so that their change is no rounding.
    fields = 0.5 * waves(trajectories=24, frames=33)[0][:, ::4]
    task = opened(make_configuration, offset + fields, (0, 0, 0, 0), conserved=["u"], periodic=["x"]).task
    assert task.conserved == (0,)


@any_unit
def test_statistics_scale_with_the_field(make_configuration, units):
    plain, scaled = (opened(make_configuration, FIELDS + 3, item) for item in ((0, 0, 0, 0), units))
    for name in ("mean", "std", "delta_std"):
        expected = getattr(plain.task.statistics, name)[0] * 10.0 ** units[0]
        assert getattr(scaled.task.statistics, name)[0] == pytest.approx(expected, rel=1e-6, abs=0)
    np.testing.assert_allclose(scaled.relative_change, plain.relative_change, rtol=1e-5)


@pytest.mark.parametrize("scale", ["linear", "log10"])
@any_unit
def test_standardised_coefficients_do_not_depend_on_the_unit(make_configuration, scale, units):
    def standardised(units):
        dataset = opened(make_configuration, FIELDS, units, {"nu": VISCOSITIES}, coefficients={"nu": scale})
        return np.asarray(standardize(jnp.asarray(dataset.conditions[:, 0]), dataset.task.coefficients[0]))

    expected = standardised((0, 0, 0, 0))
    assert expected.std() > 0.9 and np.ptp(expected) > 3
    np.testing.assert_allclose(standardised(units), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", ["linear", "log10"])
@pytest.mark.parametrize("k", [-30, 0, 30])
def test_the_model_receives_the_same_conditions(make_configuration, scale, k):
    def embedding(units):
        dataset = opened(make_configuration, FIELDS, units, {"nu": VISCOSITIES}, coefficients={"nu": scale})
        task, mask = dataset.task, np.ones((24, 1), np.float32)
        # A missing value is stored as 0.
        mask[3] = 0
        cond = Conditions(
            dt=jnp.full(24, task.dt), coefficients=jnp.asarray(dataset.conditions * mask), mask=jnp.asarray(mask)
        )
        model = ConditionEmbedding(task)
        parameters = jax.tree.map(jnp.ones_like, model.init(jax.random.key(0), cond))
        return np.asarray(jax.jit(model.apply)(parameters, cond))

    values = embedding((0, 0, k, k))
    assert np.isfinite(values).all()
    np.testing.assert_allclose(values, embedding((0, 0, 0, 0)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("k", [-30, -6, 0, 30])
def test_a_coefficient_that_training_never_varied_is_unit_free_elsewhere(make_configuration, k):
    dataset = opened(make_configuration, FIELDS, (0, 0, 0, k), {"nu": np.full(24, 0.4)}, coefficients={"nu": "linear"})
    elsewhere = jnp.asarray([0.4, 0.6], jnp.float32) * np.float32(10.0**k)
    values = standardize(elsewhere, dataset.task.coefficients[0])
    np.testing.assert_allclose(values, [0.0, 0.5], atol=1e-6)


def test_a_constant_field_has_a_scale_of_its_own_size():
    mean, std = np.array([3e-30, 0.0, 2.0, 2.0]), np.array([1e-37, 0.0, 0.5, 1e-9])
    np.testing.assert_array_equal(nonzero_std(mean, std), [3e-30, 1.0, 0.5, 2.0])


@pytest.mark.parametrize("value", [1e-50, 1e40, -1e39, np.inf])
def test_a_coefficient_that_float32_cannot_store_is_refused(make_configuration, value):
    nu = np.where(np.arange(24) == 7, value, VISCOSITIES)
    with pytest.raises(DataError, match=r"\bnu\b.*trajectory 7"):
        opened(make_configuration, FIELDS, (0, 0, 0, 0), {"nu": nu}, coefficients={"nu": "linear"})


def test_a_missing_value_does_not_move_the_number_of_a_trajectory_in_messages(make_configuration):
    nu = VISCOSITIES.copy()
    nu[[0, 1]], nu[7] = np.nan, -1.0
    with pytest.raises(DataError, match=r"log10.*-1.*trajectory 7,"):
        opened(make_configuration, FIELDS, (0, 0, 0, 0), {"nu": nu}, coefficients={"nu": "log10"})


def source_from(origin: float, spacing: float, dt: float) -> MemorySource:
    grid = Grid(shape=(32,), origin=(origin,), spacing=(spacing,), start=0.0, dt=dt)
    return MemorySource(name=f"from {origin:g}", grid=grid, fields=FIELDS[..., None])


@any_unit
def test_files_of_another_grid_or_time_step_are_not_joined(units):
    length, dt = 10.0 ** units[1], DT * 10.0 ** units[2]
    step = SPACING * length
    first = source_from(-length, step, dt)
    assert ConcatenatedSource((first, source_from(-length + 1e-5 * step, step, dt))).trajectories == 48
    for other in (
        (-length + step / 2, step, dt),
        (49 * length, step, dt),
        (-length, 2 * step, dt),
        (-length, step, 3 * dt),
    ):
        with pytest.raises(DataError, match=r"same grid and times"):
            ConcatenatedSource((first, source_from(*other)))


@any_unit
def test_points_with_other_times_are_not_stacked(units):
    generator, dt = np.random.default_rng(0), 10.0 ** units[2]
    positions = 10.0 ** units[1] * generator.uniform(size=(30, 2))

    def trajectory(times):
        return PointTrajectory(name="a", positions=positions, fields={"u": generator.normal(size=(6, 30))}, times=times)

    times = dt * np.arange(6)
    assert stack_trajectories(
        "all", [trajectory(times), trajectory(times * (1 + 1e-9))], None
    ).grid.dt == pytest.approx(dt)
    for other in (3 * times, times + 0.1 * dt):
        with pytest.raises(DataError, match="times"):
            stack_trajectories("all", [trajectory(times), trajectory(other)], None)


@pytest.mark.parametrize("k", [-30, -10, 0, 30])
def test_the_times_of_all_trajectories_of_a_file_are_compared(tmp_path, k):
    for name, dataset, write in (("w", "dimensions/time", write_well), ("i", "t", write_incompressible)):
        write(path := tmp_path / f"{name}.hdf5")
        with h5py.File(path, "a") as file:
            times = file[dataset][:] * np.float32(10.0**k)
            file[dataset][:] = times
        assert open_file(path, "transient").grid.dt == pytest.approx(float(times[0, 1]), rel=1e-6)
        with h5py.File(path, "a") as file:
            file[dataset][-1] = 2 * times[-1]
        with pytest.raises(DataError, match=f"`{dataset}`:? differs between trajectories"):
            open_file(path, "transient")


@any_unit
def test_fixed_points_are_those_of_other_units(units):
    decay = np.exp(-np.arange(9.0))[:, None]
    unit = 10.0 ** units[0]

    def read(fields):
        source = replace(source_from(0.0, 1.0, 1.0), fields=(unit * fields)[..., None].astype(np.float32))
        return SteadyStateSource(source, ("u",), 1e-2).read(np.arange(24), np.zeros((24, 1), int))

    start, end = FIELDS[:, :1], FIELDS[:, 4:5]
    np.testing.assert_allclose(
        read(end + decay * (start - end))[:, 0, :, 0],
        unit * (end + decay[-1] * (start - end))[:, 0],
        rtol=1e-6,
        atol=1e-6 * unit,
    )
    with pytest.raises(DataError, match="steady_tolerance"):
        read(FIELDS)


@pytest.mark.parametrize("k", [-30, 0, 30])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_hints_of_an_inspection_do_not_depend_on_unit_and_offset(write, k, offset):
    unit = 10.0**k
    hints = [
        inspect(write(unit * (offset + fields), f"{n}.hdf5")).hints for n, fields in enumerate((FIELDS, FIELDS + HEAT))
    ]
    assert any("conserved" in hint for hint in hints[0]) and any("periodic" in hint for hint in hints[0])
    assert not any("conserved" in hint for hint in hints[1])


def test_no_hint_is_drawn_from_fields_without_content(write):
    broken = FIELDS.copy()
    broken[:, 3] = np.nan
    for fields in (broken, np.full_like(FIELDS, 7.0), 7e4 + 1e-3 * FIELDS):
        assert not any("conserved" in hint for hint in inspect(write(fields)).hints)
