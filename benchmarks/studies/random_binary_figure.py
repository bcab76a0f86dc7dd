"""Draws docs/random_binary.svg: one whole random network, and what is kept of it.

    python -m benchmarks.studies.random_binary_figure

The target is y = x1 - 0.75*x2; every line and every dot is what the search really did.
"""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from mpt_fast.random_binary import Approximation, approximate, signs

TARGET = Path(__file__).resolve().parents[2] / "docs" / "random_binary.svg"
REDUNDANCY, SEED = 4, 1
INK, MUTED, FAINT = "#16191f", "#5c6470", "#d3d8de"
PLUS, MINUS = "#2a6fd0", "#d9541e"
STEP, GAP = 0.19, 0.42  # between neurons, and between blocks of them
TITLES = (
    "input",
    "split\nσ(x), σ(−x)",
    "bit 2\nof 4 and −3",
    "double,\nadd bit 1",
    "double,\nadd bit 0",
    "difference",
)
LANES = ("σ(x₁)", "σ(x₂)", "σ(−x₁)", "σ(−x₂)")
BLOCKS = (
    ("x₁", "x₂"),
    ("±x₁", "±x₂"),
    (*LANES, "A⁺", "A⁻"),
    (*LANES, "A⁺", "A⁻"),
    ("A⁺", "A⁻"),
    ("y",),
)


def build() -> Approximation:
    """The approximation that is drawn."""
    net = nn.Linear(2, 1, bias=False).double()
    net.weight.data = torch.tensor([[1.0, -0.75]]).double()
    return approximate(nn.Sequential(net), 1.0, REDUNDANCY, SEED, bits=2)


def heights(width: int, blocks: int) -> NDArray[np.float64]:
    """Vertical positions of a column's neurons, block by block, around 0."""
    copies = width // blocks
    block, copy = np.divmod(np.arange(width), copies)
    position = block * ((copies - 1) * STEP + GAP) + copy * STEP
    return (position.max() / 2) - position


def draw(axes: Axes, found: Approximation) -> None:
    """Every random edge faintly, every kept edge in the colour of its sign."""
    layers = found.network.layers
    places = [heights(2, 2)]
    used = [np.arange(2)]
    for column, layer in enumerate(layers, start=1):
        places.append(heights(layer.width, len(BLOCKS[column])))
        used.append(layer.used)
    for column, layer in enumerate(layers, start=1):
        left, right = places[column - 1], places[column]
        # One path for all lines of a layer: gaps are where a coordinate is missing.
        ends = np.stack(np.broadcast_arrays(left, right[:, None], np.nan), axis=-1).ravel()
        x = np.tile((column - 0.93, column - 0.07, np.nan), ends.size // 3)
        axes.plot(x, ends, color=FAINT, lw=0.25, alpha=0.55)
        sources = used[column - 1][layer.source]
        outs = layer.used[layer.out]
        drawn = signs.signs(SEED, column - 1, outs, layer.tap, sources)
        for out, source, sign in zip(outs, sources, drawn, strict=True):
            colour = PLUS if sign > 0 else MINUS
            height = (left[source], right[out])
            axes.plot((column - 0.93, column - 0.07), height, color=colour, lw=1.3, zorder=3)
    for column, (height, mine) in enumerate(zip(places, used, strict=True)):
        kept = np.isin(np.arange(height.size), mine)
        axes.scatter(
            np.full(height.size, column),
            height,
            s=17,
            facecolor=[INK if k else "white" for k in kept],
            edgecolor=[INK if k else MUTED for k in kept],
            linewidth=0.6,
            zorder=4,
        )
        names = BLOCKS[column]
        copies = height.size // len(names)
        for number, name in enumerate(names):
            top = height[number * copies]
            axes.text(column, top + 0.09, name, ha="center", va="bottom", size=7.5, color=INK,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
                      zorder=5)  # fmt: skip


def main() -> None:
    """Writes the figure."""
    mpl.rcParams.update({"svg.hashsalt": "mpt_fast", "font.family": "DejaVu Sans"})
    found = build()
    figure = Figure(figsize=(8.6, 6.0), facecolor="white")
    axes = figure.add_axes((0.01, 0.08, 0.98, 0.9))
    draw(axes, found)
    top = max(text.get_position()[1] for text in axes.texts) + 0.35
    for column, title in enumerate(TITLES):
        axes.text(column, top, title, ha="center", va="bottom", size=9, color=INK, weight="bold")
    report = found.report
    axes.text(
        2.5, -top - 0.05,
        f"{report.edges_drawn:,} random signs, {report.edges_kept} kept: "
        "blue +1, orange −1. Hollow neurons are pruned away. Output: 4x₁ − 3x₂ = 4y",
        ha="center", va="top", size=9, color=MUTED,
    )  # fmt: skip
    axes.set_xlim(-0.45, 5.45)
    axes.set_ylim(-top - 0.3, top + 0.55)
    axes.axis("off")
    figure.savefig(TARGET, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
