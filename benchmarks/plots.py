"""Plots of the CPU results: how time grows, and the roofline."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

INK, MUTED, RULE = "#16191f", "#5c6470", "#dfe3e8"
COLOURS = ("#d9541e", "#2a6fd0", "#2c8a6b", "#7b8594")
MARKERS = ("o", "s", "^", "D")
_LABELS = {
    "density": "density (share of weights kept)",
    "batch": "images per call",
    "width": "width of the network",
    "threads": "threads",
}


def growth(sweeps: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Microseconds per image against density, batch, width and threads, a panel each."""
    figure = Figure(figsize=(9.2, 6.4), layout="constrained")
    for axes, (name, curves) in zip(figure.subplots(2, 2).flat, sweeps.items(), strict=True):
        for colour, marker, curve in zip(COLOURS, MARKERS, curves, strict=False):
            y = [1e6 * value for value in curve["y"]]
            axes.loglog(
                curve["x"], y, color=colour, marker=marker, markersize=4, label=curve["label"]
            )
        axes.set_xticks(curves[0]["x"], [f"{x:g}" for x in curves[0]["x"]])
        axes.set_xlabel(_LABELS[name])
        axes.set_ylabel("µs per image")
        axes.legend(frameon=False, fontsize=8)
        _plain(axes)
    _write(figure, path)


def roofline(found: dict[str, Any], path: Path) -> None:
    """Tap-vectors per second over the bytes of input that one vector of outputs reads."""
    limits, points = found["limits"], found["points"]
    figure = Figure(figsize=(7.6, 4.8), layout="constrained")
    axes = figure.subplots()
    sizes = sorted(map(int, limits["loads"]))
    loads = [limits["loads"][str(size)] / 1e9 for size in sizes]
    axes.loglog(sizes, loads, color=MUTED, label="vector loads at listed places")
    axes.axhline(
        limits["loads_with_adders"] / 1e9, color=MUTED, linestyle="--",
        label="full adders that load an operand",
    )  # fmt: skip
    densities = sorted({point["density"] for point in points}, reverse=True)
    for density, colour, marker in zip(densities, COLOURS, MARKERS, strict=False):
        own = [point for point in points if point["density"] == density]
        axes.loglog(
            [point["slice_bytes"] for point in own],
            [point["rate"] / 1e9 for point in own],
            color=colour, marker=marker, linestyle="none", label=f"kept taps, density {density:g}",
        )  # fmt: skip
    for layer in dict.fromkeys(point["layer"] for point in points):
        own = [point for point in points if point["layer"] == layer]
        below = (own[0]["slice_bytes"], min(point["rate"] for point in own) / 1e9)
        axes.annotate(
            layer, below, xytext=(0, -14), textcoords="offset points",
            ha="center", fontsize=8, color=MUTED,
        )  # fmt: skip
    axes.set_xlabel("KiB of input read for one vector of outputs")
    axes.set_ylabel(f"10⁹ vectors of {limits['vector_bytes']} bytes per second")
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    lowest = min(point["rate"] for point in points) / 1e9
    axes.set_ylim(lowest / 5, 1.5 * max(*loads, limits["loads_with_adders"] / 1e9))
    axes.set_xticks(sizes[::2], [f"{size >> 10}" for size in sizes[::2]])
    _plain(axes)
    _write(figure, path)


def _plain(axes: Axes) -> None:
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=8)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)


def _write(figure: Figure, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120, facecolor="white", metadata={"Software": None})
