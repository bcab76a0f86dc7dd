"""What the RigL studies' report makes of accuracies."""

from typing import Any

import pytest

from benchmarks.studies import rigl_order
from benchmarks.studies.rigl_report import MARKS, between_marks, mean_losses


def test_a_difference_by_hand() -> None:
    """Variances 1e-4 and 4e-4 over three seeds: error sqrt(5e-4 / 3), times 2.776 of 4 degrees."""
    found = rigl_order.difference([0.89, 0.90, 0.91], [0.82, 0.84, 0.86])
    assert found.mean == pytest.approx(6.0)
    assert found.margin == pytest.approx(100 * 2.776 * (5e-4 / 3) ** 0.5)
    assert found.verdict == "holds"


@pytest.mark.parametrize(
    ("shift", "verdict"), [(0.2, "holds"), (0.001, "within noise"), (-0.2, "reversed")]
)
def test_verdicts(shift: float, verdict: str) -> None:
    seeds = [0.70, 0.71, 0.72]
    assert rigl_order.difference([x + shift for x in seeds], seeds).verdict == verdict


def test_unequal_or_single_seeds_are_refused() -> None:
    for better in ([0.5], [0.5, 0.6]):
        with pytest.raises(ValueError, match="cannot be compared"):
            rigl_order.difference(better, [0.5])


def test_a_table_leaves_out_what_was_not_run() -> None:
    runs: dict[tuple[str, str, float], list[dict[str, Any]]] = {
        ("net", "static (ERK)", 0.9): [{"accuracy": x} for x in (0.70, 0.71, 0.72)],
        ("net", "SET (ERK)", 0.9): [{"accuracy": x} for x in (0.80, 0.81, 0.82)],
    }
    lines = rigl_order.table(runs, "net")
    assert lines[0] == "| claim | 90% pruned |"
    assert lines[2] == "| static < SET, ERK | +10.00 ± 2.27, holds |"
    assert lines[3] == "| SET <= RigL, ERK | – |"


def test_the_page_around_the_marks_stays() -> None:
    page = f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n"
    found = between_marks(page, ["## a", "b"])
    assert found == f"before\n{MARKS[0]}\n\n### a\nb\n{MARKS[1]}\nafter\n"
    assert between_marks(found, ["## a", "b"]) == found


def test_mean_losses() -> None:
    runs = [{"losses": [1.0, 0.5]}, {"losses": [2.0, 1.5]}]
    assert mean_losses(runs) == [1.5, 1.0]
