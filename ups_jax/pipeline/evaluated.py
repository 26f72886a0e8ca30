"""A candidate's evaluation as the gates see it: its numbers, over the seeds, and what it may be compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ups_jax.errors import DataError
from ups_jax.files import read_json
from ups_jax.pipeline.keys import digest_of
from ups_jax.pipeline.measures import METRIC_VERSION, mean_of, measures, trivial

# The two evaluations, by the names of their steps and of their sections in `pipeline`.
SECTIONS = {"small_eval": "small", "full_eval": "full"}


@dataclass(frozen=True)
class Evaluated:
    """The evaluation JSON of one or more seeds of one configuration."""

    results: tuple[Mapping[str, Any], ...]

    @staticmethod
    def read(files: Sequence[Path]) -> Evaluated:
        """From files; DataError where one cannot be read or its seeds were not measured on the same trajectories."""
        try:
            results = tuple(read_json(file) for file in files)
            found = Evaluated(results)
            protocols = {protocol(result) for result in results}
            # Worked out and kept here, where a file that lacks them can be named.
            _ = found.numbers, found.trivial
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            names = ", ".join(map(str, files))
            raise DataError(f"{names}: is no evaluation that can be compared ({error!r}); evaluate again") from None
        if len(protocols) != 1:
            raise DataError(f"{files[0]}: the seeds were evaluated on other trajectories; use --redo-full-eval")
        return found

    @cached_property
    def numbers(self) -> dict[str, float]:
        """Every measured number, mean over the seeds."""
        return mean_of(measures(result) for result in self.results)

    @cached_property
    def trivial(self) -> dict[str, float]:
        """The same of what needs no training."""
        return trivial(self.results[0])

    @property
    def protocol(self) -> str:
        return protocol(self.results[0])

    @property
    def task(self) -> str:
        """The names of the tasks."""
        return "+".join(sorted(self.results[0]["metrics"]))

    @property
    def meta(self) -> Mapping[str, Any]:
        return self.results[0]["meta"]

    @property
    def checkpoint(self) -> str:
        """The digest of the evaluated checkpoint; of several seeds' one of theirs."""
        digests = [str(result["meta"]["checkpoint_digest"]) for result in self.results]
        return digests[0] if len(digests) == 1 else digest_of(sorted(digests))

    @property
    def checkpoints(self) -> frozenset[str]:
        """The digests of the evaluated checkpoints, one of each seed."""
        return frozenset(str(result["meta"]["checkpoint_digest"]) for result in self.results)

    @property
    def device(self) -> str:
        return str(self.meta["device"])


def protocol(result: Mapping[str, Any]) -> str:
    """Twelve hex digits over what decides whether two evaluations may be compared: the tasks, the split, what is to be
    predicted and how far, and the version of the metrics."""
    meta = result["meta"]
    data = meta["data"]
    facts = [sorted(result["metrics"]), data["split"], data["truth"], meta["horizon"], METRIC_VERSION]
    return digest_of(facts)[:12]
