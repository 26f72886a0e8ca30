"""Where the time of a compiled step goes: a profiler trace, its operations summed by the part of the model they are of.

XLA keeps with every operation the path of modules and scopes that it was traced under; the trace has its times.
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
# What jax writes around the names of modules and scopes, `jvp(name)`, and between them: functions of its own, control
# flow, and the methods of a module.
_AROUND = re.compile(r"\b(?:transpose|jvp|vmap|checkpoint)\(")
_BETWEEN = re.compile(
    r"jit\(.*|while|body|cond|closed_call|branch_\d+_fun|checkpoint|eval_jaxpr|rematted_computation|[A-Z]\w*\.\w+|"
)


@dataclass(frozen=True, kw_only=True)
class PartTime:
    """Busy time a step of one part in one direction (`forward`, `backward`, or `-` outside the gradient)."""

    part: str
    direction: str
    seconds_per_step: float
    share: float
    operations: int


@dataclass(frozen=True, kw_only=True)
class StepProfile:
    """`seconds_per_step` is wall time, traced steps included; the parts are busy time over all threads and streams."""

    seconds_per_step: float
    parts: tuple[PartTime, ...]
    trace: Path


def profile_step(
    train_step: TrainStep, state: PyTree, batches: Iterator[PyTree], directory: Path, *, steps: int = 10, depth: int = 3
) -> StepProfile:
    """Compile a jitted step, run it warm, trace `steps` steps of it into `directory`, and sum their operations.

    `state` is used up. `depth` is how many module names a part keeps. Raises `UserError` where nothing was recorded.
    """
    # A GPU would run many operations as one recorded graph, whose parts a trace cannot tell.
    apart = {"xla_gpu_enable_command_buffer": ""} if jax.default_backend() == "gpu" else None
    compiled = train_step.compile(state, next(batches), apart)
    for _ in range(2):
        state, metrics = compiled(state, next(batches))
    jax.block_until_ready((state, metrics))
    ready = [next(batches) for _ in range(steps)]
    with jax.profiler.trace(str(directory), create_perfetto_trace=True):
        start = time.perf_counter()
        for number, batch in enumerate(ready):
            with jax.profiler.StepTraceAnnotation("train", step_num=number):
                state, metrics = compiled(state, batch)
                jax.block_until_ready((state, metrics))
        seconds = (time.perf_counter() - start) / steps
    hlo = compiled.text
    trace = max(directory.rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)
    lines = list(executed_operations(ProfileData.from_file(str(trace)), module_name(hlo)))
    if not any(lines):
        raise UserError(f"{trace}: the profiler recorded no operation of the step; on a GPU it needs the CUPTI library")
    busy: defaultdict[str, float] = defaultdict(float)
    counts: defaultdict[str, int] = defaultdict(int)
    for line in lines:
        for name, nanoseconds in self_times(line):
            busy[name] += nanoseconds
            counts[name] += 1
    return StepProfile(
        seconds_per_step=seconds, parts=time_by_part(busy, counts, operation_paths(hlo), steps, depth), trace=trace
    )


def time_by_part(
    busy: Mapping[str, float], counts: Mapping[str, int], paths: Mapping[str, str], steps: int, depth: int
) -> tuple[PartTime, ...]:
    """The nanoseconds of operations summed by part and direction, the longest first; `paths` as `operation_paths`."""
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
    """Part and direction of an operation's path, such as `jit(train_step)/transpose(jvp())/A/A.f/core/Block_0/dot`.

    Modules of one kind are one part: the number at a name's end is left out.
    """
    direction = "backward" if "transpose(" in path else "forward" if "jvp(" in path else "-"
    names = [piece.rstrip(")") for piece in _AROUND.sub("", path).split("/")[:-1]]
    pieces = [name for name in names if not _BETWEEN.fullmatch(name)]
    # The model's own name comes first and says nothing.
    if pieces and pieces[0][:1].isupper():
        if direction == "-":
            # Moved out of a loop by the compiler, and with that out of its gradient's name.
            direction = "forward"
        pieces = pieces[1:] or ["model"]
    named = [re.sub(r"_\d+$", "", piece) for piece in pieces[:depth]]
    if named:
        return "/".join(named), direction
    return ("loss and feeding" if direction != "-" else "rest of the step"), direction


def module_name(hlo: str) -> str:
    """The name of a compiled program, by its text."""
    return hlo.split(maxsplit=2)[1].rstrip(",")


def operation_paths(hlo: str) -> dict[str, str]:
    """Each instruction's path of modules and scopes; a fusion without one has that of its computation's last."""
    paths: dict[str, str] = {}
    last: dict[str, str] = {}
    calls: dict[str, str] = {}
    computation = ""
    for line in hlo.splitlines():
        if found := _COMPUTATION.match(line):
            computation = found[1]
        elif found := _INSTRUCTION.match(line):
            name = found[1]
            if path := _OP_NAME.search(line):
                paths[name] = last[computation] = path[1]
            if called := _CALLS.search(line):
                calls[name] = called[1]
    inherited = {name: last[called] for name, called in calls.items() if name not in paths and called in last}
    return paths | inherited


def executed_operations(data: ProfileData, module: str) -> Iterator[list[Operation]]:
    """The executed operations of a program, thread by thread (or stream by stream)."""
    for plane in data.planes:
        for line in plane.lines:
            found = []
            for event in line.events:
                stats = dict(event.stats)
                if "hlo_op" in stats and stats.get("hlo_module") == module:
                    found.append((str(stats["hlo_op"]), float(event.start_ns), float(event.duration_ns)))
            yield found


def self_times(operations: Iterable[Operation]) -> Iterator[tuple[str, float]]:
    """Each operation's nanoseconds without those of the operations inside it, such as the body of a loop."""
    open_operations: list[list[Any]] = []
    for name, start, duration in sorted(operations, key=lambda item: (item[1], -item[2])):
        while open_operations and open_operations[-1][1] <= start:
            closed, _, own = open_operations.pop()
            yield closed, own
        if open_operations:
            open_operations[-1][2] -= duration
        open_operations.append([name, start + duration, duration])
    for name, _, own in reversed(open_operations):
        yield name, own
