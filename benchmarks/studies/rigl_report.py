"""Tables and curves of the RigL studies: rigl_results.md beside this file, docs/rigl.svg.

    python -m benchmarks.studies.rigl_report

The tables of accuracies and of what they show also go between the two marks in docs/rigl.md.
"""

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.studies import rigl_order

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "rigl.md"
FIGURE = PAGE.with_suffix(".svg")
MARKS = "<!-- benchmarks.studies.rigl_report -->", "<!-- end -->"
TITLES = {
    "lenet": "LeNet-300-100 on Fashion-MNIST, 5 epochs",
    "wrn": "WRN-10-1 on Fashion-MNIST at 14 x 14, 5 epochs of 12,000",
}
ORDER = (
    "static (ERK)",
    "SET (ERK)",
    "RigL (ERK)",
    "static (uniform)",
    "SET (uniform)",
    "RigL (uniform)",
)
COLOURS = {
    "dense": "#16191f",
    "static (ERK)": "#9aa3ad",
    "SET (ERK)": "#d9541e",
    "RigL (ERK)": "#2a6fd0",
    "static (uniform)": "#d3d8dd",
    "SET (uniform)": "#f0b79c",
    "RigL (uniform)": "#7fb2f0",
}

Runs = dict[tuple[str, str, float], list[dict[str, Any]]]


def read(name: str) -> dict[str, Any]:
    """A study's results; {} where it has none."""
    path = HERE / f"rigl_{name}results.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def grouped(results: dict[str, Any]) -> Runs:
    """Runs by study, case and sparsity, in the order of their seeds."""
    found: Runs = defaultdict(list)
    for run in results.get("runs", {}).values():
        found[run["study"], run["case"], run["sparsity"]].append(run)
    return found


def mean_and_spread(runs: list[dict[str, Any]]) -> str:
    """ "87.12 ± 0.20 (3)": mean, standard deviation and number of the accuracies in per cent."""
    values = [100 * run["accuracy"] for run in runs]
    if len(values) == 1:
        return f"{values[0]:.2f} (1)"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} ({len(values)})"


def gap(ordinary: list[dict[str, Any]], found: list[dict[str, Any]]) -> str:
    """The mean difference in points over the seeds that both have; "" of none."""
    theirs = {run["seed"]: run["accuracy"] for run in ordinary}
    pairs = [theirs[run["seed"]] - run["accuracy"] for run in found if run["seed"] in theirs]
    return f"{100 * statistics.mean(pairs):.2f} ({len(pairs)})" if pairs else ""


def accuracy_table(runs: Runs, study: str) -> list[str]:
    """The Markdown of one network's accuracies and counted training FLOPs."""
    sparsities = sorted({key[2] for key in runs if key[0] == study and key[2] > 0})
    lines = [f"## {TITLES[study]}", ""]
    dense = runs.get((study, "dense", 0.0))
    if dense:
        lines += [f"Dense: {mean_and_spread(dense)} %.", ""]
    lines += [
        "| test accuracy, % | " + " | ".join(f"{s:.0%} pruned" for s in sparsities) + " |",
        "|---|" + "---|" * len(sparsities),
    ]
    for case in ORDER:
        cells = []
        for sparsity in sparsities:
            found = runs.get((study, case, sparsity), [])
            cells.append(
                f"{mean_and_spread(found)}, {found[0]['training_ratio']:.3f}x" if found else "–"
            )
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def tickets(results: dict[str, Any]) -> list[str]:
    """The Markdown of the RigL-driven tickets."""
    runs: dict[tuple[str, int, int], list[dict[str, Any]]] = defaultdict(list)
    for run in results.get("runs", {}).values():
        runs[run["network"], run["delta_t"], run["select_t"]].append(run)
    if not runs and "time" not in results:
        return []
    lines = ["## RigL-driven tickets", ""]
    if runs:
        lines += [
            "95 % of each layer pruned; networks and recipes are in `rigl_tickets.py`.",
            "",
            "| network | ΔT | steps between selections | test accuracy, % | "
            "points behind the ordinary ticket | training FLOPs of dense |",
            "|---|---|---|---|---|---|",
        ]
        for (network, delta_t, select_t), found in sorted(runs.items()):
            name = "1 (ordinary)" if delta_t == 1 else str(delta_t)
            ratio = found[0]["training_ratio"]
            behind = "" if delta_t == 1 else gap(runs.get((network, 1, 1), []), found)
            lines.append(
                f"| {network} | {name} | {select_t} | {mean_and_spread(found)} | {behind} | "
                f"{ratio:.3f} |"
            )
        lines.append("")
    if "time" in results:
        lines += [
            "Step time against the ordinary ticket's, by turns, one thread, processor time; the",
            "ratio's median with its 20th and 80th percentile. Memory: what glibc does with",
            "what is freed.",
            "",
            "| network | ΔT | steps between selections | times faster | training FLOPs of dense | "
            "memory | machine |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in results["time"]:
            lines.append(
                f"| {row['network']} | {row['delta_t']} | {row['select_t']} | {row['ratio']:.2f} "
                f"({row['ratio_p20']:.2f} to {row['ratio_p80']:.2f}) | "
                f"{row['training_ratio']:.3f} | {'kept' if row['keeps_memory'] else 'returned'} | "
                f"{row['cpu']}, {'avx512' if 'avx512f' in row['instruction_sets'] else 'avx2'} |"
            )
        lines.append("")
    return lines


def packed(results: dict[str, Any]) -> list[str]:
    """The Markdown of the packed networks."""
    if not results:
        return []
    lines = [
        "## Packed",
        "",
        "95 % pruned (uniform: all but the first layer), one thread, processor time, packed and "
        "dense PyTorch",
        "in its faster layout by turns; the ratio's median with its 20th and 80th percentile.",
        "",
        "| network | batch | times dense PyTorch | machine |",
        "|---|---|---|---|",
    ]
    for row in results["rows"]:
        lines.append(
            f"| {row['network']}, {row['distribution']} | {row['batch']} | {row['ratio']:.1f} "
            f"({row['ratio_p20']:.1f} to {row['ratio_p80']:.1f}) | {row['cpu']}, {row['isa']} |"
        )
    return [*lines, ""]


def text_table(results: dict[str, Any]) -> list[str]:
    """The Markdown of the char-GRU."""
    runs: dict[str, list[float]] = defaultdict(list)
    for run in results.get("runs", []):
        runs[run["method"]].append(run["bits_per_byte"])
    if not runs:
        return []
    lines = [
        f"## char-GRU on {results['text']}, 75 % pruned",
        "",
        "| method | bits per byte of each seed |",
        "|---|---|",
    ]
    for method, values in runs.items():
        lines.append(f"| {method} | " + ", ".join(f"{value:.3f}" for value in values) + " |")
    return [*lines, ""]


def lenet(results: dict[str, Any]) -> list[str]:
    """The Markdown of compaction and landscape."""
    lines: list[str] = []
    if "compaction" in results:
        found = results["compaction"]
        lines += [
            "## Compaction of LeNet-300-100",
            "",
            f"{'-'.join(map(str, found['widths']))}, {found['kept']} weights, "
            f"{found['size_bytes']:.0f} bytes, {found['flops'] / 1e3:.1f} KFLOPs, accuracy "
            f"{found['accuracy']:.2%} ({found['compact_accuracy']:.2%} compacted). Pixels still "
            f"read: {found['alive_border']:.0%} of the outer two rings, "
            f"{found['alive_inside']:.0%} of the rest:",
            "",
            "```",
            *found["alive"],
            "```",
            "",
        ]
    if "landscape" in results:
        found = results["landscape"]
        lines += ["## Between a pruned and a static solution", ""]
        lines += ["| curve | loss at 0 | highest | at 1 | barrier |", "|---|---|---|---|---|"]
        for name, curve in found.items():
            if name == "u":
                continue
            losses = curve["losses"]
            lines.append(
                f"| {name} | {losses[0]:.3f} | {max(losses):.3f} | {losses[-1]:.3f} | "
                f"{curve['barrier']:.3f} |"
            )
        lines.append("")
    if "escape" in results:
        found = results["escape"]
        lines += [
            f"## {found['epochs']} epochs more from {len(found['rigl'])} static solutions",
            "",
            "| method | training loss before | after each epoch (means) | test accuracy, % |",
            "|---|---|---|---|",
        ]
        for kind in ("static", "rigl"):
            runs = found[kind]
            before, *after = mean_losses(runs)
            losses = ", ".join(f"{loss:.3f}" for loss in after)
            lines.append(f"| {kind} | {before:.3f} | {losses} | {mean_and_spread(runs)} |")
        lines.append("")
    return lines


def mean_losses(runs: list[dict[str, Any]]) -> list[float]:
    """The losses of an escape before and after each epoch, means over the seeds."""
    return [statistics.mean(at) for at in zip(*(run["losses"] for run in runs), strict=True)]


def draw_escape(axes: Axes, results: dict[str, Any]) -> None:
    """Training loss after each epoch from a static solution on, a line per seed."""
    found = results["escape"]
    for kind, colour in (("static", "static (ERK)"), ("rigl", "RigL (ERK)")):
        for index, run in enumerate(found[kind]):
            axes.plot(run["losses"], color=COLOURS[colour], label=None if index else kind)
    axes.set_title("Trained on from a static solution", fontsize=9)
    axes.set_xlabel("epochs")
    axes.set_ylabel("training loss")
    axes.legend(fontsize=7, frameon=False)


def draw_accuracies(axes: Axes, runs: Runs, study: str) -> None:
    """Accuracy over sparsity, a point per seed and a line through the means."""
    for case in ORDER:
        points = sorted(
            (s, found) for (name, c, s), found in runs.items() if (name, c) == (study, case)
        )
        for sparsity, found in points:
            values = [100 * run["accuracy"] for run in found]
            axes.plot([100 * sparsity] * len(values), values, ".", color=COLOURS[case], alpha=0.6)
        axes.plot(
            [100 * s for s, _ in points],
            [100 * statistics.mean(run["accuracy"] for run in found) for _, found in points],
            color=COLOURS[case],
            label=case,
        )
    dense = runs.get((study, "dense", 0.0))
    if dense:
        level = 100 * statistics.mean(run["accuracy"] for run in dense)
        axes.axhline(level, color=COLOURS["dense"], lw=0.8, ls="--", label="dense")
    axes.set_title(TITLES[study], fontsize=9)
    axes.set_xlabel("pruned, %")
    axes.set_ylabel("test accuracy, %")
    axes.legend(fontsize=7, frameon=False)


def draw_landscape(axes: Axes, results: dict[str, Any]) -> None:
    """Training loss along the curves."""
    found = results["landscape"]
    for name, curve in found.items():
        if name != "u":
            axes.plot(found["u"], curve["losses"], label=name)
    axes.set_title("Training loss from a pruned (0) to a static (1) solution", fontsize=9)
    axes.set_xlabel("u")
    axes.set_ylabel("loss")
    axes.legend(fontsize=7, frameon=False)


def between_marks(page: str, lines: list[str]) -> str:
    """The page with `lines` in place of what stands between its marks."""
    before, rest = page.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    lines = [line.replace("## ", "### ", 1) if line.startswith("## ") else line for line in lines]
    return "\n".join([before + MARKS[0], "", *lines, MARKS[1]]) + after


def main() -> None:
    results, ticket_results = read(""), read("tickets_")
    lenet_results, text_results = read("lenet_"), read("text_")
    runs = grouped(results)
    studies = [name for name in TITLES if any(key[0] == name for key in runs)]
    lines = [
        "# RigL and its baselines: what was measured",
        "",
        "Made by `python -m benchmarks.studies.rigl_report` from the JSON files beside it; each",
        "study's module says how it was run. Accuracies are mean ± standard deviation (number of",
        "seeds) after the last epoch, with the counted training FLOPs of dense. The runs are far",
        "shorter than the paper's: they compare the methods at that length.",
        "",
    ]
    accuracies: list[str] = []
    for study in studies:
        accuracies += [*accuracy_table(runs, study), *rigl_order.table(runs, study)]
    lines += accuracies
    lines += tickets(ticket_results) + packed(read("packed_"))
    lines += text_table(text_results) + lenet(lenet_results)
    if "machine" in results:
        facts = results["machine"]
        lines += [f"Last runs: {facts['cpu']}, torch {facts['torch']}, one thread."]
    (HERE / "rigl_results.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    PAGE.write_text(between_marks(PAGE.read_text(encoding="utf-8"), accuracies), encoding="utf-8")

    mpl.rcParams["svg.hashsalt"] = "mpt_fast"
    panels = [*studies, *(name for name in ("landscape", "escape") if name in lenet_results)]
    if not panels:
        return
    rows = (len(panels) + 1) // 2
    figure = Figure(figsize=(9.2, 3.4 * rows), layout="constrained")
    for axes, panel in zip(figure.subplots(rows, 2, squeeze=False).flat, panels, strict=False):
        axes.spines[["top", "right"]].set_visible(False)
        if panel == "landscape":
            draw_landscape(axes, lenet_results)
        elif panel == "escape":
            draw_escape(axes, lenet_results)
        else:
            draw_accuracies(axes, runs, panel)
    figure.savefig(FIGURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
