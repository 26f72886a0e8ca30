"""A declared fact that the data break is refused by name, one that they keep is not; others are pointed out."""

from __future__ import annotations

import numpy as np
import pytest
from travelling_waves import DT, SPACING, waves

from ups_jax.core.errors import ConfigError, DataError
from ups_jax.data import from_arrays


def opened(configure, fields, values=None, **task):
    return from_arrays(configure(**task), fields, DT, values, (-1.0,), (SPACING,))


def shocks(trajectories=20, frames=9, points=32):
    """Sawtooth waves whose jump lies between two points, anywhere on the circle."""
    rng = np.random.default_rng(3)
    x, t = -1 + SPACING * np.arange(points), DT * np.arange(frames)
    start, speed = rng.uniform(-1, 1, (2, trajectories, 1, 1))
    return np.mod(x - start - speed * t[:, None] + 1, 2) - 1


def ramps():
    """Fields that rise along the axis: smooth inside, with a jump over the ends."""
    x = -1 + SPACING * np.arange(32)
    return waves()[0] * 0.1 + 2 * x * (1 + 0.1 * np.arange(9)[:, None])


@pytest.mark.parametrize("fields", [waves()[0], shocks()], ids=["waves", "shocks"])
def test_periodic_fields_pass(configure, fields):
    assert opened(configure, fields, periodic=["x"]).task.periodic == (True,)


def test_a_jump_over_the_ends_is_not_periodic(configure):
    with pytest.raises(DataError, match=r"axis x.*data\.tasks\.waves\.periodic"):
        opened(configure, ramps(), periodic=["x"])


@pytest.mark.parametrize("points", [1, 2])
def test_an_axis_of_few_points_gets_no_hint(configure, points):
    fields = waves()[0][..., None] * (1 + np.arange(points))
    data = from_arrays(configure(periodic=["x"]), fields, DT, origin=(0.0, 0.0), spacing=(1.0, 1.0))
    assert not any("periodic" in note for note in data.notes)


def test_a_grid_that_holds_both_ends_is_not_periodic(configure):
    fields = waves()[0]
    with pytest.raises(DataError, match="axis x"):
        opened(configure, np.concatenate([fields, fields[..., :1]], axis=-1), periodic=["x"])


def test_one_periodic_axis_of_two(configure):
    fields = waves()[0][:, :, :, None] + np.arange(16.0)
    cfg = configure(periodic=["x"])
    task = from_arrays(cfg, fields, DT, origin=(0.0, 0.0), spacing=(1.0, 1.0)).task
    assert task.axes == ("x", "y") and task.periodic == (True, False)
    with pytest.raises(DataError, match="axis y"):
        from_arrays(configure(periodic=["x", "y"]), fields, DT, origin=(0.0, 0.0), spacing=(1.0, 1.0))


def test_conserved_means_are_checked(configure):
    fields = waves()[0]
    assert opened(configure, fields, conserved=["u"]).task.conserved == (0,)
    growing = fields + 0.01 * np.arange(9)[:, None]
    with pytest.raises(DataError, match=r"\bu\b.*conserved.*0\.0\d+"):
        opened(configure, growing, conserved=["u"])


def test_undeclared_facts_are_pointed_out_with_the_line_to_write(configure):
    notes = "\n".join(opened(configure, waves()[0]).notes)
    assert "data.tasks.waves.periodic=[x]" in notes and "data.tasks.waves.conserved=[u]" in notes
    assert opened(configure, waves()[0], periodic=["x"], conserved=["u"]).notes == ()
    notes = "\n".join(opened(configure, ramps() + np.arange(9)[:, None]).notes)
    assert "periodic" not in notes and "conserved" not in notes


@pytest.mark.parametrize("with_speed", [True, False])
def test_advection_may_change_sign_but_not_direction(configure, with_speed):
    fields, beta = waves(trajectories=40, points=64)
    properties = dict(coefficients={"beta": "linear"}, periodic=["x"]) if with_speed else dict(periodic=["x"])
    speeds = {"beta": beta} if with_speed else None
    task = opened(configure, fields, speeds, symmetries=[{"negate": ["u"]}], **properties).task
    assert task.symmetries[0].negate == (0,)
    for broken in ({"reflect": ["x"]}, {"reflect": ["x"], "negate": ["u"]}):
        with pytest.raises(DataError, match=r"data\.tasks\.waves\.symmetries\.1"):
            opened(configure, fields, speeds, symmetries=[{"negate": ["u"]}, broken], **properties)


def test_burgers_mirrors_with_its_sign(configure):
    # A Burgers step by upwind-free central differences: enough of its law for the mirror to matter.
    fields = [waves(trajectories=40, frames=1)[0][:, 0] * 0.5]
    for _ in range(60):
        u = fields[-1]
        east, west = np.roll(u, -1, -1), np.roll(u, 1, -1)
        fields.append(u + 0.02 * (-(east**2 - west**2) / (4 * SPACING) + 0.1 * (east - 2 * u + west) / SPACING**2))
    fields = np.stack(fields[::3], axis=1)
    opened(configure, fields, periodic=["x"], symmetries=[{"reflect": ["x"], "negate": ["u"]}])
    for broken in ({"reflect": ["x"]}, {"negate": ["u"]}):
        with pytest.raises(DataError, match=r"data\.tasks\.waves\.symmetries\.0"):
            opened(configure, fields, periodic=["x"], symmetries=[broken])


def test_a_symmetry_that_cannot_be_tried_is_said(configure):
    noise = np.random.default_rng(0).normal(size=(12, 9, 32))
    notes = opened(configure, noise, symmetries=[{"negate": ["u"]}]).notes
    assert any("symmetries" in note for note in notes)


def spreading(shape=(16, 16), anisotropy=1.0):
    """Heat that spreads over a periodic plane, along the second axis `anisotropy` times as fast."""
    frames = [np.random.default_rng(5).normal(size=(24, *shape))]
    for _ in range(8):
        u = frames[-1]
        second = [np.roll(u, 1, axis) + np.roll(u, -1, axis) - 2 * u for axis in (1, 2)]
        frames.append(u + 0.1 * (second[0] + anisotropy * second[1]))
    return np.stack(frames, axis=1)


def on_plane(configure, fields, spacing=(1.0, 1.0), **task):
    return from_arrays(configure(symmetries=[{"swap": ["x", "y"]}], **task), fields, DT, None, (0.0, 0.0), spacing)


def test_a_swap_of_axes_has_to_be_one_of_the_data(configure):
    assert on_plane(configure, spreading(), periodic=["x", "y"]).task.symmetries[0].swap == (0, 1)
    with pytest.raises(DataError, match=r"data\.tasks\.waves\.symmetries\.0"):
        on_plane(configure, spreading(anisotropy=0.1), periodic=["x", "y"])


@pytest.mark.parametrize(
    "fields, declared",
    [
        (spreading(shape=(16, 12)), dict(periodic=["x", "y"])),
        (spreading(), dict(periodic=["x", "y"], spacing=(1e-13, 2e-13))),
        (spreading(), dict(periodic=["x"])),
    ],
)
def test_only_axes_that_are_alike_are_swapped(configure, fields, declared):
    with pytest.raises(ConfigError, match=r"symmetries\.0\.swap`"):
        on_plane(configure, fields, **declared)


@pytest.mark.parametrize(
    "task, key",
    [
        (dict(periodic=["y"]), "data.tasks.waves.periodic"),
        (dict(conserved=["w"]), "data.tasks.waves.conserved"),
        (dict(symmetries=[{"reflect": ["z"]}]), "data.tasks.waves.symmetries.0.reflect"),
        (dict(symmetries=[{}]), "data.tasks.waves.symmetries.0"),
        (dict(symmetries=[{"swap": ["x"]}]), "data.tasks.waves.symmetries.0.swap"),
        (dict(symmetries=[{"swap_channels": ["u", "u"]}]), "data.tasks.waves.symmetries.0.swap_channels"),
    ],
)
def test_names_that_do_not_exist_are_configuration_errors(configure, task, key):
    with pytest.raises(ConfigError, match=f"`{key}`"):
        opened(configure, waves()[0], **task)
