"""Trajectories on scattered points, read as a whole from VTK and Zarr files and stacked to one source in memory."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Float32

from ups_jax.core.errors import DataError
from ups_jax.data.sources.base import AXES, same_coordinates, select_channels, start_and_step
from ups_jax.data.sources.in_memory import ScatteredMemorySource
from ups_jax.data.sources.points import PointCloud, PointSet, bounding_box


@dataclass(frozen=True, eq=False, kw_only=True)
class PointTrajectory:
    """One trajectory of fields on scattered points.

    Attributes:
        name: Name of the trajectory in messages: a file or a group.
        positions: Coordinates of fixed points (P, D), or of moving points (T, P, D).
        fields: Values (T, P) by channel name.
        inputs: Input fields (P,) by name, which do not change in time.
    """

    name: str
    positions: Float[np.ndarray, "*t p d"]
    fields: Mapping[str, Float[np.ndarray, "_ _"]]
    times: Float[np.ndarray, " _"]
    inputs: Mapping[str, Float[np.ndarray, " _"]] = field(default_factory=dict)
    coefficients: Mapping[str, float] = field(default_factory=dict)


def stack_trajectories(
    name: str, trajectories: Sequence[PointTrajectory], channel_names: Sequence[str] | None
) -> ScatteredMemorySource:
    """Return one source of several trajectories, padded to the largest number of points.

    All channels are selected if `channel_names` is None. Raises `DataError` if the names lack the positions x, y, z of
    moving points, or if the trajectories differ in anything but points and values.
    """
    first = trajectories[0]
    _check_consistent(first, first)
    is_moving, axes = first.positions.ndim == 3, first.positions.shape[-1]
    available = (*(AXES[:axes] if is_moving else ()), *first.fields)
    collisions = set(AXES[:axes]) & set(first.fields) if is_moving else set()
    if collisions:
        raise DataError(
            f"{name}: field `{min(collisions)}` has the name of a position channel; rename the field in the file"
        )
    channels = select_channels(name, available, channel_names)
    if is_moving and not set(AXES[:axes]) <= set(channels):
        raise DataError(f"{name}: the points move; add their positions {', '.join(AXES[:axes])} to `channels`")
    for trajectory in trajectories:
        _check_consistent(trajectory, first)
    points = max(trajectory.positions.shape[-2] for trajectory in trajectories)
    frames = len(first.times)
    fields = np.zeros((len(trajectories), frames, points, len(channels)), np.float32)
    input_fields = np.zeros((len(trajectories), points, len(first.inputs)), np.float32)
    coords = np.zeros((len(trajectories), points, 0 if is_moving else axes), np.float32)
    mask = np.zeros((len(trajectories), points), np.float32)
    for row, trajectory in enumerate(trajectories):
        size = trajectory.positions.shape[-2]
        mask[row, :size] = 1
        for column, channel in enumerate(channels):
            if channel in trajectory.fields:
                values = trajectory.fields[channel]
            else:
                values = trajectory.positions[..., AXES.index(channel)]
            fields[row, :, :size, column] = values
        for column, key in enumerate(first.inputs):
            input_fields[row, :size, column] = trajectory.inputs[key]
        if not is_moving:
            coords[row, :size] = trajectory.positions
    all_positions = np.concatenate([trajectory.positions.reshape(-1, axes) for trajectory in trajectories])
    all_positions = all_positions.astype(np.float64)
    if not np.isfinite(all_positions).all():
        raise DataError(f"{name}: the positions of the points contain NaN or Inf; correct the file")
    corners = bounding_box(name, all_positions)
    times = start_and_step(first.times, f"{name}: times", "write frames at evenly spaced times")
    position_channels = AXES[:axes] if is_moving else ()
    cloud = PointCloud.from_corners(corners, points, times, box_from_points=True, position_channels=position_channels)
    keys = dict.fromkeys(key for trajectory in trajectories for key in trajectory.coefficients)
    return ScatteredMemorySource(
        name=name,
        grid=cloud,
        fields=fields,
        coefficients={
            key: np.array([trajectory.coefficients.get(key, np.nan) for trajectory in trajectories]) for key in keys
        },
        channel_names=channels,
        input_channels=tuple(first.inputs),
        input_fields=input_fields,
        all_points=PointSet(coords=coords, mask=mask),
    )


def drop_zero_axes(positions: Float[np.ndarray, "*t p a"]) -> Float[np.ndarray, "*t p d"]:
    """Return positions without the last coordinates if these are 0 for all points, such as z of planar data."""
    axes = positions.shape[-1]
    while axes > 1 and (positions[..., axes - 1] == 0).all():
        axes -= 1
    return positions[..., :axes]


def split_components(
    name: str, values: Float[np.ndarray, "t p *k"], axis_count: int
) -> dict[str, Float32[np.ndarray, "t p"]]:
    """Return a scalar field by its name, or the components of a vector field by the names NAME_x, NAME_y, NAME_z.

    A vector may have three components on fewer axes if the further components are 0; these are dropped. Raises
    `DataError` for any other number of components than the number of axes.
    """
    if values.ndim == 2:
        return {name: values.astype(np.float32)}
    if values.shape[-1] not in (axis_count, len(AXES)) or values[..., axis_count:].any():
        raise DataError(
            f"{name}: has {values.shape[-1]} components, but the points have {axis_count} coordinates; write each "
            "component as a scalar field"
        )
    return {f"{name}_{axis}": values[..., i].astype(np.float32) for i, axis in enumerate(AXES[:axis_count])}


def require_module(module: str, path: str) -> None:
    """Raise `DataError` if the optional package `module`, which reads the file `path`, is not installed."""
    if importlib.util.find_spec(module) is None:
        raise DataError(f"{path}: is read with {module}, which is not installed; run pip install 'ups_jax[mesh]'")


def _check_consistent(trajectory: PointTrajectory, first: PointTrajectory) -> None:
    """Raise `DataError` if a trajectory has invalid shapes, or other fields, axes or times than the first one."""
    shape = trajectory.positions.shape
    if len(shape) not in (2, 3) or not all(shape) or shape[-1] > len(AXES):
        raise DataError(
            f"{trajectory.name}: positions have shape {shape}; give (points, axes) if the points are fixed, or "
            "(times, points, axes) if they move"
        )
    if len(shape) != first.positions.ndim:
        difference = ("move", "are fixed") if len(shape) == 3 else ("are fixed", "move")
        raise DataError(
            f"{trajectory.name}: the points {difference[0]}, but the points of {first.name} {difference[1]}; give them "
            "separately"
        )
    if trajectory.times.ndim != 1 or (len(shape) == 3 and shape[0] != len(trajectory.times)):
        raise DataError(
            f"{trajectory.name}: times have shape {trajectory.times.shape}, but positions have shape {shape}; give "
            "one time for each frame"
        )
    for quantity, actual, expected in (
        ("fields", tuple(trajectory.fields), tuple(first.fields)),
        ("input fields", tuple(trajectory.inputs), tuple(first.inputs)),
        ("space axes", trajectory.positions.shape[-1], first.positions.shape[-1]),
        ("times", trajectory.times.tolist(), first.times.tolist()),
    ):
        is_equal = same_coordinates(trajectory.times, first.times) if quantity == "times" else actual == expected
        if not is_equal:
            raise DataError(
                f"{trajectory.name}: has {quantity} {actual}, but {first.name} has {expected}; give trajectories with "
                f"the same {quantity}"
            )
    expected_shape = (len(trajectory.times), trajectory.positions.shape[-2])
    for name, values in trajectory.fields.items():
        if values.shape != expected_shape:
            raise DataError(
                f"{trajectory.name}: field `{name}` has shape {values.shape}; give (times, points) = {expected_shape}"
            )
