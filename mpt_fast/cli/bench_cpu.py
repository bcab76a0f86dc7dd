"""`mpt-fast bench cpu`: the engine against dense PyTorch, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from mpt_fast.cli.output import Output, table
from mpt_fast.report import text


def run(
    out: Output,
    mode: str,
    threads: int,
    batches: Sequence[int] | None,
    sparsities: Sequence[float] | None,
) -> None:
    """Runs the cases of `mode` and prints one table per kind of case."""
    from mpt_fast import benchmark
    from mpt_fast.benchmark.run import run_case
    from mpt_fast.measure import machine

    if mode not in benchmark.MODES:
        raise typer.BadParameter(
            f"{mode!r} is none of {', '.join(benchmark.MODES)}", param_hint="'--mode'"
        )
    for sparsity in sparsities or ():
        if not 0 <= sparsity < 1:
            raise typer.BadParameter(f"{sparsity} is outside [0, 1)", param_hint="'--sparsity'")
    chosen = benchmark.MODES[mode]
    cases = benchmark.cases(chosen, threads=threads, batches=batches, sparsities=sparsities)
    cells: list[dict[str, Any]] = []
    with out.progress() as progress:
        for case in progress.track(cases, description="Timing"):
            progress.console.print(case.key, highlight=False)
            cells += run_case(case, chosen)
    out.result(
        {"mode": mode, "threads": threads, "machine": machine(), "cells": cells},
        *tables(cells),
        "Ratios of medians to PyTorch fp32 eager at its best setting, by turns in one process; "
        f"{text.threads(threads)}. Brackets: 20th to 80th percentile of the rounds.",
    )


def tables(cells: Sequence[dict[str, Any]]) -> list[Any]:
    """One rich table per `table` of the cells: rows by sparsity, other engines below their row."""
    made = []
    for title in dict.fromkeys(cell["table"] for cell in cells):
        own = [cell for cell in cells if cell["table"] == title]
        columns = list(dict.fromkeys(cell["column"] for cell in own))
        rows: list[list[str]] = []
        for row in dict.fromkeys(cell["row"] for cell in own):
            here = {cell["column"]: cell for cell in own if cell["row"] == row}
            first = next(iter(here.values()))
            ratios = [_ratio(here[column]) if column in here else "" for column in columns]
            rows.append([row, text.duration(first["baseline_seconds"]), *ratios])
            for name, seconds in first.get("beside", {}).items():
                ratio = (
                    text.ratio(first["baseline_seconds"] / seconds)
                    if isinstance(seconds, float)
                    else f"– {seconds}"
                )
                rows.append([f"  {name}, dense: {ratio}", *[""] * (len(columns) + 1)])
        made.append(table(["", "PyTorch", *(f"{c} pruned" for c in columns)], rows, title=title))
    return made


def _ratio(cell: dict[str, Any]) -> str:
    low, high = text.significant(cell["ratio_p20"]), text.significant(cell["ratio_p80"])
    return f"{text.ratio(cell['ratio'])} ({low} to {high})"
