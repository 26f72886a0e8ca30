"""Trajectories of points that come one by one, from formats that are read as a whole, as one source in memory."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Float32

from ups_jax.core.errors import DataError
from ups_jax.data.sources.base import AXES, selected, uniform
from ups_jax.data.sources.in_memory import ScatteredMemory
from ups_jax.data.sources.points import Cloud, Places, corners_of


@dataclass(frozen=True, eq=False, kw_only=True)
class PointTrajectory:
    """Fields (T, P) at `places`: (P, D) of points that rest, (T, P, D) of points that move."""

    name: str
    places: Float[np.ndarray, "*t p d"]
    fields: Mapping[str, Float[np.ndarray, "_ _"]]
    times: Float[np.ndarray, " _"]
    inputs: Mapping[str, Float[np.ndarray, " _"]] = field(default_factory=dict)
    coefficients: Mapping[str, float] = field(default_factory=dict)


def gathered(name: str, trajectories: Sequence[PointTrajectory], names: Sequence[str] | None) -> ScatteredMemory:
    """One source of them all, rows filled up to the largest; the channels `names` of it, or all. Raises `DataError`
    where they differ in more than their points, or hold no numbers of one shape."""
    first = trajectories[0]
    _alike(first, first)
    moves, axes = first.places.ndim == 3, first.places.shape[-1]
    found = (*(AXES[:axes] if moves else ()), *first.fields)
    taken = set(AXES[:axes]) & set(first.fields) if moves else set()
    if taken:
        raise DataError(
            f"{name}: the field {min(taken)} has the name of a position's channel; call it otherwise in the file"
        )
    channels = selected(name, found, names)
    if moves and not set(AXES[:axes]) <= set(channels):
        raise DataError(f"{name}: its points move: name their positions {', '.join(AXES[:axes])} among the channels")
    for item in trajectories:
        _alike(item, first)
    points = max(item.places.shape[-2] for item in trajectories)
    frames = len(first.times)
    fields = np.zeros((len(trajectories), frames, points, len(channels)), np.float32)
    given = np.zeros((len(trajectories), points, len(first.inputs)), np.float32)
    coords = np.zeros((len(trajectories), points, 0 if moves else axes), np.float32)
    mask = np.zeros((len(trajectories), points), np.float32)
    for row, item in enumerate(trajectories):
        size = item.places.shape[-2]
        mask[row, :size] = 1
        for column, channel in enumerate(channels):
            own = item.fields[channel] if channel in item.fields else item.places[..., AXES.index(channel)]
            fields[row, :, :size, column] = own
        for column, key in enumerate(first.inputs):
            given[row, :size, column] = item.inputs[key]
        if not moves:
            coords[row, :size] = item.places
    every = np.concatenate([item.places.reshape(-1, axes) for item in trajectories]).astype(np.float64)
    if not np.isfinite(every).all():
        raise DataError(f"{name}: the places of its points hold NaN or Inf")
    corners = corners_of(name, every)
    times = uniform(first.times, f"{name}: its times", "write frames at even times")
    cloud = Cloud.between(corners, points, times, measured=True, moving=AXES[:axes] if moves else ())
    keys = dict.fromkeys(key for item in trajectories for key in item.coefficients)
    return ScatteredMemory(
        name=name,
        grid=cloud,
        fields=fields,
        coefficients={key: np.array([item.coefficients.get(key, np.nan) for item in trajectories]) for key in keys},
        channel_names=channels,
        input_channels=tuple(first.inputs),
        given=given,
        everywhere=Places(coords=coords, mask=mask),
    )


def flat(places: Float[np.ndarray, "*t p a"]) -> Float[np.ndarray, "*t p d"]:
    """Places without the last axes, along which all points are at 0: formats of three axes hold planes as well."""
    axes = places.shape[-1]
    while axes > 1 and (places[..., axes - 1] == 0).all():
        axes -= 1
    return places[..., :axes]


def components(name: str, values: Float[np.ndarray, "t p *k"], axes: int) -> dict[str, Float32[np.ndarray, "t p"]]:
    """A scalar as it is, of a vector a channel an axis: NAME_x, NAME_y, .. as far as the places have axes."""
    if values.ndim == 2:
        return {name: values.astype(np.float32)}
    if values.shape[-1] not in (axes, len(AXES)) or values[..., axes:].any():
        raise DataError(
            f"{name}: has {values.shape[-1]} components at points of {axes} axes; write each as a field of its own"
        )
    return {f"{name}_{axis}": values[..., i].astype(np.float32) for i, axis in enumerate(AXES[:axes])}


def require(module: str, what: str) -> None:
    """DataError where the extra `mesh` is not installed."""
    if importlib.util.find_spec(module) is None:
        raise DataError(f"{what}: is read with {module}, which is not installed; pip install 'ups_jax[mesh]'")


def _alike(item: PointTrajectory, first: PointTrajectory) -> None:
    where = item.places.shape
    if len(where) not in (2, 3) or not all(where) or where[-1] > len(AXES):
        raise DataError(
            f"{item.name}: has places of shape {where}, they must be (points, axes), or (times, points, axes) where "
            "they move"
        )
    if len(where) != first.places.ndim:
        raise DataError(
            f"{item.name}: its points {'move' if len(where) == 3 else 'rest'}, unlike those of {first.name}"
        )
    if item.times.ndim != 1 or (len(where) == 3 and where[0] != len(item.times)):
        raise DataError(
            f"{item.name}: has times of shape {item.times.shape}, places of {where}; give each frame a time"
        )
    for what, own, other in (
        ("fields", tuple(item.fields), tuple(first.fields)),
        ("given fields", tuple(item.inputs), tuple(first.inputs)),
        ("axes of space", item.places.shape[-1], first.places.shape[-1]),
        ("times", item.times.tolist(), first.times.tolist()),
    ):
        same = len(own) == len(other) and np.allclose(own, other) if what == "times" else own == other
        if not same:
            raise DataError(f"{item.name}: has {what} {own}, {first.name} has {other}; give trajectories alike")
    shape = (len(item.times), item.places.shape[-2])
    for name, values in item.fields.items():
        if values.shape != shape:
            raise DataError(f"{item.name}: field {name} has shape {values.shape}, it must be {shape}: times, points")
