"""Profile of a compiled train step: a profiler trace, and the times of its operations summed by part of the model.

XLA stores with every operation the path of flax modules and name scopes in which JAX traced the operation.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData
from jaxtyping import PyTree

from ups_jax.core.errors import UserError
from ups_jax.training.step import TrainStep

# Name, start and duration in nanoseconds of one executed operation.
Operation = tuple[str, float, float]

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = ")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CALLS = re.compile(r"calls=%?([\w.\-]+)")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
# In these paths jax wraps names in transformations, as in `jvp(name)`, and inserts its own functions, control flow and
# module methods between names.
_TRANSFORMATIONS = re.compile(r"\b(?:transpose|jvp|vmap|checkpoint)\(")
_INSERTED = re.compile(
    r"jit\(.*|while|body|cond|closed_call|branch_\d+_fun|checkpoint|eval_jaxpr|rematted_computation|[A-Z]\w*\.\w+|"
)


@dataclass(frozen=True, kw_only=True)
class PartTime:
    """Time of one part of the model in the forward or the backward pass.

    Attributes:
        part: Module names that identify the part, joined by slashes.
        direction: `forward`, `backward`, or `-` for operations outside both passes.
        seconds_per_step: Busy time per step, summed over threads and streams.
        share: Fraction of the busy time of all parts.
        operations: Number of executed operations per step.
    """

    part: str
    direction: str
    seconds_per_step: float
    share: float
    operations: int


@dataclass(frozen=True, kw_only=True)
class StepProfile:
    """Profile of a train step.

    Attributes:
        seconds_per_step: Wall time per step while tracing.
        parts: Time of each part, the longest first.
        trace: File of the trace.
    """

    seconds_per_step: float
    parts: tuple[PartTime, ...]
    trace: Path


def profile_step(
    train_step: TrainStep, state: PyTree, batches: Iterator[PyTree], directory: Path, *, steps: int = 10, depth: int = 3
) -> StepProfile:
    """Compile a train step, trace a few warm steps, and return the time of each part of the model.

    Args:
        state: State; its buffers are donated.
        directory: Output folder of the trace.
        depth: Maximum number of module names that identify a part.

    Raises:
        UserError: The trace has no operation of the step.
    """
    # Without this option a GPU runs many operations as one graph, and the trace does not distinguish them.
    options = {"xla_gpu_enable_command_buffer": ""} if jax.default_backend() == "gpu" else None
    compiled = train_step.compile(state, next(batches), options)
    for _ in range(2):
        state, metrics = compiled(state, next(batches))
    jax.block_until_ready((state, metrics))
    prepared = [next(batches) for _ in range(steps)]
    with jax.profiler.trace(str(directory), create_perfetto_trace=True):
        start = time.perf_counter()
        for number, batch in enumerate(prepared):
            with jax.profiler.StepTraceAnnotation("train", step_num=number):
                state, metrics = compiled(state, batch)
                jax.block_until_ready((state, metrics))
        seconds = (time.perf_counter() - start) / steps
    hlo = compiled.hlo_text
    trace = max(directory.rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)
    lines = list(executed_operations(ProfileData.from_file(str(trace)), program_name(hlo)))
    if not any(lines):
        raise UserError(f"{trace}: the profiler recorded no operation of the step; on a GPU, install the CUPTI library")
    busy: defaultdict[str, float] = defaultdict(float)
    counts: defaultdict[str, int] = defaultdict(int)
    for line in lines:
        for name, nanoseconds in self_times(line):
            busy[name] += nanoseconds
            counts[name] += 1
    return StepProfile(
        seconds_per_step=seconds,
        parts=time_by_part(busy, counts, scope_paths_by_instruction(hlo), steps, depth),
        trace=trace,
    )


def time_by_part(
    busy: Mapping[str, float], counts: Mapping[str, int], paths: Mapping[str, str], steps: int, depth: int
) -> tuple[PartTime, ...]:
    """Return the time of each part of the model in each direction, the longest first.

    Args:
        busy: Nanoseconds of each operation, by name.
        counts: Number of executions of each operation.
        paths: Result of `scope_paths_by_instruction`.
        steps: Number of traced steps.
        depth: Maximum number of module names that identify a part.
    """
    sums: defaultdict[tuple[str, str], float] = defaultdict(float)
    numbers: defaultdict[tuple[str, str], int] = defaultdict(int)
    for name, nanoseconds in busy.items():
        key = part_and_direction(paths.get(name, ""), depth)
        sums[key] += nanoseconds
        numbers[key] += counts[name]
    total = sum(sums.values())
    return tuple(
        PartTime(
            part=part,
            direction=direction,
            seconds_per_step=nanoseconds * 1e-9 / steps,
            share=nanoseconds / total,
            operations=round(numbers[part, direction] / steps),
        )
        for (part, direction), nanoseconds in sorted(sums.items(), key=lambda item: -item[1])
    )


def part_and_direction(path: str, depth: int) -> tuple[str, str]:
    """Return the part of the model and the direction (`forward`, `backward` or `-`) to which an operation belongs.

    The number at the end of a module name is removed, so that `Block_0` and `Block_1` are one part.

    Args:
        path: Path of the operation, such as `jit(train_step)/transpose(jvp())/A/A.f/core/Block_0/dot`.
        depth: Maximum number of module names that identify a part.
    """
    direction = "backward" if "transpose(" in path else "forward" if "jvp(" in path else "-"
    names = [piece.rstrip(")") for piece in _TRANSFORMATIONS.sub("", path).split("/")[:-1]]
    pieces = [name for name in names if not _INSERTED.fullmatch(name)]
    # The first name is the class of the model, which all parts share.
    if pieces and pieces[0][:1].isupper():
        if direction == "-":
            # The compiler moved the operation out of a loop, and its path lost the marker of the gradient.
            direction = "forward"
        pieces = pieces[1:] or ["model"]
    named = [re.sub(r"_\d+$", "", piece) for piece in pieces[:depth]]
    if named:
        return "/".join(named), direction
    return ("loss and feeding" if direction != "-" else "rest of the step"), direction


def program_name(hlo: str) -> str:
    """Return the name of a compiled program from its HLO text."""
    return hlo.split(maxsplit=2)[1].rstrip(",")


def scope_paths_by_instruction(hlo_text: str) -> dict[str, str]:
    """Return the path of modules and name scopes of each instruction in a program's HLO text, by instruction name.

    A fusion without a path gets the path of the last instruction of its computation.
    """
    paths: dict[str, str] = {}
    last: dict[str, str] = {}
    calls: dict[str, str] = {}
    computation = ""
    for line in hlo_text.splitlines():
        if header := _COMPUTATION.match(line):
            computation = header[1]
        elif instruction := _INSTRUCTION.match(line):
            name = instruction[1]
            if path := _OP_NAME.search(line):
                paths[name] = last[computation] = path[1]
            if called := _CALLS.search(line):
                calls[name] = called[1]
    inherited = {name: last[called] for name, called in calls.items() if name not in paths and called in last}
    return paths | inherited


def executed_operations(data: ProfileData, program: str) -> Iterator[list[Operation]]:
    """Yield the operations of a program that a profile recorded, as one list per thread or GPU stream."""
    for plane in data.planes:
        for line in plane.lines:
            operations = []
            for event in line.events:
                stats = dict(event.stats)
                if "hlo_op" in stats and stats.get("hlo_module") == program:
                    operations.append((str(stats["hlo_op"]), float(event.start_ns), float(event.duration_ns)))
            yield operations


def self_times(operations: Iterable[Operation]) -> Iterator[tuple[str, float]]:
    """Yield the name and the self time of each operation, in nanoseconds.

    The self time excludes nested operations, such as the body of a loop.
    """
    open_operations: list[list[Any]] = []
    for name, start, duration in sorted(operations, key=lambda item: (item[1], -item[2])):
        while open_operations and open_operations[-1][1] <= start:
            closed, _, self_time = open_operations.pop()
            yield closed, self_time
        if open_operations:
            open_operations[-1][2] -= duration
        open_operations.append([name, start + duration, duration])
    for name, _, self_time in reversed(open_operations):
        yield name, self_time
