"""What pruning leaves: zero kernels and acceleration (Table 4, Figure 5), scores (Figure 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mpt_fast.report import plots, text
from mpt_fast.report.document import Figure, Figures, Table
from mpt_fast.report.study_results import Part, Results, Run, accuracy, mean_spread, paired

PAPER_RATES = {0.7: 1.4, 0.9: 2.3, 0.95: 3.0}
"""Counted acceleration in Table 4 of Efficient-MPT, by the fraction pruned."""


def table4(results: Results) -> Part:
    """Counted and measured acceleration at the paper's sparsities."""
    rows, exceeds, close = [], True, []
    for (ratio,), runs in sorted(results.group("sparsity").items()):
        by = {run["settings"]["activation"]: run for run in runs}
        any_run = runs[0]
        ratios = {}
        for kind in ("relu", "binary"):
            if kind in by:
                first = by[kind]["measured"][0]
                ratios[kind] = first["ratio"]
                if first["ratio_p20"] <= PAPER_RATES[ratio]:
                    words = {"relu": "float", "binary": "binary"}
                    close.append(f"{text.percent(ratio, 0)} ({words[kind]})")
                spread = f"{first['ratio_p20']:.3g}–{first['ratio_p80']:.3g}"
                by[kind] = {"said": f"{text.ratio(first['ratio'])} ({spread})"}
        exceeds &= min(ratios.values()) > PAPER_RATES[ratio]
        rows.append(
            [
                text.percent(ratio, 0),
                text.percent(any_run["zero_fraction"]),
                f"{text.ratio(any_run['counted']['kernel_rate'])} "
                f"({text.ratio(PAPER_RATES[ratio])})",
                *(by[kind]["said"] if kind in by else text.MISSING for kind in ("relu", "binary")),
            ]
        )
    header = ["pruned", "zero kernels", "counted (paper)", "packed, float", "packed, binary"]
    table = Table(header, rows, "Acceleration, counted and clocked (20–80 %)")
    at = ", ".join(row[0] for row in rows)
    opening = (
        f"The measured packed speed-up exceeds the paper's counted rate at {at}"
        if exceeds
        else f"The measured packed speed-up does not exceed the paper's counted rate at all of {at}"
    )
    doubt = f" (medians; the 20th percentile does not at {', '.join(close)})" if close else ""
    return [table], (
        f"{opening}{doubt}. The counted rates here are those of masks without structure; the "
        "paper's, of trained masks, are higher."
    )


def figure5(results: Results) -> Part:
    """Zero kernels by layer at the highest sparsity, and how scores concentrate."""
    groups = sorted(results.group("sparsity", "power").items())
    rows = [
        [
            f"{text.percent(ratio, 0)}, p = {power:g}",
            accuracy(runs),
            f"{_share(_zero_kernels, runs)} ({text.percent(ratio**9)})",
            _share(_near_zero, runs),
        ]
        for (ratio, power), runs in groups
    ]
    header = ["pruned", "accuracy", "zero 3x3 kernels (by chance)", "scores near 0"]
    caption = "Near 0: importances below a hundredth of the layer's largest, mean over layers"
    highest = groups[-1][0][0]
    top = {power: runs for (ratio, power), runs in groups if ratio == highest}
    first = [runs[0] for runs in top.values()]
    figures = [_profile(first, highest), *(_histogram(run) for run in first)]
    return [Figures(figures), Table(header, rows, caption)], _zero_words(top, highest)


def _zero_words(top: Mapping[float, Sequence[Run]], sparsity: float) -> str:
    """Zero kernels and small scores by power at one sparsity, beside the paper's 67 %."""
    zero = " and ".join(f"{_share(_zero_kernels, runs)} (p = {p:g})" for p, runs in top.items())
    small = " and ".join(f"{_share(_near_zero, runs)} (p = {p:g})" for p, runs in top.items())
    reached = " and ".join(f"{accuracy(runs)} (p = {p:g})" for p, runs in top.items())
    words = (
        f"At {text.percent(sparsity, 0)} pruned, {zero} of the 3x3 kernels are zero; chance alone "
        f"gives {text.percent(sparsity**9)}, the paper reports 67 % of all kernels at 95 %. Scores "
        f"near zero: {small}. Accuracy: {reached}."
    )
    gained = paired(top[max(top)], top[min(top)], _near_zero)
    if len(top) == 1 or len(gained) < 2:
        return f"Not decided, too few runs. {words}"
    mean, spread = mean_spread(gained)
    if mean > spread:
        return f"Agrees that power-propagation drives scores towards zero. {words}"
    if mean < -spread:
        return f"Contradicts the paper: fewer scores are near zero with power-propagation. {words}"
    return f"Not seen at this size: the seeds differ by more than the powers do. {words}"


def _zero_kernels(run: Run) -> float:
    """The share of zero kernels among those of the convolutions."""
    convs = [x for x in run["kernels"]["layers"] if x["kind"] == "conv"]
    return float(sum(x["zero_kernels"] for x in convs) / sum(x["kernels"] for x in convs))


def _near_zero(run: Run) -> float:
    small = [float(x["below_percent"]) for x in run["histogram"].values()]
    return sum(small) / len(small)


def _share(value: Callable[[Run], float], runs: Sequence[Run]) -> str:
    """'66.1 ± 0.4 %' over the runs; a single run has no spread."""
    mean, spread = mean_spread([value(run) for run in runs])
    return f"{100 * mean:.1f} ± {100 * spread:.1f} %" if len(runs) > 1 else text.percent(mean)


def _power(run: Run) -> float:
    return float(run["settings"].get("power", 1.0))


def _profile(runs: Sequence[Run], sparsity: float) -> Figure:
    layers = runs[0]["kernels"]["layers"]
    convs = [x["name"] for x in layers if x["kind"] == "conv"]
    items = []
    for run, role in zip(runs, ("dense", "float"), strict=False):
        zero = {x["name"]: x["zero_fraction"] for x in run["kernels"]["layers"]}
        items.append((f"p = {_power(run):g}", [zero[name] for name in convs], role))
    svg = plots.profile(convs, items, "kernels without a weight")
    title = f"Zero kernels by layer, {text.percent(sparsity, 0)} pruned"
    return Figure(title, svg, f"{title}: bars per convolution for each power")


def _histogram(run: Run) -> Figure:
    name, found = _middle(run["histogram"])
    counts: Sequence[float] = found["counts"]
    total = sum(counts)
    centre = (len(counts) - 1) / 2
    x = [(index - centre) / centre for index in range(len(counts))]
    line = plots.Line(name, x, [count / total for count in counts], "float")
    svg = plots.lines([line], "score Ψ(s), largest = ±1", "share of the scores", percent=True)
    title = f"Scores of {name}, p = {_power(run):g}"
    return Figure(title, svg, f"{title}: share of the scores over 41 equal bins")


def _middle(histograms: Mapping[str, Any]) -> tuple[str, Any]:
    """The layer in the middle of the network's convolutions."""
    convs = [name for name in histograms if name.startswith("convs")]
    name = convs[len(convs) // 2]
    return name, histograms[name]
