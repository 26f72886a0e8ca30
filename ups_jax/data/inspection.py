"""Inspection of a data file: its content and defects, and a configuration that trains on it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64

from ups_jax.config import TaskConfig, yaml
from ups_jax.data import declared_properties
from ups_jax.data.content import ContentReport, content_report
from ups_jax.data.scan import concatenate_records, read_chunk_record, spaced_ids, trajectory_chunks
from ups_jax.data.sources import Grid, Source, detect_layout
from ups_jax.data.sources.detect import Layout, path_before_conversion, root_attribute
from ups_jax.data.sources.points import PointCloud, ScatteredSource

# Limit of what is read by default. From a larger file, evenly spaced trajectories of this total size are read.
MAX_READ_BYTES = 512 * 2**20
# A coefficient whose largest value is at least this multiple of its smallest gets a log10 scale.
_LOG_RATIO = 5.0
# Parts of the names of published files, with the task names for them; `D` stands for the number of axes.
_TASK_NAMES = (
    ("advection", "advectionDd"),
    ("burgers", "burgersDd"),
    ("reacdiff", "reaction_diffusionDd"),
    ("diff-react", "reaction_diffusionDd"),
    ("diff-sorp", "diffusion_sorptionDd"),
    ("rdb", "shallow_waterDd"),
    ("swe", "shallow_waterDd"),
    ("cfd", "compressible_nsDd"),
    ("ns_incom", "navier_stokesDd"),
    ("darcy", "darcyDd"),
)


@dataclass(frozen=True, kw_only=True)
class ChannelSummary:
    """Statistics and defects of one channel.

    Attributes:
        name: Name of the channel.
        minimum: Smallest finite value, NaN if there is none.
        maximum: Largest finite value, NaN if there is none.
        std: Standard deviation of the finite values, NaN if there is none.
        nonfinite_frames: Number of frames with NaN or Inf.
        constant_trajectories: Number of trajectories with one value at all points and frames.
    """

    name: str
    minimum: float
    maximum: float
    std: float
    nonfinite_frames: int
    constant_trajectories: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Inspection:
    """The results of the inspection of a file.

    Attributes:
        source: Reader of the file.
        task: Entry of `data.tasks` that fits the file.
        trajectories_read: Number of trajectories that were read.
        channels: Summary of each channel.
        inputs: Summary of each input field.
        coefficients: Smallest and largest value of each coefficient that varies.
        constants: Value of each coefficient that does not vary.
        boundary: Boundary conditions as the file states them; empty if it states none.
        hints: Properties of the data that the configuration could declare, with the keys that declare them.
        content: Trajectories that were not written completely, are at rest, or hardly vary.
    """

    path: Path
    layout: Layout
    source: Source
    task: TaskConfig
    trajectories_read: int
    channels: tuple[ChannelSummary, ...]
    inputs: tuple[ChannelSummary, ...]
    coefficients: dict[str, tuple[float, float]]
    constants: dict[str, float]
    boundary: str
    hints: tuple[str, ...]
    content: ContentReport

    @property
    def is_usable(self) -> bool:
        """Whether all values are finite, all trajectories are complete, and each channel changes in some of them."""
        return (
            bool(self.content.has_content.all())
            and not self.content.is_still.all(axis=0).any()
            and not any(
                channel.nonfinite_frames or channel.constant_trajectories == self.trajectories_read
                for channel in (*self.channels, *self.inputs)
            )
        )


def inspect(path: str | Path, *, read_all_trajectories: bool = False, max_bytes: int = MAX_READ_BYTES) -> Inspection:
    """Read a data file and return its content and defects.

    Args:
        read_all_trajectories: Read the whole file instead of evenly spaced trajectories.
        max_bytes: Largest total size of these evenly spaced trajectories.

    Raises:
        DataError: The file cannot be read.
    """
    layout = detect_layout(path)
    source = layout.open(path, None)
    names = source.channel_names or _default_channel_names(layout, Path(path), source.channels)
    field_summary, input_summary = _Summary(source.channels), _Summary(len(source.input_channels))
    edges = declared_properties.NeighbourDifferences(source.grid.shape, source.channels)
    order = _AxisOrder(source.channels)
    scattered = isinstance(source, ScatteredSource)
    ids, records = np.arange(source.trajectories), []
    if not read_all_trajectories:
        ids = spaced_ids(source, ids, max_bytes)
    for chunk, fields in trajectory_chunks(source, ids):
        field_summary.update(fields)
        input_summary.update(source.read_input_fields(chunk)[:, None])
        records.append(read_chunk_record(source, chunk, fields, 1))
        suitable = fields[content_report(records[-1]).suits_hints]
        order.update(suitable)
        edges.update(suitable)
    record = concatenate_records(records)
    content = content_report(record, ids)
    coefficients = {name: source.coefficient(name) for name in source.coefficient_names()}
    available = {name: values[~np.isnan(values)] for name, values in coefficients.items() if values is not None}
    ranges = {name: (float(values.min()), float(values.max())) for name, values in available.items() if values.size}
    boundary = _boundary_conditions(Path(path), source)
    task_cfg = TaskConfig(
        name=_task_name(layout, Path(path), len(source.grid.axes)),
        kind=layout.kind,
        path=str(path),
        channels=names,
        periodic=_periodic_axes(boundary, source),
        coefficients={
            name: "log10" if low > 0 and high >= _LOG_RATIO * low else "linear"
            for name, (low, high) in ranges.items()
            if high > low
        },
    )
    hints: list[str] = []
    if layout.kind == "transient" and not scattered:
        suits = np.flatnonzero(content.suits_hints)
        hints += declared_properties.check_drift(task_cfg, str(path), (), field_summary.std(), record, suits[:0], suits)
        if not task_cfg.periodic:
            hints += edges.check(TaskConfig(name=task_cfg.name), str(path), source.grid.axes, ())
    if layout.kind == "transient":
        hints += order.hints()
    constants = {name: low for name, (low, high) in ranges.items() if low == high}
    return Inspection(
        path=Path(path),
        layout=layout,
        source=source,
        task=task_cfg,
        trajectories_read=len(ids),
        channels=field_summary.summaries(names),
        inputs=input_summary.summaries(source.input_channels),
        coefficients={name: ends for name, ends in ranges.items() if name not in constants},
        constants={**getattr(source, "constants", dict)(), **constants},
        boundary=boundary,
        hints=tuple(hints),
        content=content,
    )


def describe(inspection: Inspection) -> Iterator[str]:
    """Yield the lines of a report on the inspected file; the last lines are a configuration that trains on it."""
    source, grid = inspection.source, inspection.source.grid
    yield f"file        {inspection.path}"
    yield f"layout      {inspection.layout.name} ({inspection.layout.kind}), task {inspection.task.name}"
    yield f"contains    {source.trajectories} trajectories of {source.frames} frames, {source.channels} channels"
    if inspection.trajectories_read < source.trajectories:
        yield f"read        {inspection.trajectories_read} trajectories, evenly spaced; --all reads every one"
    yield from _describe_points(source, grid) if isinstance(grid, PointCloud) else _describe_grid(grid)
    if inspection.layout.kind == "transient":
        yield f"time        from {grid.start:g}, dt {grid.dt:g}"
    yield f"boundary    {inspection.boundary or 'not stated in the file'}"
    for name, (low, high) in inspection.coefficients.items():
        yield f"parameter   {name} {low:g} to {high:g}"
    for name, value in inspection.constants.items():
        yield f"parameter   {name} {value:g} in all trajectories"
    for kind, channels in (("input", inspection.inputs), ("channel", inspection.channels)):
        for channel in channels:
            numbers = f"min {channel.minimum:.4g}  max {channel.maximum:.4g}  std {channel.std:.4g}"
            yield f"{kind:<11} {channel.name}  {numbers}"
            if channel.nonfinite_frames:
                yield f"            NaN or Inf in {channel.nonfinite_frames} frames"
            if channel.constant_trajectories:
                yield f"            constant in {channel.constant_trajectories} trajectories"
    for note in source.notes:
        yield f"note        {note.removeprefix(f'{source.name}: ')}"
    for line in inspection.content.lines(inspection.task.channels):
        yield f"content     {line}"
    for hint in inspection.hints:
        yield f"hint        {hint}"
    yield "config"
    yield from (f"  {line}" for line in config_yaml(inspection).splitlines())


def _describe_grid(grid: Grid) -> Iterator[str]:
    """Yield one line for each axis of a grid."""
    for axis, points, first, step in zip(grid.axes, grid.shape, grid.origin, grid.spacing, strict=True):
        yield f"axis {axis}      {points} points from {first:g}, {step:g} apart"


def _describe_points(source: Source, cloud: PointCloud) -> Iterator[str]:
    """Yield one line for the number of points, and one for each axis of the box that contains them."""
    counts = [cloud.shape[0]]
    if isinstance(source, ScatteredSource):
        counts = source.points(np.arange(source.trajectories)).mask.sum(axis=1).astype(int).tolist()
    fewest, most = min(counts), max(counts)
    number = fewest if fewest == most else f"{fewest} to {most}"
    yield f"points      {number}, {'moving' if cloud.position_channels else 'fixed'}"
    for axis, first, length in zip(cloud.axes, cloud.origin, cloud.box, strict=True):
        yield f"box {axis}       from {first:g} to {first + length:g}"


def config_yaml(inspection: Inspection) -> str:
    """Return the YAML text of a configuration that trains on the inspected file."""
    task_cfg = inspection.task
    entry: dict[str, object] = {"name": task_cfg.name, "path": str(task_cfg.path)}
    if task_cfg.kind != "transient":
        entry["kind"] = task_cfg.kind
    entry["channels"] = list(task_cfg.channels)
    entry |= {"periodic": list(task_cfg.periodic)} if task_cfg.periodic else {}
    entry |= {"coefficients": dict(task_cfg.coefficients)} if task_cfg.coefficients else {}
    values: dict[str, object] = {"data": {"tasks": [entry]}}
    if isinstance(inspection.source, ScatteredSource):
        # The default loss contains differences along grid axes, which points do not have.
        values["training"] = {"lambda_h1": 0}
    return yaml.dump(values, flow=None)


class _Summary:
    """An accumulator of the statistics and defects in `ChannelSummary`, over chunks of trajectories."""

    def __init__(self, channels: int) -> None:
        self._low, self._high = np.full(channels, np.inf), np.full(channels, -np.inf)
        self._sum, self._squares, self._count = np.zeros((3, channels))
        self._nonfinite, self._constant = np.zeros((2, channels), np.int64)

    def update(self, fields: Float32[np.ndarray, "n t *s c"]) -> None:
        """Include the fields of further trajectories in the statistics and defects."""
        finite = np.isfinite(fields)
        exact = np.where(finite, fields, 0).astype(np.float64)
        all_axes, inner = tuple(range(fields.ndim - 1)), tuple(range(1, fields.ndim - 1))
        self._low = np.minimum(self._low, np.where(finite, fields, np.inf).min(axis=all_axes))
        self._high = np.maximum(self._high, np.where(finite, fields, -np.inf).max(axis=all_axes))
        self._sum += exact.sum(axis=all_axes)
        self._squares += (exact**2).sum(axis=all_axes)
        self._count += finite.sum(axis=all_axes)
        self._nonfinite += (~finite.all(axis=tuple(range(2, fields.ndim - 1)))).sum(axis=(0, 1))
        self._constant += (fields.min(axis=inner) == fields.max(axis=inner)).sum(axis=0)

    def std(self) -> Float64[np.ndarray, " c"]:
        """Return the standard deviation of the finite values of each channel, 0 if there are none."""
        count = np.maximum(self._count, 1)
        return np.sqrt(np.maximum(self._squares / count - (self._sum / count) ** 2, 0))

    def summaries(self, channel_names: tuple[str, ...]) -> tuple[ChannelSummary, ...]:
        """Return the summary of each channel."""
        has_values = self._count > 0
        low, high, std = (np.where(has_values, values, np.nan) for values in (self._low, self._high, self.std()))
        columns = zip(channel_names, low, high, std, self._nonfinite, self._constant, strict=True)
        return tuple(
            ChannelSummary(
                name=name,
                minimum=float(minimum),
                maximum=float(maximum),
                std=float(deviation),
                nonfinite_frames=int(nonfinite),
                constant_trajectories=int(constant),
            )
            for name, minimum, maximum, deviation, nonfinite, constant in columns
        )


class _AxisOrder:
    """An accumulator that compares the difference between consecutive frames with that between trajectories.

    Trajectories are usually independent, so that two of them differ at least as much as two frames of one.
    """

    def __init__(self, channels: int) -> None:
        self._sums, self._counts = np.zeros((2, channels)), np.zeros(2)

    def update(self, fields: Float32[np.ndarray, "n t *s c"]) -> None:
        """Add the fields of further trajectories, which are finite."""
        for axis in (0, 1):
            squares = np.square(np.diff(fields.astype(np.float64), axis=axis))
            self._sums[axis] += squares.reshape(-1, squares.shape[-1]).sum(axis=0)
            self._counts[axis] += squares.size // squares.shape[-1]

    def hints(self) -> Iterator[str]:
        """Yield a hint if, in every channel, frames differ more than trajectories: the two axes may be exchanged."""
        trajectories, frames = self._sums / np.maximum(self._counts, 1)[:, None]
        if self._counts.all() and (frames > 2 * trajectories).all():
            yield (
                "consecutive frames differ more than neighbouring trajectories: if the first axis of the arrays is "
                "time, exchange the first two axes"
            )


def _default_channel_names(layout: Layout, path: Path, channel_count: int) -> tuple[str, ...]:
    """Return default names for the channels of a file without channel names."""
    if channel_count == 1:
        return ("h",) if _task_name(layout, path, 2).startswith("shallow_water") else ("u",)
    return (
        ("u", "v", "w")[:channel_count] if channel_count <= 3 else tuple(f"u{index}" for index in range(channel_count))
    )


def _task_name(layout: Layout, path: Path, axis_count: int) -> str:
    """Return a task name from the attributes of a file or, if it has none, from its file name."""
    for text in (root_attribute(path, "task"), root_attribute(path, "dataset_name")):
        if text:
            return text
    file = path_before_conversion(path)
    for part, name in _TASK_NAMES:
        if part in file.name.lower():
            return name.replace("Dd", f"{axis_count}d")
    return re.sub(r"[^A-Za-z0-9_]+", "_", file.stem).strip("_") or "mine"


def _boundary_conditions(path: Path, source: Source) -> str:
    """Return the boundary conditions that a file states in its data, attributes or name; empty if it states none."""
    by_axis: dict[str, str] = getattr(source, "boundary", {})
    if by_axis:
        return ", ".join(f"{axis} {kind}" for axis, kind in by_axis.items())
    text = root_attribute(path, "boundary")
    if text:
        return text
    match = re.search(r"(?<![a-z])(periodic|trans)(?![a-z])", path_before_conversion(path).stem.lower())
    return "" if match is None else {"periodic": "periodic", "trans": "transmissive"}[match.group(1)]


def _periodic_axes(boundary: str, source: Source) -> tuple[str, ...]:
    """Return the names of the axes that are periodic by the boundary conditions of a file."""
    if boundary == "periodic":
        return source.grid.axes
    by_axis: dict[str, str] = getattr(source, "boundary", {})
    return tuple(axis for axis, kind in by_axis.items() if kind == "periodic")
