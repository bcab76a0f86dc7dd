"""benchmarks/RESULTS.md from benchmarks/results/cpu."""

import re
import statistics
from collections import Counter
from functools import partial
from typing import Any

from benchmarks import planner
from benchmarks.store import Cell, Results, figures, slug

HEAD = """# CPU results

Written by `make bench` (`python -m benchmarks.run`) from `benchmarks/results/cpu`, a folder per
processor; not edited by hand. A cell is how many times faster the packed or selected side is: the
ratio of medians of runs taken by turns in one process with equal threads, and in brackets the 20th
to 80th percentile of the rounds' ratios. Baselines are eager PyTorch in fp32 at the faster of its
settings (NCHW, channels_last, batch norms folded). Other engines, on the dense network, are printed
beside: how many times faster than the same baseline they are. Clocks of shared machines are noisy:
read the spread. One table alone: `mpt-fast bench cpu`, or `python -m benchmarks.run --only layers`.
"""


def render(results: dict[str, Results]) -> str:
    """The whole page, of the results by processor."""
    names = sorted(results)
    names.sort(key=lambda name: _newest(results[name]), reverse=True)
    links = [f"[{name}](#{_anchor(name)}) ({_newest(results[name])})" for name in names]
    parts = [HEAD, f"Processors, with the date of the newest figure: {', '.join(links)}.\n"]
    parts += _summary({name: _tables(results[name]) for name in names})
    for name in names:
        parts.append(f"## {name}\n")
        parts += _sections(name, results[name])
    return "\n".join(parts)


def _sections(processor: str, data: Results) -> list[str]:
    tables, folder = _tables(data), f"results/cpu/{slug(processor)}"
    parts = _engines(data)
    parts += [_table(_heading(title, processor), tables[title]) for title in sorted(tables)]
    for name, title, section in (
        ("usage", "Start-up and memory of ResNet-18, 90% pruned", _usage),
        ("roofline", "Roofline of the bit-sliced inner loop", partial(_roofline, folder=folder)),
        ("sweeps", "How time grows", partial(_sweeps, folder=folder)),
        ("planner", "Cost model against the clock", _planner),
    ):
        if name in data:
            lines = [_heading(title, processor), "", *section(data[name])]
            parts.append("\n".join([*lines, "", _measured([data[name]]), ""]))
    return parts


def _engines(data: Results) -> list[str]:
    """Which builds the figures are of: a part may have been measured later than another."""
    builds = Counter(stamp["engine"][:8] for stamp in data["measured"].values() if stamp)
    if not builds:
        return []
    names = [f"{build} ({count})" for build, count in builds.most_common()]
    return [f"Engine builds by a digest of their sources, and measurements: {', '.join(names)}.\n"]


def _heading(title: str, processor: str) -> str:
    """Names the processor, so that the same table of two processors has two lasting anchors."""
    return f"### {title}: {processor}"


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _newest(data: Results) -> str:
    return max(entry["date"] for entry in figures(data))


def _tables(data: Results) -> dict[str, list[Cell]]:
    tables: dict[str, list[Cell]] = {}
    for cell in data["cells"].values():
        tables.setdefault(cell["table"], []).append(cell)
    return tables


def _summary(processors: dict[str, dict[str, list[Cell]]]) -> list[str]:
    """The means of every table that has some, those of the processors below one another."""
    groups: dict[str, dict[str, dict[str, float]]] = {}
    columns: dict[str, Cell] = {}
    for title in sorted({title for tables in processors.values() for title in tables}):
        for processor, tables in processors.items():
            cells = tables.get(title, [])
            for batch, (count, means) in _means(cells).items():
                whole = batch is None or title.endswith(f"batch {batch}")
                # Means over other rows, as those of a quick run, are no comparison.
                label = title + ("" if whole else f", batch {batch}") + f" ({count} rows)"
                groups.setdefault(label, {})[processor] = means
                columns |= {cell["column"]: cell for cell in cells}
    if not groups:
        return []
    order = sorted(columns, key=lambda column: _column_order(columns[column]))
    lines = [
        "## Geometric means, by processor",
        "",
        "Those of the tables below, each over as many rows as stand in brackets. The baselines ran "
        "on the same processor.",
        "",
        "| | processor | " + " | ".join(order) + " |",
        "|---" * (len(order) + 2) + "|",
    ]
    for label, group in groups.items():
        for processor, means in group.items():
            first = label if processor == next(iter(group)) else ""
            own = [f"{means[column]:.3g} ×" if column in means else "" for column in order]
            lines.append(f"| {first} | {processor} | " + " | ".join(own) + " |")
    return ["\n".join([*lines, ""])]


def _table(heading: str, cells: list[Cell]) -> str:
    columns = list(dict.fromkeys(cell["column"] for cell in sorted(cells, key=_column_order)))
    rows = list(dict.fromkeys(cell["row"] for cell in sorted(cells, key=_row_order)))
    places = {(cell["row"], cell["column"]): cell for cell in cells}
    lines = [
        heading,
        "",
        "| | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for row in rows:
        here = [places.get((row, column)) for column in columns]
        lines.append(f"| {row} | " + " | ".join(map(_cell, here)) + " |")
        lines += _beside(next(cell for cell in here if cell), len(columns))
    several = len({cell.get("batch") for cell in cells}) > 1
    for batch, (_, means) in _means(cells).items():
        name = "geometric mean" + (f", batch {batch}" if several else "")
        own = [f"**{means[column]:.3g} ×**" if column in means else "" for column in columns]
        lines.append(f"| {name} | " + " | ".join(own) + " |")
    baselines = sorted({cell["baseline"] for cell in cells})
    return "\n".join([*lines, "", f"Against: {'; '.join(baselines)}. {_measured(cells)}", ""])


def _means(cells: list[Cell]) -> dict[int | None, tuple[int, dict[str, float]]]:
    """By batch: how many rows there are, and the geometric mean of each column that has them all.

    A single row has no mean.
    """
    # A mean says something only where all are measured against one kind of baseline; what follows
    # the comma is the setting of it that was fastest.
    kinds = {cell["baseline"].split(",")[0] for cell in cells}
    if len(kinds) > 1 or any(cell.get("format", "ratio") != "ratio" for cell in cells):
        return {}
    batches: dict[int | None, list[Cell]] = {}
    for cell in sorted(cells, key=_row_order):
        batches.setdefault(cell.get("batch"), []).append(cell)
    found = {}
    for batch, group in batches.items():
        rows = len({cell["row"] for cell in group})
        columns: dict[str, list[float]] = {}
        for cell in group:
            columns.setdefault(cell["column"], []).append(cell["ratio"])
        full = {name: ratios for name, ratios in columns.items() if len(ratios) == rows}
        if rows > 1 and full:
            means = {name: statistics.geometric_mean(ratios) for name, ratios in full.items()}
            found[batch] = (rows, means)
    return found


def _beside(cell: Cell, columns: int) -> list[str]:
    lines = []
    for name, seconds in cell.get("beside", {}).items():
        if isinstance(seconds, str):
            text = f"{name}: {seconds.replace('|', '/')}"
        else:
            text = f"{name}: {cell['baseline_seconds'] / seconds:.3g} ×"
        lines.append(f"| ↳ {text} |" + " |" * columns)
    return lines


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "not measured"
    if cell.get("format") == "share":
        return f"{100 / cell['ratio']:.2g} % of {cell['baseline_seconds'] * 1e3:.0f} ms"
    return f"{cell['ratio']:.3g} × ({cell['ratio_p20']:.3g}–{cell['ratio_p80']:.3g})"


def _measured(entries: list[dict[str, Any]]) -> str:
    machines = {
        f"{m['cpu']}, {m['cores']} cores, torch {m['torch']}, Python {m['python']}, "
        f"mpt_fast {m['mpt_fast']}"
        for m in (entry["machine"] for entry in entries)
    }
    threads = sorted({entry["threads"] for entry in entries if "threads" in entry})
    isas = sorted({entry["isa"] for entry in entries if "isa" in entry})
    dates = sorted({entry["date"] for entry in entries})
    span = " to ".join(dict.fromkeys([dates[0], dates[-1]]))
    return (
        (f"Threads: {', '.join(map(str, threads))}. " if threads else "")
        + (f"Engine: {', '.join(isas)}. " if isas else "")
        + f"Measured {span} on {'; '.join(sorted(machines))}."
    )


def _usage(found: dict[str, Any]) -> list[str]:
    lines = [
        "In a fresh process: `runtime.load` to the first result, after the import; and what "
        "memory the network adds, resident, when loaded and at the peak of a call, against the "
        "packed file's size plus 1.5 times the largest pair of neighbouring activations of one "
        "block.",
        "",
        "| | load to first result | import before it | loaded | peak while running | allowed |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["networks"]:
        lines.append(
            f"| {row['network']}, batch {row['batch']} | {row['load_seconds']:.3f} s "
            f"| {row['import_seconds']:.3f} s | {row['loaded_bytes'] / 1e6:.1f} MB "
            f"| {row['running_bytes'] / 1e6:.1f} MB "
            f"| {row['allowed_bytes'] / 1e6:.1f} MB |"
        )
    return lines


def _roofline(found: dict[str, Any], folder: str) -> list[str]:
    limits = found["limits"]
    sizes = {int(size): rate for size, rate in limits["loads"].items()}
    lines = [
        f"Vectors of {limits['vector_bytes']} bytes ({limits['isa']}), one thread, batch 512. "
        f"Measured limits in 10⁹ per second: full adders {limits['adders'] / 1e9:.2f}; adders that "
        f"load an operand from L1 {limits['loads_with_adders'] / 1e9:.2f}; loads from "
        + ", ".join(f"{size >> 10} KiB {rate / 1e9:.2f}" for size, rate in sorted(sizes.items()))
        + ". A cell is kept taps times vectors per second, in 10⁹, and its share of the smaller of "
        "the load limit for its slice of the input and the rate of adders that load. Where output "
        "channels share sums of taps (`cpu_shared.h`), fewer additions than taps are made.",
        "",
        f"![roofline]({folder}/roofline.png)",
        "",
    ]
    densities = sorted({point["density"] for point in found["points"]}, reverse=True)
    lines += [
        "| | " + " | ".join(f"density {density:g}" for density in densities) + " |",
        "|---" * (len(densities) + 1) + "|",
    ]
    for layer in dict.fromkeys(point["layer"] for point in found["points"]):
        own = {p["density"]: p for p in found["points"] if p["layer"] == layer}
        cells = [f"{own[d]['rate'] / 1e9:.2f} ({own[d]['share']:.0%})" for d in densities]
        lines.append(f"| {layer} | " + " | ".join(cells) + " |")
    return lines


def _sweeps(found: dict[str, Any], folder: str) -> list[str]:
    return [
        "Packed side alone, medians; one thread except in the last panel. Networks are 90 % "
        "pruned; binary ones and layers at batch 512, float ones at 64, except where batch is the "
        "axis.",
        "",
        f"![time against density, batch, width and threads]({folder}/growth.png)",
    ]


def _planner(found: dict[str, Any]) -> list[str]:
    return [
        f"Fitted in at most {found['fit_seconds']:.2f} s a layout ({found['isa']}). Errors of the "
        "prediction on layers and networks that it was not fitted on "
        "(`python -m benchmarks.planner`).",
        "",
        *planner.table(found),
    ]


def _column_order(cell: Cell) -> tuple[float, str]:
    digits = re.sub(r"[^0-9.]", "", cell["column"])
    return (float(digits) if digits else 0.0, cell["column"])


def _row_order(cell: Cell) -> tuple[float, str, float]:
    """Layers by their channels, networks by batch (large first) and name."""
    leading = re.match(r"\d+", cell["row"])
    return (float(leading.group()) if leading else -float(cell.get("batch", 0)), cell["row"], 0)
