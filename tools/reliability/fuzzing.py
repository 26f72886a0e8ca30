"""Random inputs for the scripts, by the thousand: `python tools/reliability/fuzzing.py --count 10000 --out fuzz.json`.

What one of them is answered must be right, or one line of error with its exit code (`answer.fault`). An input that is
answered otherwise is written into `--failed` as a case of the corpus.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzz import targets
from fuzz.answer import answer, fault
from fuzz.bases import shared
from fuzz.case import Case
from hypothesis import HealthCheck, Phase, given, seed, settings


@dataclass
class Found:
    """The findings for one target: the number of inputs, their exit codes, and the inputs with a wrong answer."""

    inputs: int = 0
    seconds: float = 0.0
    codes: collections.Counter[int | None] = field(default_factory=collections.Counter)
    failed: dict[str, Case] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)


def fuzz(target: str, count: int, number: int, journal: Path | None = None) -> Found:
    """`count` inputs of a target; `number` decides which. Of inputs that fail alike the smallest is kept; the `journal`
    says what was found up to the input that is at work."""
    targets.prepare(target)
    findings, start = Found(), time.monotonic()

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(targets.TARGETS[target])
    def run_case(case: Case) -> None:
        findings.inputs += 1
        if journal is not None:
            journal.write_text(json.dumps(_journal_entry(findings, case.to_json())))
        wrong, code = check(case)
        findings.codes[code] += 1
        if wrong is not None:
            kind = wrong.split(": ")[0]
            smallest = findings.failed.get(kind)
            if smallest is None or len(case.to_json()) < len(smallest.to_json()):
                findings.failed[kind], findings.messages[kind] = case, wrong

    run_case()
    findings.seconds = time.monotonic() - start
    return findings


def check(case: Case) -> tuple[str | None, int | None]:
    """Return the fault of the answer to a case, or None, and the exit code."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        given_answer = answer(case, Path(folder), shared())
        wrong = fault(case, given_answer) or targets.wrong_result(case, given_answer, Path(folder))
    return wrong, given_answer.code


def rounds(count: int, shares: Mapping[str, int], inputs_per_part: int = 200) -> Iterator[tuple[str, int, int]]:
    """Target, number of inputs and seed of each part, until there are `count` inputs in these shares."""
    total = sum(shares.values())
    left = {name: round(count * share / total) for name, share in shares.items()}
    number = 0
    while any(left.values()):
        for name in left:
            size = min(inputs_per_part, left[name])
            if size:
                left[name] -= size
                yield name, size, number
        number += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="inputs in all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="other inputs (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=list(targets.SHARES), help="of these targets (default: all)")
    parser.add_argument("--out", type=Path, help="write the counts here")
    parser.add_argument("--failed", type=Path, default=Path("fuzz-failed"), help="folder of what failed")
    parser.add_argument("--part", nargs=3, metavar=("TARGET", "COUNT", "NUMBER"), help=argparse.SUPPRESS)
    parser.add_argument("--journal", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        part = fuzz(args.part[0], int(args.part[1]), int(args.part[2]), args.journal)
        args.journal.write_text(json.dumps({"done": True} | _journal_entry(part)))
        return 0
    shares = {name: share for name, share in targets.SHARES.items() if not args.only or name in args.only}
    findings = {name: Found() for name in shares}
    with tempfile.TemporaryDirectory(prefix="ups_jax-fuzz-") as folder:
        for name, size, number in rounds(args.count, shares):
            total, part = findings[name], _in_a_process(name, size, 1000 * args.seed + number, Path(folder))
            total.inputs, total.seconds = total.inputs + part.inputs, total.seconds + part.seconds
            total.codes += part.codes
            for kind, case in part.failed.items():
                if kind not in total.failed:
                    total.failed[kind] = case
                    args.failed.mkdir(parents=True, exist_ok=True)
                    path = args.failed / f"{name}-{hashlib.sha256(kind.encode()).hexdigest()[:8]}.json"
                    path.write_text(case.to_json())
                    print(f"{name}: {part.messages[kind]} ({path})", flush=True)
            if args.out is not None:
                args.out.write_text(json.dumps({key: _row(value) for key, value in findings.items()}, indent=1) + "\n")
    for name, total in findings.items():
        codes, failed = _row(total)["codes"], len(total.failed)
        print(f"{name:<12} {total.inputs:>6} inputs  {total.seconds:>7.1f} s  {codes}  {failed} failed")
    print(f"{'all':<12} {sum(total.inputs for total in findings.values()):>6} inputs")
    return 1 if any(total.failed for total in findings.values()) else 0


def _in_a_process(name: str, size: int, number: int, folder: Path) -> Found:
    """A part in a process of its own, which a library may take with it: its journal says at which input."""
    journal, start = folder / "journal.json", time.monotonic()
    line = [sys.executable, __file__, "--part", name, str(size), str(number), "--journal", str(journal)]
    environment = os.environ | {"FUZZ_BASES": str(folder / "bases")}
    ended = subprocess.run(line, env=environment, capture_output=True, text=True)
    said = json.loads(journal.read_text())
    failed = {kind: Case.from_json(text) for kind, text in said["failed"].items()}
    codes = collections.Counter({None if code == "None" else int(code): n for code, n in said["codes"].items()})
    part = Found(inputs=said["inputs"], codes=codes, failed=failed, messages=said["messages"])
    if "done" not in said:
        kind = f"a library ended the process with {ended.returncode}"
        part.failed[kind], part.messages[kind] = Case.from_json(said["now"]), f"{kind}: {ended.stderr[-300:]}"
    part.seconds = time.monotonic() - start
    return part


def _journal_entry(findings: Found, now: str = "") -> dict[str, Any]:
    codes = {str(code): count for code, count in findings.codes.items()}
    failed = {kind: case.to_json() for kind, case in findings.failed.items()}
    return {"inputs": findings.inputs, "codes": codes, "failed": failed, "messages": findings.messages, "now": now}


def _row(findings: Found) -> dict[str, object]:
    codes = {str(code): count for code, count in sorted(findings.codes.items(), key=lambda item: str(item[0]))}
    return {
        "inputs": findings.inputs,
        "seconds": round(findings.seconds, 1),
        "codes": codes,
        "failed": list(findings.failed),
    }


if __name__ == "__main__":
    sys.exit(main())
