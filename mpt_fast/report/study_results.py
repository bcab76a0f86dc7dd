"""Results of the studies, and how their accuracies are written.

`Results.load` reads one of the JSON files that `python -m benchmarks.studies` writes.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpt_fast.report import text
from mpt_fast.report.document import Block

SCHEMA = "mpt_fast study"
Run = Mapping[str, Any]


@dataclass(frozen=True)
class Results:
    """One study's results file: what was declared, where it ran, and its runs."""

    name: str
    command: str
    declared: Mapping[str, Any]
    planned: int
    machine: Mapping[str, Any]
    runs: Sequence[Run]

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read a results file; ValueError naming it if it is something else."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data.pop("schema") != SCHEMA:
                raise KeyError("schema")
            return cls(**data)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a study's results ({error}); run the study") from None

    @property
    def done(self) -> str:
        """How many of the declared runs there are."""
        return f"{len(self.runs)} of {self.planned} runs"

    def group(self, *keys: str) -> dict[tuple[Any, ...], list[Run]]:
        """Runs by the values of these settings, in the order in which they first occur."""
        groups: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
        for run in self.runs:
            groups[tuple(run["settings"].get(key) for key in keys)].append(run)
        return dict(groups)


Part = tuple[Sequence[Block], str]
"""What a study shows, and its sentence on agreement or disagreement with the paper."""
Renderer = Callable[[Results], Part]


def mean_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 of a single value)."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return statistics.fmean(values), spread


def accuracy(runs: Sequence[Run]) -> str:
    """'85.31 ± 0.22 %' over the runs' seeds; a single run has no spread."""
    mean, spread = mean_spread([run["accuracy"] for run in runs])
    return f"{100 * mean:.2f} ± {100 * spread:.2f} %" if len(runs) > 1 else text.percent(mean, 2)


def points(values: Sequence[float], sign: bool = True) -> str:
    """Differences of accuracy in per cent points: '+1.23 ± 0.10', or '+1.23 (one seed)'."""
    mean, spread = mean_spread(values)
    shown = f"{100 * mean:+.2f}" if sign else f"{100 * mean:.2f}"
    return f"{shown} ± {100 * spread:.2f}" if len(values) > 1 else f"{shown} (one seed)"


def _accuracy(run: Run) -> float:
    return float(run["accuracy"])


def paired(
    first: Sequence[Run], second: Sequence[Run], value: Callable[[Run], float] = _accuracy
) -> list[float]:
    """Differences, first minus second, seed by seed."""
    other = {run["settings"]["seed"]: value(run) for run in second}
    return [
        value(run) - other[run["settings"]["seed"]]
        for run in first
        if run["settings"]["seed"] in other
    ]
