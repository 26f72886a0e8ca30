"""A run that meets faults one after the other: what each was answered, and what the run came to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import damage
import runs
from faults import Fault
from rows import Row

# Long enough for every fault of a life to strike.
LONG = ("stages.operator.steps=100", "evaluation.enabled=false")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The result of a start that a fault struck; `again` is the number of steps repeated because of the fault."""

    fault: Fault
    code: int
    said: str
    one_line: bool
    again: int

    @property
    def row(self) -> Row:
        """Its line of the table: the first line on stderr; of a killed start, which has none, what it had found."""
        if self.code >= 0:
            lines = self.said.strip().splitlines()
            answer = next((line for line in lines if line.startswith("error: ")), lines[0])
        else:
            match = re.search(f".*({self.fault.says}).*", self.said) if self.fault.says else None
            answer = match[0] if match else "goes on from the newest save"
        return Row(fault=self.fault.name, answer=answer, code=self.code, again=self.again)

    @property
    def not_as_defined(self) -> list[str]:
        """The deviations of the result from the fault's defined answer."""
        deviations = []
        if self.code != self.fault.code:
            deviations.append(f"exit code {self.code}, not {self.fault.code}")
        if not re.search(self.fault.says, self.said, re.DOTALL):
            deviations.append(f"does not say {self.fault.says!r}")
        if self.again > self.fault.again:
            deviations.append(f"{self.again} steps done again, more than {self.fault.again}")
        if not (self.one_line or self.fault.noisy):
            deviations.append("more than two lines on stderr")
        return [f"{self.fault.name}: {line}: {self.said[-1500:]}" for line in deviations]


def whole(run: Path, data_root: Path) -> None:
    """The run that meets no fault."""
    result = runs.run(_line(run, data_root))
    assert result.code == 0, result.err


def live(run: Path, data_root: Path, faults: Sequence[Fault]) -> list[Seen]:
    """Meet the faults, then end in peace."""
    seen, trained, before = list[Seen](), -1, 0
    for number, fault in enumerate([*faults, None]):
        # What is saved now is what the ends so far have left; what of it is not found after the damage is the damage's.
        saved = damage.newest_step(run, "operator")
        if fault is None:
            result = runs.run(_line(run, data_root))
            assert result.code == 0, result.err
        else:
            fault.damage(run)
            result = runs.run(_line(run, data_root, *fault.overrides), fault.inject(run))
            seen.append(_seen(fault, result))
        # Whoever ended ahead of the loop has done no steps, nor lost any: they are those of the last one that trained.
        if result.resumed is not None and trained >= 0:
            _cost(seen, trained, before - max(saved, result.resumed))
            _cost(seen, number, saved - result.resumed)
        reached = runs.reached(run, "operator")
        if result.resumed is not None or reached > before:
            trained, before = number, reached
    return seen


def _seen(fault: Fault, result: runs.Ended) -> Seen:
    said = [line for line in result.err.splitlines() if not line.startswith("warning: ")]
    output = "\n".join([*said, result.out])
    return Seen(fault=fault, code=result.code, said=output, one_line=len(said) <= 2, again=0)


def _cost(seen: list[Seen], number: int, steps: int) -> None:
    if number < len(seen):
        seen[number] = replace(seen[number], again=seen[number].again + max(steps, 0))


def _line(run: Path, data_root: Path, *overrides: str) -> list[str]:
    return runs.training("operator", run, data_root, *LONG, *overrides)
