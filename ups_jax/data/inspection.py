"""What a data file holds and whether it is sane, and the lines of a configuration that would train on it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from jaxtyping import Float32, Float64, Int

from ups_jax.config import TaskConfig
from ups_jax.data import declared_properties
from ups_jax.data.scan import bytes_each, chunks
from ups_jax.data.sources import Grid, Source, layout_of
from ups_jax.data.sources.detect import Layout, attribute, original
from ups_jax.data.sources.points import Cloud, Scattered

# Of a larger file as many trajectories as fit in here are looked at, spread over all.
LOOK_BYTES = 512 * 2**20
# A coefficient whose largest value is as many times its smallest is told on a logarithmic scale.
_SPAN = 5.0
# Names of tasks by what the published files are called; `D` stands for the number of axes.
_TASKS = (
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
class Channel:
    """What was found in a channel; extremes and deviation are of its finite numbers, NaN where there are none.

    `broken` counts the frames that hold NaN or Inf, `constant` the trajectories that never change anywhere.
    """

    name: str
    minimum: float
    maximum: float
    std: float
    broken: int
    constant: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Inspection:
    """`looked` trajectories of a file were read; `task` is the entry of `data.tasks` that fits it."""

    path: Path
    layout: Layout
    source: Source
    task: TaskConfig
    looked: int
    channels: tuple[Channel, ...]
    inputs: tuple[Channel, ...]
    coefficients: dict[str, tuple[float, float]]
    constants: dict[str, float]
    boundary: str
    hints: tuple[str, ...]

    @property
    def sane(self) -> bool:
        """Whether every number is finite and every channel changes."""
        every = (*self.channels, *self.inputs)
        return not any(channel.broken or channel.constant == self.looked for channel in every)


def inspect(path: str | Path, *, whole: bool = False, look_bytes: int = LOOK_BYTES) -> Inspection:
    """Look into a file, `whole` or as many trajectories as `look_bytes` hold. Raises `DataError`."""
    layout = layout_of(path)
    source = layout.open(path, None)
    names = source.channel_names or _plain_names(layout, Path(path), source.channels)
    seen, given = _Extremes(source.channels), _Extremes(len(source.input_channels))
    drift = declared_properties.Drift(source.channels)
    edges = declared_properties.Edges(source.grid.shape, source.channels)
    scattered = isinstance(source, Scattered)
    ids = _chosen(source, None if whole else look_bytes)
    for some, fields in chunks(source, ids):
        seen.update(fields)
        given.update(source.inputs(some)[:, None])
        finite = np.isfinite(fields).all(axis=tuple(range(1, fields.ndim)))
        if finite.any():
            drift.update(some[finite], fields[finite])
            edges.update(fields[finite])
    values = {name: source.coefficient(name) for name in source.found_coefficients()}
    known = {name: found[~np.isnan(found)] for name, found in values.items() if found is not None}
    ranges = {name: (float(found.min()), float(found.max())) for name, found in known.items() if found.size}
    boundary = _boundary(Path(path), source)
    task = TaskConfig(
        name=_task_name(layout, Path(path), len(source.grid.axes)),
        kind=layout.kind,
        path=str(path),
        channels=names,
        periodic=_periodic(boundary, source),
        coefficients={
            name: "log10" if low > 0 and high >= _SPAN * low else "linear"
            for name, (low, high) in ranges.items()
            if high > low
        },
    )
    hints: list[str] = []
    if layout.kind == "transient" and seen.rms().all() and not scattered:
        hints += drift.check(task, str(path), (), seen.rms())
        hints += edges.check(TaskConfig(name=task.name), str(path), source.grid.axes, ()) if not task.periodic else ()
    constants = {name: low for name, (low, high) in ranges.items() if low == high}
    return Inspection(
        path=Path(path),
        layout=layout,
        source=source,
        task=task,
        looked=len(ids),
        channels=seen.channels(names),
        inputs=given.channels(source.input_channels),
        coefficients={name: ends for name, ends in ranges.items() if name not in constants},
        constants={**getattr(source, "constants", dict)(), **constants},
        boundary=boundary,
        hints=tuple(hints),
    )


def described(found: Inspection) -> Iterator[str]:
    """The inspection as lines to print; the last of them are those of a configuration."""
    source, grid = found.source, found.source.grid
    yield f"file        {found.path}"
    yield f"layout      {found.layout.name} ({found.layout.kind}), task {found.task.name}"
    yield f"holds       {source.trajectories} trajectories of {source.frames} frames, {source.channels} channels"
    if found.looked < source.trajectories:
        yield f"looked at   {found.looked} trajectories, spread over all; --all reads every one"
    yield from _of_points(source, grid) if isinstance(grid, Cloud) else _of_grid(grid)
    if found.layout.kind == "transient":
        yield f"time        from {grid.start:g}, dt {grid.dt:g}"
    yield f"boundary    {found.boundary or 'not told by the file'}"
    for name, (low, high) in found.coefficients.items():
        yield f"parameter   {name} {low:g} to {high:g}"
    for name, value in found.constants.items():
        yield f"parameter   {name} {value:g} throughout"
    for kind, channels in (("given", found.inputs), ("channel", found.channels)):
        for channel in channels:
            numbers = f"min {channel.minimum:.4g}  max {channel.maximum:.4g}  std {channel.std:.4g}"
            yield f"{kind:<11} {channel.name}  {numbers}"
            if channel.broken:
                yield f"            NaN or Inf in {channel.broken} frames: remove these trajectories"
            if channel.constant:
                yield f"            constant in {channel.constant} trajectories"
    for hint in found.hints:
        yield f"seen        {hint}"
    yield "configure"
    yield from (f"  {line}" for line in config_lines(found).splitlines())


def _of_grid(grid: Grid) -> Iterator[str]:
    for axis, points, first, step in zip(grid.axes, grid.shape, grid.origin, grid.spacing, strict=True):
        yield f"axis {axis}      {points} points from {first:g}, {step:g} apart"


def _of_points(source: Source, cloud: Cloud) -> Iterator[str]:
    counts = [cloud.shape[0]]
    if isinstance(source, Scattered):
        counts = source.places(np.arange(source.trajectories)).mask.sum(axis=1).astype(int).tolist()
    few, many = min(counts), max(counts)
    yield f"points      {few if few == many else f'{few} to {many}'}, {'they move' if cloud.moving else 'at rest'}"
    for axis, first, length in zip(cloud.axes, cloud.origin, cloud.box, strict=True):
        yield f"box {axis}       from {first:g} to {first + length:g}"


def config_lines(found: Inspection) -> str:
    """YAML of `data.tasks` that trains on the file."""
    task = found.task
    entry: dict[str, object] = {"name": task.name, "path": str(task.path)}
    if task.kind != "transient":
        entry["kind"] = task.kind
    entry["channels"] = list(task.channels)
    entry |= {"periodic": list(task.periodic)} if task.periodic else {}
    entry |= {"coefficients": dict(task.coefficients)} if task.coefficients else {}
    values: dict[str, object] = {"data": {"tasks": [entry]}}
    if isinstance(found.source, Scattered):
        # Differences along axes, which a default weighs, are of grids.
        values["training"] = {"lambda_h1": 0}
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=1000)


class _Extremes:
    """Per channel what `Channel` says, over chunks."""

    def __init__(self, channels: int) -> None:
        self._low, self._high = np.full(channels, np.inf), np.full(channels, -np.inf)
        self._sum, self._squares, self._count = np.zeros((3, channels))
        self._broken, self._constant = np.zeros((2, channels), np.int64)

    def update(self, fields: Float32[np.ndarray, "n t *s c"]) -> None:
        finite = np.isfinite(fields)
        exact = np.where(finite, fields, 0).astype(np.float64)
        all_axes, inner = tuple(range(fields.ndim - 1)), tuple(range(1, fields.ndim - 1))
        self._low = np.minimum(self._low, np.where(finite, fields, np.inf).min(axis=all_axes))
        self._high = np.maximum(self._high, np.where(finite, fields, -np.inf).max(axis=all_axes))
        self._sum += exact.sum(axis=all_axes)
        self._squares += (exact**2).sum(axis=all_axes)
        self._count += finite.sum(axis=all_axes)
        self._broken += (~finite.all(axis=tuple(range(2, fields.ndim - 1)))).sum(axis=(0, 1))
        self._constant += (fields.min(axis=inner) == fields.max(axis=inner)).sum(axis=0)

    def rms(self) -> Float64[np.ndarray, " c"]:
        return np.sqrt(self._squares / np.maximum(self._count, 1))

    def channels(self, names: tuple[str, ...]) -> tuple[Channel, ...]:
        mean = self._sum / np.maximum(self._count, 1)
        std = np.sqrt(np.maximum(self.rms() ** 2 - mean**2, 0))
        known = self._count > 0
        low, high, std = (np.where(known, values, np.nan) for values in (self._low, self._high, std))
        columns = zip(names, low, high, std, self._broken, self._constant, strict=True)
        return tuple(
            Channel(name=n, minimum=float(a), maximum=float(b), std=float(s), broken=int(x), constant=int(c))
            for n, a, b, s, x, c in columns
        )


def _chosen(source: Source, look_bytes: int | None) -> Int[np.ndarray, " n"]:
    count = source.trajectories if look_bytes is None else max(1, look_bytes // bytes_each(source))
    return np.unique(np.linspace(0, source.trajectories - 1, min(count, source.trajectories)).astype(np.int64))


def _plain_names(layout: Layout, path: Path, channels: int) -> tuple[str, ...]:
    """Names for channels that the file does not name."""
    if channels == 1:
        return ("h",) if _task_name(layout, path, 2).startswith("shallow_water") else ("u",)
    return ("u", "v", "w")[:channels] if channels <= 3 else tuple(f"u{index}" for index in range(channels))


def _task_name(layout: Layout, path: Path, dims: int) -> str:
    for said in (attribute(path, "task"), attribute(path, "dataset_name")):
        if said:
            return said
    file = original(path)
    for part, name in _TASKS:
        if part in file.name.lower():
            return name.replace("Dd", f"{dims}d")
    return re.sub(r"[^A-Za-z0-9_]+", "_", file.stem).strip("_") or "mine"


def _boundary(path: Path, source: Source) -> str:
    """As the file says it, in its name too; empty where it does not."""
    by_axis: dict[str, str] = getattr(source, "boundary", {})
    if by_axis:
        return ", ".join(f"{axis} {kind}" for axis, kind in by_axis.items())
    told = attribute(path, "boundary")
    if told:
        return told
    found = re.search(r"(?<![a-z])(periodic|trans)(?![a-z])", original(path).stem.lower())
    return "" if found is None else {"periodic": "periodic", "trans": "transmissive"}[found.group(1)]


def _periodic(boundary: str, source: Source) -> tuple[str, ...]:
    if boundary == "periodic":
        return source.grid.axes
    by_axis: dict[str, str] = getattr(source, "boundary", {})
    return tuple(axis for axis, kind in by_axis.items() if kind == "periodic")
