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
    """Of one target: how many inputs there were, their exit codes, and the inputs that were not answered rightly."""

    inputs: int = 0
    seconds: float = 0.0
    codes: collections.Counter[int | None] = field(default_factory=collections.Counter)
    failed: dict[str, Case] = field(default_factory=dict)
    told: dict[str, str] = field(default_factory=dict)


def fuzz(target: str, count: int, number: int, journal: Path | None = None) -> Found:
    """`count` inputs of a target; `number` decides which. Of inputs that fail alike the smallest is kept; the `journal`
    says what was found up to the input that is at work."""
    targets.prepare(target)
    found, start = Found(), time.monotonic()

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(targets.TARGETS[target])
    def each(case: Case) -> None:
        found.inputs += 1
        if journal is not None:
            journal.write_text(json.dumps(_told(found, case.to_json())))
        wrong, code = check(case)
        found.codes[code] += 1
        if wrong is not None:
            kind = wrong.split(": ")[0]
            known = found.failed.get(kind)
            if known is None or len(case.to_json()) < len(known.to_json()):
                found.failed[kind], found.told[kind] = case, wrong

    each()
    found.seconds = time.monotonic() - start
    return found


def check(case: Case) -> tuple[str | None, int | None]:
    """What is wrong with the answer to a case, and its exit code."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        given_answer = answer(case, Path(folder), shared())
        wrong = fault(case, given_answer) or targets.wrong_result(case, given_answer, Path(folder))
    return wrong, given_answer.code


def rounds(count: int, shares: Mapping[str, int], each: int = 200) -> Iterator[tuple[str, int, int]]:
    """Target, number of inputs and seed of each part, until there are `count` inputs in these shares."""
    total = sum(shares.values())
    left = {name: round(count * share / total) for name, share in shares.items()}
    number = 0
    while any(left.values()):
        for name in left:
            size = min(each, left[name])
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
        args.journal.write_text(json.dumps({"done": True} | _told(part)))
        return 0
    shares = {name: share for name, share in targets.SHARES.items() if not args.only or name in args.only}
    found = {name: Found() for name in shares}
    with tempfile.TemporaryDirectory(prefix="ups_jax-fuzz-") as folder:
        for name, size, number in rounds(args.count, shares):
            own, part = found[name], _in_a_process(name, size, 1000 * args.seed + number, Path(folder))
            own.inputs, own.seconds = own.inputs + part.inputs, own.seconds + part.seconds
            own.codes += part.codes
            for kind, case in part.failed.items():
                if kind not in own.failed:
                    own.failed[kind] = case
                    args.failed.mkdir(parents=True, exist_ok=True)
                    path = args.failed / f"{name}-{hashlib.sha256(kind.encode()).hexdigest()[:8]}.json"
                    path.write_text(case.to_json())
                    print(f"{name}: {part.told[kind]} ({path})", flush=True)
            if args.out is not None:
                args.out.write_text(json.dumps({key: _row(value) for key, value in found.items()}, indent=1) + "\n")
    for name, own in found.items():
        print(
            f"{name:<12} {own.inputs:>6} inputs  {own.seconds:>7.1f} s  {_row(own)['codes']}  {len(own.failed)} failed"
        )
    print(f"{'all':<12} {sum(own.inputs for own in found.values()):>6} inputs")
    return 1 if any(own.failed for own in found.values()) else 0


def _in_a_process(name: str, size: int, number: int, folder: Path) -> Found:
    """A part in a process of its own, which a library may take with it: its journal says at which input."""
    journal, start = folder / "journal.json", time.monotonic()
    line = [sys.executable, __file__, "--part", name, str(size), str(number), "--journal", str(journal)]
    environment = os.environ | {"FUZZ_BASES": str(folder / "bases")}
    ended = subprocess.run(line, env=environment, capture_output=True, text=True)
    said = json.loads(journal.read_text())
    failed = {kind: Case.from_json(text) for kind, text in said["failed"].items()}
    codes = collections.Counter({None if code == "None" else int(code): n for code, n in said["codes"].items()})
    part = Found(inputs=said["inputs"], codes=codes, failed=failed, told=said["told"])
    if "done" not in said:
        kind = f"a library ended the process with {ended.returncode}"
        part.failed[kind], part.told[kind] = Case.from_json(said["now"]), f"{kind}: {ended.stderr[-300:]}"
    part.seconds = time.monotonic() - start
    return part


def _told(found: Found, now: str = "") -> dict[str, Any]:
    codes = {str(code): count for code, count in found.codes.items()}
    failed = {kind: case.to_json() for kind, case in found.failed.items()}
    return {"inputs": found.inputs, "codes": codes, "failed": failed, "told": found.told, "now": now}


def _row(own: Found) -> dict[str, object]:
    codes = {str(code): count for code, count in sorted(own.codes.items(), key=lambda item: str(item[0]))}
    return {"inputs": own.inputs, "seconds": round(own.seconds, 1), "codes": codes, "failed": list(own.failed)}


if __name__ == "__main__":
    sys.exit(main())
