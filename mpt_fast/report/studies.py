"""The page of the studies: each of the papers' figures and tables beside what was measured here.

`document` makes it of a folder of results. A study without results is listed as not run, with its
command.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mpt_fast.report import text
from mpt_fast.report.document import Block, Code, Document, Paragraph, Section, Table
from mpt_fast.report.study_parts import RENDERERS
from mpt_fast.report.study_results import Results


def document(folder: Path, declared: Mapping[str, Mapping[str, Any]] | None = None) -> Document:
    """The page of all results in `folder`; `declared` are studies that may not have run yet.

    Raises ValueError if there is neither a result nor a declared study.
    """
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
