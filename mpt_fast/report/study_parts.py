"""One renderer per study: its figure or table, and the sentence that compares it with the paper."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mpt_fast.report import plots, text
from mpt_fast.report.document import Block, Figure, Figures, Table
from mpt_fast.report.study_results import (
    Part,
    Renderer,
    Results,
    Run,
    accuracy,
    mean_spread,
    paired,
    points,
)
from mpt_fast.report.study_zeros import figure5, table4

_LINE_ROLES = ("dense", "float", "binary", "bound")
PAPER_TIMES = {1.0: (24.3, 21.5), 2.0: (25.4, 22.3), 3.0: (26.8, 24.5)}
"""Seconds per epoch by sorting and by thresholding in Table 2 of Efficient-MPT, by power."""
_CLOSE = 0.01


def figure1(results: Results) -> Part:
    """Accuracy over the pruning ratio, a line per power, each at its better learning rate."""
    figures: list[Figure] = []
    blocks: list[Block] = []
    gains: list[Gain] = []
    for (model,), runs in results.group("model").items():
        best = _best_rates(runs)
        powers = sorted({run["settings"]["power"] for run in runs})
        ratios = sorted({run["settings"]["sparsity"] for run in runs})
        lines = [
            plots.Line(
                "p = 1, the original" if power == 1 else f"p = {power:g}",
                [r for r in ratios if (power, r) in best],
                [_mean(best[power, r]) for r in ratios if (power, r) in best],
                _LINE_ROLES[index % len(_LINE_ROLES)],
                dashed=power == 1,
            )
            for index, power in enumerate(powers) if any((power, r) in best for r in ratios)
        ]  # fmt: skip
        svg = plots.lines(lines, "pruned", "test accuracy", percent=True, x_percent=True)
        figures.append(Figure(model, svg, f"Accuracy of {model} over the pruning ratio by power"))
        rows = [
            [
                f"{text.percent(ratio, 0)}, p = {power:g}",
                accuracy(best[power, ratio]),
                f"{best[power, ratio][0]['settings']['lr']:g}",
                _against(best, power, ratio),
            ]
            if (power, ratio) in best
            else [f"{text.percent(ratio, 0)}, p = {power:g}", *_diverged(runs, power, ratio)]
            for ratio in ratios
            for power in powers
        ]
        caption = f"{model}, mean ± deviation over seeds; differences are paired by seed"
        header = ["pruned, power", "accuracy", "lr", "against p = 1"]
        blocks.append(Table(header, rows, caption))
        found = [_gain(model, best, r) for r in ratios if (1.0, r) in best]
        gains += [gain for gain in found if gain is not None]
    below = [gain for gain in gains if gain[1] < 0.5]
    above = [gain for gain in gains if gain[1] >= 0.5]
    verdict = (
        f"Below 50 % pruned: {_gain_words(below)}. Above, where the paper sees no difference: "
        f"{_gain_words(above)}."
    )
    return [Figures(figures), *blocks], f"{_judge_gains(below)} {verdict}"


def _against(best: Mapping[tuple[float, float], Sequence[Run]], power: float, ratio: float) -> str:
    differences = paired(best[power, ratio], best.get((1.0, ratio), []))
    return points(differences) if power != 1 and differences else text.MISSING


def _mean(runs: Sequence[Run]) -> float:
    return mean_spread([run["accuracy"] for run in runs])[0]


def _best_rates(runs: Sequence[Run]) -> dict[tuple[float, float], list[Run]]:
    """(power, ratio) -> its runs at the learning rate of highest mean accuracy, over all seeds.

    A rate at which any seed diverged is not chosen.
    """
    cells: dict[tuple[float, float], dict[float, list[Run]]] = {}
    for run in runs:
        s = run["settings"]
        cells.setdefault((s["power"], s["sparsity"]), {}).setdefault(s["lr"], []).append(run)
    whole = {
        key: [found for found in rates.values() if not any("diverged" in run for run in found)]
        for key, rates in cells.items()
    }
    return {key: max(rates, key=_mean) for key, rates in whole.items() if rates}


def _diverged(runs: Sequence[Run], power: float, ratio: float) -> list[str]:
    at = [
        run
        for run in runs
        if (run["settings"]["power"], run["settings"]["sparsity"]) == (power, ratio)
    ]
    if not at:
        return [text.MISSING] * 3
    stopped = sum("diverged" in run for run in at)
    rates = sorted({run["settings"]["lr"] for run in at})
    tried = ", ".join(f"{rate:g}" for rate in rates)
    return [f"diverged in {stopped} of {len(at)} runs", tried, text.MISSING]


Gain = tuple[str, float, float, list[float]]
"""(model, ratio, power, differences to p = 1 seed by seed) of the best power above 1."""


def _gain(
    model: str, best: Mapping[tuple[float, float], Sequence[Run]], ratio: float
) -> Gain | None:
    found = [
        (power, paired(runs, best[1.0, ratio]))
        for (power, at), runs in best.items()
        if at == ratio and power > 1
    ]
    found = [(power, differences) for power, differences in found if differences]
    found = [gain for gain in found if len(gain[1]) > 1] or found
    if not found:
        return None
    power, differences = max(found, key=lambda gain: mean_spread(gain[1])[0])
    return model, ratio, power, differences


def _gain_words(gains: Sequence[Gain]) -> str:
    return (
        "; ".join(
            f"{model} at {100 * ratio:.0f} %: best p > 1 is {power:g}, {points(differences)} points"
            " against p = 1"
            for model, ratio, power, differences in gains
        )
        or "no runs"
    )


def _judge_gains(gains: Sequence[Gain]) -> str:
    spreads = [mean_spread(differences) for *_, differences in gains if len(differences) > 1]
    if not spreads:
        return "Not decided: too few seeds."
    if all(mean > spread for mean, spread in spreads):
        return (
            "Agrees with the paper: power-propagation is better below 50 % by more than a standard "
            "deviation of the seeds."
        )
    if all(mean < -spread for mean, spread in spreads):
        return "Contradicts the paper: power-propagation is worse below 50 %."
    if any(mean > spread for mean, spread in spreads):
        return "Agrees in part: below 50 % the gain is not above the seeds' deviation everywhere."
    return "Not seen at this size: below 50 % no gain is above the seeds' deviation."


def twins(results: Results) -> Part:
    """Tickets of both activations beside their dense twins, over width or depth."""
    axis = "width" if any("width" in run["settings"] for run in results.runs) else "model"
    groups = sorted((value, runs) for (value,), runs in results.group(axis).items())
    rows: list[list[str]] = []
    gaps: dict[Pair, list[tuple[str, list[float]]]] = {}
    for value, runs in groups:
        label = f"width {value:g}" if axis == "width" else str(value)
        for pair in _PAIRS:
            mine, dense = _sides(runs, pair)
            own = paired(dense, mine)
            if not own:
                continue
            gap = points(own, sign=False)
            rows.append([f"{label}, {_NAMES[pair]}", accuracy(mine), accuracy(dense), gap])
            if len(own) > 1:
                gaps.setdefault(pair, []).append((label, own))
    if not rows:
        return [], "Not decided: no ticket has its twin yet."
    table = Table(
        ["network", "ticket", "dense twin", "gap, points"],
        rows,
        "Test accuracy after the last epoch, mean ± deviation over seeds; gaps are paired by seed, "
        "positive where the dense twin is better",
    )
    if not gaps:
        return [table], "Not decided: too few seeds."
    kinds = dict.fromkeys(kind for (kind, _), found in gaps.items() if len(found) > 1)
    figures = [Figures([_over_size(axis, groups, kind) for kind in kinds])] if kinds else []
    said = [_closeness(pair, found) for pair, found in gaps.items()]
    near = sum(close for close, _ in said)
    if near == len(said):
        opening = "Agrees with the paper"
    else:
        opening = "Agrees in part" if near else "Not reached at this size"
    words = "; ".join(words for _, words in said)
    return [*figures, table], f"{opening}: {words}. Gaps are dense less ticket."


Pair = tuple[str, str]
"""(activation of the ticket, activation of the dense twin)."""
_PAIRS: tuple[Pair, ...] = (("relu", "relu"), ("binary", "relu"), ("binary", "binary"))
_NAMES: dict[Pair, str] = {
    ("relu", "relu"): "MPT-1/32",
    ("binary", "relu"): "MPT-1/1",
    ("binary", "binary"): "MPT-1/1, signs in both",
}


def _sides(runs: Sequence[Run], pair: Pair) -> tuple[list[Run], list[Run]]:
    """The tickets of a pair and their twins; a dense network keeps its signs as biprop's does."""
    kind, twin = pair
    mine = [r for r in runs if not _dense(r) and r["settings"]["activation"] == kind]
    dense = [r for r in runs if _dense(r) and _signs(r) == (twin == "binary")]
    return mine, [r for r in dense if _signs(r) or r["settings"].get("activation", kind) == kind]


def _signs(run: Run) -> bool:
    return run["settings"].get("compat") == "biprop"


def _over_size(axis: str, groups: Sequence[tuple[Any, Sequence[Run]]], kind: str) -> Figure:
    """Accuracy of the tickets of one activation and of their twins over width or depth."""
    sides: dict[str, list[tuple[float, float]]] = {}
    for value, runs in groups:
        x = float(value) if axis == "width" else float(str(value).removeprefix("conv"))
        for pair in _PAIRS:
            mine, dense = _sides(runs, pair)
            if pair[0] != kind or not mine or not dense:
                continue
            twin = "dense, signs" if pair[1] == "binary" else "dense, ReLU"
            sides.setdefault(_NAMES[kind, "relu"], []).append((x, _mean(mine)))
            sides.setdefault(twin, []).append((x, _mean(dense)))
    roles = {"dense, ReLU": "dense", "dense, signs": "bound"}
    ticket = "float" if kind == "relu" else "binary"
    lines = [
        plots.Line(name, *_coordinates(at), roles.get(name, ticket), dashed=name in roles)
        for name, at in sides.items()
    ]
    title = _NAMES[kind, "relu"]
    words = "width" if axis == "width" else "convolutions"
    svg = plots.lines(lines, words, "test accuracy", percent=True)
    return Figure(title, svg, f"Accuracy of {title} and its dense twins over {words}")


def _coordinates(at: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    once = dict.fromkeys(at)
    return [x for x, _ in once], [y for _, y in once]


def _closeness(pair: Pair, gaps: Sequence[tuple[str, list[float]]]) -> tuple[bool, str]:
    """Whether a gap is within 1 %, and words: the smallest gap, and those at both ends."""
    label, least = min(gaps, key=lambda gap: mean_spread(gap[1])[0])
    close = mean_spread(least)[0] <= _CLOSE
    twin = "twin with signs too" if pair[1] == "binary" else "twin"
    name = _NAMES[pair].split(",")[0]
    words = (
        f"{name} is {'' if close else 'not '}within 1 % of its dense {twin} "
        f"({'' if close else 'nearest at '}{label}: {points(least, sign=False)} points)"
    )
    (first, at_first), (last, at_last) = gaps[0], gaps[-1]
    if first == last:
        return close, words
    both = f"{points(at_first, sign=False)} at {first}, {points(at_last, sign=False)} at {last}"
    return close, f"{words}; the gap is {both}"


def _dense(run: Run) -> bool:
    return bool(run["settings"].get("dense"))


def finetuning(results: Results) -> Part:
    """Change of accuracy by fine-tuning: best settings first, and the means over the grid."""
    cells = sorted(
        ((key, runs, [_change(run) for run in runs])
         for key, runs in results.group(*_FACTORS).items()),
        key=lambda cell: -mean_spread(cell[2])[0],
    )  # fmt: skip
    rows = [[_setting(key), accuracy(runs), points(changes)] for key, runs, changes in cells[:12]]
    start = {run["settings"]["seed"]: run["ticket_accuracy"] for run in results.runs}
    before = points(list(start.values()), sign=False)
    shown = f"the best {len(rows)} of {len(cells)} settings" if len(cells) > len(rows) else "all"
    caption = f"Tickets before fine-tuning: {before} %; {shown}; changes are paired by seed"
    blocks: list[Block] = [Table(["setting", "accuracy", "change, points"], rows, caption)]
    if len(cells) > len(rows):
        blocks.append(_means(results))
    else:
        blocks.insert(0, Figures([_over_rates(results)]))
    key, _, changes = cells[0]
    mean, spread = mean_spread(changes)
    unfinished = len(results.runs) < results.planned
    if unfinished:
        helps = f"Not decided, {results.done}"
    elif len(changes) < 2:
        helps = "Not decided, one seed"
    elif mean > spread:
        helps = "Agrees that fine-tuning helps"
    else:
        helps = "No clear gain at this size"
    same = "as in the paper" if key[0] == "last" else "the paper's best is the last layer"
    if unfinished:
        same = "the paper's best has not run yet"
    means = {cell[0]: mean_spread(cell[2])[0] for cell in cells}
    if PAPER_BEST in means:
        before_it = sum(other > means[PAPER_BEST] for other in means.values())
        same = (
            f"the paper's best, {_setting(PAPER_BEST)}, is number {before_it + 1} of {len(cells)} "
            f"({100 * means[PAPER_BEST]:+.2f} points)"
        )
    return blocks, f"{helps}: best is {_setting(key)} ({points(changes)} points); {same}."


_FACTORS = ("part", "optimizer", "schedule", "lr", "batch_size")
PAPER_BEST = ("last", "sgd", "cosine", 0.001, 256)
"""The best fine-tuning of Efficient-MPT's grid (its Table 1)."""


def _change(run: Run) -> float:
    return float(run["accuracy"] - run["ticket_accuracy"])


def _setting(key: Sequence[Any]) -> str:
    part, optimizer, schedule, lr, batch = key
    layers = "all layers" if part == "all" else f"{part} layer"
    return f"{layers}, {optimizer}, {schedule}, lr {lr:g}, batch {batch}"


def _means(results: Results) -> Table:
    """Change of accuracy by each value of each factor, over all runs that share it."""
    rows = []
    for factor in _FACTORS:
        for (value,), runs in results.group(factor).items():
            changes = [_change(run) for run in runs]
            said = f"{value:g}" if isinstance(value, float) else str(value)
            name = factor.replace("_size", "").replace("optimizer", "optimiser")
            mean = 100 * mean_spread(changes)[0]
            better = sum(change > 0 for change in changes) / len(changes)
            rows.append([f"{name} {said}", f"{mean:+.2f}", text.percent(better, 0)])
    caption = "Over all runs that share one value"
    return Table(["", "mean change, points", "runs that gain"], rows, caption)


def _over_rates(results: Results) -> Figure:
    """Mean change over the learning rate, a line per part."""
    items = []
    for part, role in (("first", "dense"), ("last", "float"), ("all", "binary")):
        found: dict[float, list[float]] = {}
        for run in results.runs:
            if run["settings"]["part"] == part:
                found.setdefault(-math.log10(run["settings"]["lr"]), []).append(_change(run))
        if found:
            x = sorted(found)
            y = [100 * mean_spread(found[rate])[0] for rate in x]
            items.append(plots.Line(part, x, y, role))
    svg = plots.lines(items, "learning rate 10^-x", "change, points")
    title = "Change by fine-tuning first, last or all layers"
    return Figure(title, svg, f"{title}, mean over the seeds, over the learning rate")


def table2(results: Results) -> Part:
    """Step times by way of selection, with the paper's epochs beside them."""
    rows, cuts, noisy = [], [], False
    for run in results.runs:
        power, timings = run["settings"]["power"], run["timings"]
        median = {way: timings[way]["median"] for way in _WAYS}
        cut = {way: 1 - median[way] / median["sort"] for way in ("threshold", "exact")}
        cuts.append(cut)
        noisy |= any(timings[way]["p80"] >= timings["sort"]["p20"] for way in cut)
        sort, threshold = PAPER_TIMES[power]
        paper = {"threshold": f"{sort} → {threshold} s, {text.percent(1 - threshold / sort)}"}
        rows += [
            [
                f"p = {power:g}, {way}",
                f"{text.duration(median[way])} ({timings[way]['p20']:.3g}–"
                f"{timings[way]['p80']:.3g})",
                text.percent(cut.get(way)),
                paper.get(way, text.MISSING),
            ]
            for way in _WAYS
        ]
    header = ["", "step", "cut", "paper (epoch)"]
    caption = "Training step, median (20th to 80th percentile in seconds); cuts against sorting"
    table = Table(header, rows, caption)
    if noisy:
        return [table], (
            "Not decided: the 20 to 80 % ranges of sorting and not sorting overlap; run it again "
            "on a quieter machine."
        )
    least = min(min(cut.values()) for cut in cuts)
    opening = "Agrees, and by more" if least > 0.122 else "Differs"
    near = max(abs(cut["threshold"] - cut["exact"]) for cut in cuts)
    return [table], (
        f"{opening}: not sorting cuts a step by at least {text.percent(least)} here, where the "
        "paper's best cut is 12.2 %. Exact selection and thresholding differ by at most "
        f"{text.percent(near)} of a step."
    )


def figure4(results: Results) -> Part:
    """Accuracy by way of selection."""
    rows, behind, same = [], [], True
    lines: dict[str, list[tuple[float, float]]] = {}
    for (ratio,), runs in sorted(results.group("sparsity").items()):
        by = {w: [r for r in runs if r["settings"]["selection"] == w] for w in _WAYS}
        for way in (w for w in _WAYS if by[w]):
            lines.setdefault(way, []).append((ratio, _mean(by[way])))
            pruned = text.percent(mean_spread([r["sparsity"] for r in by[way]])[0])
            rows.append([f"{text.percent(ratio, 0)}, {way}", accuracy(by[way]), pruned])
        if lost := paired(by["sort"], by["threshold"]):
            behind.append((ratio, lost))
        same &= all(d == 0 for d in paired(by["sort"], by["exact"]))
    header = ["pruned, selection", "accuracy", "really pruned"]
    table = Table(header, rows, "Test accuracy, mean ± deviation over seeds")
    items = [
        plots.Line(way, *_coordinates(lines[way]), role, dashed=way == "exact")
        for way, role in zip(_WAYS, _LINE_ROLES, strict=False)
        if way in lines
    ]
    svg = plots.lines(items, "pruned", "test accuracy", percent=True, x_percent=True)
    title = "Accuracy by way of selection"
    figure = Figure(title, svg, f"{title} over the pruning ratio")
    if any(len(lost) < 2 for _, lost in behind):
        opening = "Not decided, too few seeds"
    elif all(mean_spread(lost)[0] <= mean_spread(lost)[1] for _, lost in behind):
        opening = "Agrees: thresholding is not behind by more than the seeds' deviation"
    else:
        opening = "Contradicts the paper"
    differences = ", ".join(
        f"{points(lost)} at {text.percent(ratio, 0)} pruned" for ratio, lost in behind
    )
    identical = "the same accuracy to the last image as" if same else "another accuracy than"
    return [Figures([figure]), table], (
        f"{opening}: sorting less thresholding is {differences} (points), while the fraction that "
        f"thresholding really prunes drifts as shown; exact selection gives {identical} sorting, "
        "whose weights it keeps."
    )


_WAYS = ("sort", "threshold", "exact")


RENDERERS: dict[str, Renderer] = {
    "figure1": figure1,
    "figure3": finetuning,
    "table1": finetuning,
    "table2": table2,
    "figure4": figure4,
    "table4": table4,
    "figure5": figure5,
    "twins": twins,
    "depth": twins,
}
"""Renderer of each study, in the page's order."""
