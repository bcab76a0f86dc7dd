"""benchmarks/RESULTS.md from benchmarks/results/cpu.json."""

import statistics
from typing import Any

Case = dict[str, Any]

HEAD = """# CPU results

Written by `make bench` (`python -m benchmarks.run`) from `benchmarks/results/cpu.json`; not edited
by hand. A cell is how many times faster the packed or selected side is: the ratio of medians of
runs taken by turns in one process with equal threads, and in brackets the 20th to 80th percentile
of the rounds' ratios. Baselines are eager PyTorch at the faster of its settings. Clocks of shared
machines are noisy: read the spread.
"""


def render(cases: dict[str, Case]) -> str:
    """The whole page: one table per `table`, in the order of first appearance."""
    tables: dict[str, list[Case]] = {}
    for case in cases.values():
        tables.setdefault(case["table"], []).append(case)
    parts = [HEAD]
    for title in sorted(tables):
        parts.append(_table(title, tables[title]))
    return "\n".join(parts)


def _table(title: str, cases: list[Case]) -> str:
    columns = list(dict.fromkeys(case["column"] for case in sorted(cases, key=_column_order)))
    rows = list(dict.fromkeys(case["row"] for case in sorted(cases, key=_row_order)))
    cells = {(case["row"], case["column"]): case for case in cases}
    lines = [
        f"## {title}",
        "",
        "| | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for row in rows:
        texts = [_cell(cells.get((row, column))) for column in columns]
        lines.append(f"| {row} | " + " | ".join(texts) + " |")
    # A mean over rows says something only where all are measured against one kind of baseline;
    # what follows the comma is the setting of it that was fastest.
    kinds = {case["baseline"].split(",")[0] for case in cases}
    ratios_only = all(case.get("format", "ratio") == "ratio" for case in cases)
    if len(rows) > 1 and len(kinds) == 1 and ratios_only:
        means = []
        for column in columns:
            ratios = [cells[row, column]["ratio"] for row in rows if (row, column) in cells]
            means.append(f"{statistics.geometric_mean(ratios):.3g} ×")
        lines.append("| geometric mean | " + " | ".join(means) + " |")
    return "\n".join([*lines, "", _footnote(cases), ""])


def _cell(case: Case | None) -> str:
    if case is None:
        return "not measured"
    if case.get("format") == "share":
        return f"{100 / case['ratio']:.2g} % of {case['baseline_seconds'] * 1e3:.0f} ms"
    return f"{case['ratio']:.3g} × ({case['ratio_p20']:.3g}–{case['ratio_p80']:.3g})"


def _footnote(cases: list[Case]) -> str:
    machines = {
        f"{c['machine']['cpu']}, {c['machine']['cores']} cores, torch {c['machine']['torch']}, "
        f"Python {c['machine']['python']}"
        for c in cases
    }
    baselines = sorted({case["baseline"] for case in cases})
    threads = sorted({case["threads"] for case in cases})
    dates = sorted({case["date"] for case in cases})
    span = " to ".join(dict.fromkeys([dates[0], dates[-1]]))
    return (
        f"Against: {'; '.join(baselines)}. Threads: {', '.join(map(str, threads))}. "
        f"Measured {span} on {'; '.join(sorted(machines))}."
    )


def _column_order(case: Case) -> tuple[float, str]:
    digits = "".join(c for c in case["column"] if c.isdigit())
    return (float(digits) if digits else 0.0, case["column"])


def _row_order(case: Case) -> tuple[float, str]:
    return (0.0, case["row"]) if not case["row"][0].isdigit() else (_number(case["row"]), "")


def _number(text: str) -> float:
    digits = ""
    for character in text:
        if not character.isdigit():
            break
        digits += character
    return float(digits)
