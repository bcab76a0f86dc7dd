"""Plots as SVG text whose colours are CSS variables, so that one picture serves light and dark.

Matplotlib draws with placeholder colours, one per role; they are replaced by `var(--role)` in the
text it writes. Sizes are chosen to be read on a phone without zooming.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# role -> (placeholder, light, dark); the last two are for figures that stand outside the page.
_ROLES: dict[str, tuple[str, str, str]] = {
    "surface": ("#fa0101", "#ffffff", "#14171c"),
    "panel": ("#fa0102", "#f6f7f9", "#1d2128"),
    "ink": ("#fa0103", "#16191f", "#e9ecf1"),
    "muted": ("#fa0104", "#5c6470", "#a3acb9"),
    "rule": ("#fa0105", "#dfe3e8", "#333943"),
    "dense": ("#fa0106", "#7b8594", "#8e98a8"),
    "float": ("#fa0107", "#2a6fd0", "#5c9bf0"),
    "binary": ("#fa0108", "#d9541e", "#f07a45"),
    "bound": ("#fa0109", "#2c8a6b", "#4fb793"),
}
ROLES = frozenset(_ROLES)
_WIDTH = 4.4  # inches; 1 inch is 72 SVG units
_FONT_POINTS = 10.0


@dataclass(frozen=True)
class Bar:
    """One bar: its name, length, the text at its end, its colour role and its spread."""

    label: str
    value: float
    text: str
    role: str
    spread: tuple[float, float] | None = None


@dataclass(frozen=True)
class Line:
    """One curve: its name in the legend, its points, its colour role, and whether it is dashed."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    role: str
    dashed: bool = False


def bars(items: Sequence[Bar], axis_label: str, width: float = _WIDTH) -> str:
    """Horizontal bars from zero, first item on top, each with its text at the end."""
    if not items:
        raise ValueError("bars: nothing to draw; give at least one Bar")
    with _style():
        figure, axes = _figure(width, 0.55 + 0.58 * len(items))
        _draw_bars(axes, items, axis_label)
        return _svg(figure)


def _draw_bars(axes: Axes, items: Sequence[Bar], axis_label: str) -> None:
    positions = np.arange(len(items))[::-1]
    values = [item.value for item in items]
    reach = max(max(values), *(item.spread[1] for item in items if item.spread), 1e-12)
    axes.barh(positions, values, height=0.42, color=[_colour(item.role) for item in items])
    for position, item in zip(positions, items, strict=True):
        end = item.value
        if item.spread is not None:
            low, high = item.spread
            axes.plot([low, high], [position, position], color=_colour("ink"), linewidth=1.0)
            end = max(end, high)
        beside: dict[str, Any] = {"xytext": (4, 0), "textcoords": "offset points", "ha": "left"}
        axes.annotate(item.text, (end, position), va="center", **beside)
        above = (0, position + 0.24)
        axes.annotate(item.label, above, va="bottom", color=_colour("muted"), **beside)
    # Room at the right for the text of the longest bar.
    longest = max(len(item.text) for item in items)
    axes.set_xlim(0, reach * (1.04 + 0.021 * longest))
    axes.set_ylim(-0.45, len(items) - 0.2)
    axes.set_yticks([])
    axes.set_xticks([])
    axes.set_xlabel(axis_label)
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_color(_colour("muted"))


def lines(
    items: Sequence[Line],
    x_label: str,
    y_label: str,
    percent: bool = False,
    width: float = _WIDTH,
    x_percent: bool = False,
) -> str:
    """Curves over a common axis with a legend above.

    `percent` and `x_percent` show shares of 1 as per cent; the x axis has whole numbers otherwise.
    """
    if not items:
        raise ValueError("lines: nothing to draw; give at least one Line")
    from matplotlib.ticker import MaxNLocator

    with _style():
        figure, axes = _figure(width, 3.1)
        for item in items:
            colour, style = _colour(item.role), (0, (3, 1.5)) if item.dashed else "-"
            axes.plot(
                item.x, item.y, color=colour, label=item.label, linewidth=1.8, linestyle=style
            )
            axes.plot(item.x[-1:], item.y[-1:], "o", color=colour, markersize=5)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(axis="y", color=_colour("rule"), linewidth=0.8)
        if x_percent:
            axes.set_xticks(sorted({x for item in items for x in item.x}))
            axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if percent:
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, frameon=False,
            handlelength=1.8, columnspacing=1.0, borderaxespad=0.2, fontsize=9,
        )  # fmt: skip
        return _svg(figure)


def profile(
    labels: Sequence[str],
    items: Sequence[tuple[str, Sequence[float], str]],
    axis_label: str,
    width: float = _WIDTH,
) -> str:
    """Shares of 1 per layer: for each label one thin bar of every item (name, values, role)."""
    if not labels or not items:
        raise ValueError("profile: nothing to draw; give labels and at least one item")
    for name, values, _ in items:
        if len(values) != len(labels):
            raise ValueError(
                f"profile: item {name!r} has {len(values)} values for {len(labels)} labels; "
                "give one value per label"
            )
    with _style():
        height = 0.8 / len(items)
        figure, axes = _figure(width, 0.95 + 0.2 * (len(items) + 0.6) * len(labels))
        positions = np.arange(len(labels))[::-1]
        for index, (name, values, role) in enumerate(items):
            offset = (len(items) - 1) / 2 - index
            axes.barh(
                positions + offset * height, values, height * 0.86, color=_colour(role), label=name
            )
        axes.set_yticks(positions, labels)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(axis_label)
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        axes.grid(axis="x", color=_colour("rule"), linewidth=0.8)
        axes.set_axisbelow(True)
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(items), frameon=False,
            handlelength=1.0, columnspacing=1.0, borderaxespad=0.2, fontsize=9,
        )  # fmt: skip
        return _svg(figure)


def kernels(codes: npt.NDArray[np.int8], columns: int = 16) -> str:
    """Kernels as tiles: +1 and -1 in two colours, pruned entries empty.

    `codes` is [count, height, width] with values -1, 0, +1.
    """
    if codes.ndim != 3 or codes.size == 0 or not np.isin(codes, (-1, 0, 1)).all():
        raise ValueError("kernels: want a non-empty [count, height, width] array of -1, 0 and +1")
    count, height, width = codes.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    step_x, step_y = width + 1, height + 1
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {columns * step_x - 1} '
        f'{rows * step_y - 1}">'
    ]
    for index, kernel in enumerate(codes):
        left, top = index % columns * step_x, index // columns * step_y
        parts.append(
            f'<rect x="{left}" y="{top}" width="{width}" height="{height}" '
            'style="fill: var(--rule)"/>'
        )
        for row, column in np.argwhere(kernel):
            role = "float" if kernel[row, column] > 0 else "binary"
            parts.append(
                f'<rect x="{left + column}" y="{top + row}" width="1" height="1" '
                f'style="fill: var(--{role})"/>'
            )
    return "".join([*parts, "</svg>"])


def panels(items: Sequence[tuple[str, Sequence[Bar]]], title: str) -> str:
    """Bar charts side by side as one SVG file that stands on its own (a README's figure).

    `items` are (heading, bars). The file carries both colour sets and its own background.
    """
    if not items:
        raise ValueError("panels: nothing to draw; give at least one panel")
    with _style():
        most = max(len(bars_) for _, bars_ in items)
        figure = _new_figure(4.1 * len(items), 1.2 + 0.58 * most, padding=0.13)
        grid = figure.subplots(1, len(items), squeeze=False)[0]
        for axes, (heading, bars_) in zip(grid, items, strict=True):
            _draw_bars(axes, bars_, "")
            axes.set_title(heading, loc="left", fontsize=11, color=_colour("ink"))
        figure.suptitle(title, x=0.012, ha="left", fontsize=12, color=_colour("ink"))
        return _standalone(_svg(figure))


def png_uri(image: npt.NDArray[Any]) -> str:
    """A data URI of a PNG of `image`: [H, W] grey or [H, W, 3], stretched to its own range."""
    from matplotlib.image import imsave

    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise ValueError(f"png_uri: shape {image.shape} is not an image; want [H, W] or [H, W, 3]")
    low, high = float(image.min()), float(image.max())
    scaled = np.rint((image - low) * (255 / (high - low) if high > low else 0.0)).astype(np.uint8)
    rgb = scaled if scaled.ndim == 3 else np.repeat(scaled[..., None], 3, axis=2)
    stream = io.BytesIO()
    imsave(stream, rgb, format="png")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _colour(role: str) -> str:
    if role not in _ROLES:
        raise ValueError(f"unknown colour role {role!r}; roles are {', '.join(sorted(_ROLES))}")
    return _ROLES[role][0]


def _style() -> Any:
    from matplotlib import rc_context

    return rc_context(
        {
            "svg.fonttype": "none",  # text stays text: small, sharp, searchable
            "svg.hashsalt": "mpt_fast",  # the same data gives the same bytes
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"],
            "font.size": _FONT_POINTS,
            "text.color": _colour("ink"),
            "axes.labelcolor": _colour("muted"),
            "axes.edgecolor": _colour("muted"),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "xtick.color": _colour("muted"),
            "ytick.color": _colour("muted"),
            "legend.labelcolor": _colour("ink"),
        }
    )


def _new_figure(width: float, height: float, padding: float = 0.04) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=padding, h_pad=padding)
    return Figure(figsize=(width, height), layout=layout, facecolor="none")


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = _new_figure(width, height)
    axes = figure.subplots()
    axes.set_facecolor("none")
    return figure, axes


def _svg(figure: Figure) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    for role, (placeholder, _, _) in _ROLES.items():
        text = text.replace(placeholder, f"var(--{role})")
    text = text.replace("'DejaVu Sans', ", "").replace("'DejaVu Sans'", "sans-serif")
    # Several plots share a page: their ids must not meet.
    prefix = "p" + hashlib.sha256(text.encode()).hexdigest()[:8] + "-"
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{prefix}", text)
    return text.strip()


def _standalone(svg: str) -> str:
    light = " ".join(f"--{role}: {values[1]};" for role, values in _ROLES.items())
    dark = " ".join(f"--{role}: {values[2]};" for role, values in _ROLES.items())
    style = (
        f"<style>:root {{ {light} }} "
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}</style>"
        '<rect width="100%" height="100%" style="fill: var(--surface)"/>'
    )
    opening = svg.index(">") + 1
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + svg[:opening] + style + svg[opening:] + "\n"
