"""The one way a case is measured: check, then candidate and baseline by turns, then record."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest
import torch

from mpt_fast.measure import Comparison, compare, machine


class Record(Protocol):
    """Signature of the `record` fixture."""

    def __call__(
        self,
        table: str,
        row: str,
        column: str,
        comparison: Comparison,
        candidate: Callable[[], object],
        *,
        baseline_name: str,
        **facts: Any,
    ) -> None: ...


class Measure(Protocol):
    """Signature of the `measured` fixture."""

    def __call__(
        self,
        table: str,
        row: str,
        column: str,
        candidate: Callable[[], object],
        baseline: Callable[[], object],
        *,
        check: Callable[[], None],
        baseline_name: str,
        seconds: float = 4.0,
        **facts: Any,
    ) -> Comparison: ...


@pytest.fixture(params=[1], ids=["1-thread"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Threads of both sides; PyTorch's own setting is restored afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def record(benchmark: Any, threads: int) -> Record:
    """Records a comparison as cell (row, column) of a table of RESULTS.md.

    The ratio and its spread go to `extra_info`; pytest-benchmark's own statistics are the
    candidate's alone.
    """

    def run(
        table: str,
        row: str,
        column: str,
        comparison: Comparison,
        candidate: Callable[[], object],
        *,
        baseline_name: str,
        **facts: Any,
    ) -> None:
        benchmark.extra_info.update(
            table=table,
            row=row,
            column=column,
            baseline=baseline_name,
            threads=threads,
            machine=machine(),
            ratio=comparison.ratio,
            ratio_p20=comparison.ratio_p20,
            ratio_p80=comparison.ratio_p80,
            candidate_seconds=comparison.candidate.median,
            baseline_seconds=comparison.baseline.median,
            rounds=len(comparison.candidate.samples),
            **facts,
        )
        benchmark.pedantic(candidate, rounds=5, iterations=1, warmup_rounds=0)

    return run


@pytest.fixture
def measured(record: Record) -> Measure:
    """Compares two callables and records the result.

    `check` runs first and raises on a wrong result: a wrong candidate is never timed.
    """

    def run(
        table: str,
        row: str,
        column: str,
        candidate: Callable[[], object],
        baseline: Callable[[], object],
        *,
        check: Callable[[], None],
        baseline_name: str,
        seconds: float = 4.0,
        **facts: Any,
    ) -> Comparison:
        check()
        comparison = compare(candidate, baseline, repeats=50, seconds=seconds)
        record(table, row, column, comparison, candidate, baseline_name=baseline_name, **facts)
        return comparison

    return run
