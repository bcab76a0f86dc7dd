"""The page of the studies: each of the papers' figures and tables beside what was measured here.

`Results.load` reads a folder of the JSON files that `python -m benchmarks.studies` writes;
`document` makes the page. A study without results is listed as not run, with its command.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpt_fast.report import text
from mpt_fast.report.document import Block, Code, Document, Paragraph, Section, Table

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


def document(folder: Path, declared: Mapping[str, Mapping[str, Any]] | None = None) -> Document:
    """The page of all results in `folder`; `declared` are studies that may not have run yet.

    Raises ValueError if there is neither a result nor a declared study.
    """
    from mpt_fast.report.study_parts import RENDERERS

    found = [Results.load(path) for path in sorted(folder.glob("*.json"))]
    missing = {
        name: study
        for name, study in (declared or {}).items()
        if name not in [results.name for results in found]
    }
    if not found and not missing:
        raise ValueError(f"{folder} holds no study's results; run python -m benchmarks.studies")
    order = list(RENDERERS)
    found.sort(key=lambda r: order.index(_base(r.name)) if _base(r.name) in order else len(order))
    sections, summary = [], []
    for results in found:
        renderer = RENDERERS.get(_base(results.name))
        if renderer is None:
            raise ValueError(f"{results.name}: the report has no section for this study")
        blocks, verdict = renderer(results)
        sections.append(_section(results, blocks, verdict))
        summary.append([str(results.declared["source"]), verdict])
    summary += [[str(study["source"]), "Not run."] for study in missing.values()]
    overview = Section(
        "In short",
        [Table(["paper", "here"], summary, left=frozenset({1}))],
    )
    tail = [_not_run(missing)] if missing else []
    return Document(
        title="Multi-prize tickets: two papers, reproduced",
        lead="Each figure and table of the two papers on multi-prize tickets beside what mpt_fast "
        "measures. The runs are small: every section says how small. Where they contradict the "
        "paper, it says so, with the spread over the seeds.",
        sections=[overview, *sections, *tail],
        footer=_footer(found),
    )


def _base(name: str) -> str:
    """figure1-cifar10 is rendered as figure1."""
    return name.split("-")[0]


def _section(results: Results, blocks: Sequence[Block], verdict: str) -> Section:
    declared = results.declared
    note = "" if len(results.runs) == results.planned else f" Unfinished: {results.done}."
    return Section(
        f"{declared['title']} ({declared['source']})",
        [
            Paragraph(f"The paper: {declared['claim'].strip()}"),
            Paragraph(f"Here: {declared['size'].strip()}{note}"),
            *blocks,
            Paragraph(f"Verdict: {verdict}"),
            Code(results.command),
        ],
    )


def _not_run(missing: Mapping[str, Mapping[str, Any]]) -> Section:
    rows = [
        [str(study["source"]), str(study["title"]), f"python -m benchmarks.studies {name}"]
        for name, study in missing.items()
    ]
    return Section(
        "Not run",
        [Table(["paper", "study", "command"], rows, left=frozenset({1, 2}))],
        lead="Declared, and too long for the machine that made this page; one command each.",
    )


def _footer(found: Iterable[Results]) -> str:
    used = [
        m for r in found for m in (r.machine, *(x["machine"] for x in r.runs if "machine" in x))
    ]
    machines = {
        f"{m['cpu']}, {text.threads(m['threads'])}, torch {m['torch']}, mpt_fast {m['mpt_fast']}"
        for m in used
    }
    return "Machine: " + "; ".join(sorted(machines))


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
