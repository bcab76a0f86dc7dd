"""Which of the paper's orderings the accuracies of a study show, and which they leave open.

A difference of two methods' means over n seeds each is told from noise by Welch's test with
2 (n - 1) degrees of freedom at 95 %: it "holds" or is "reversed" beyond that, else "within noise".
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# Two-sided 95 % points of Student's t by degrees of freedom.
STUDENT = {2: 4.303, 4: 2.776, 6: 2.447, 8: 2.306, 10: 2.228, 18: 2.101}
# The claim, the method that should be better, and the other one.
CLAIMS = tuple(
    (f"{low} {sign} {high}, {kind}", f"{high} ({kind})", f"{low} ({kind})")
    for kind in ("ERK", "uniform")
    for low, sign, high in (("static", "<", "SET"), ("SET", "<=", "RigL"), ("static", "<", "RigL"))
) + tuple(
    (f"uniform <= ERK, {method}", f"{method} (ERK)", f"{method} (uniform)")
    for method in ("static", "SET", "RigL")
)


class Difference(NamedTuple):
    """mean: of the better less the worse, in points. margin: what noise explains at 95 %."""

    mean: float
    margin: float

    @property
    def verdict(self) -> str:
        """ "holds", "within noise" or "reversed"."""
        if abs(self.mean) <= self.margin:
            return "within noise"
        return "holds" if self.mean > 0 else "reversed"


def difference(better: Sequence[float], worse: Sequence[float]) -> Difference:
    """Of two methods' accuracies in [0, 1], one per seed; as many seeds each, at least two."""
    n = len(better)
    if n != len(worse) or 2 * (n - 1) not in STUDENT:
        raise ValueError(f"{n} and {len(worse)} seeds cannot be compared")
    error = math.sqrt((statistics.variance(better) + statistics.variance(worse)) / n)
    mean = statistics.mean(better) - statistics.mean(worse)
    return Difference(100 * mean, 100 * STUDENT[2 * (n - 1)] * error)


def table(runs: Mapping[tuple[str, str, float], list[dict[str, Any]]], study: str) -> list[str]:
    """The Markdown of one study: a row per claim, a column per sparsity."""
    sparsities = sorted({s for name, _, s in runs if name == study and s > 0})
    lines = [
        "| claim | " + " | ".join(f"{s:.0%} pruned" for s in sparsities) + " |",
        "|---|" + "---|" * len(sparsities),
    ]
    for claim, better, worse in CLAIMS:
        cells = []
        for s in sparsities:
            sides = [[r["accuracy"] for r in runs.get((study, m, s), [])] for m in (better, worse)]
            if min(map(len, sides)) < 2:
                cells.append("–")
                continue
            found = difference(*sides)
            cells.append(f"{found.mean:+.2f} ± {found.margin:.2f}, {found.verdict}")
        lines.append(f"| {claim} | " + " | ".join(cells) + " |")
    return [*lines, ""]
