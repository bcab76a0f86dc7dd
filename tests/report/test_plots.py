"""Plots: what is drawn, theming, and refusals."""

import base64
import io
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib.image import imread

from mpt_fast.report import plots

BARS = [
    plots.Bar("dense", 10.0, "10 img/s", "dense"),
    plots.Bar("binary", 200.0, "200 img/s (20×)", "binary", (180.0, 230.0)),
]


def texts(svg: str) -> list[str]:
    root = ElementTree.fromstring(svg)
    return ["".join(node.itertext()).strip() for node in root.iter() if node.tag.endswith("text")]


def test_bars_show_their_labels_and_texts_as_text() -> None:
    shown = texts(plots.bars(BARS, "images per second"))
    for expected in ("dense", "10 img/s", "binary", "200 img/s (20×)", "images per second"):
        assert expected in shown


def test_bars_are_as_long_as_their_values() -> None:
    def widths(values: list[float]) -> list[float]:
        svg = plots.bars([plots.Bar("a", value, "", "float") for value in values], "")
        root = ElementTree.fromstring(svg)
        found = []
        for node in root.iter():
            if node.tag.endswith("path") and "fill: var(--float)" in node.get("style", ""):
                points = [float(part) for part in node.get("d", "").split() if part[0].isdigit()]
                found.append(max(points[::2]) - min(points[::2]))
        return found

    short, long = widths([1.0, 3.0])
    assert long == pytest.approx(3 * short, rel=1e-4)


@pytest.mark.parametrize(
    "svg",
    [
        plots.bars(BARS, ""),
        plots.lines([plots.Line("a", [1, 2, 3], [3, 2, 1], "float")], "epoch", "loss"),
        plots.profile(["one", "two"], [("float", [0.1, 0.2], "float")], ""),
    ],
    ids=["bars", "lines", "profile"],
)
def test_plots_have_no_colour_of_their_own_and_no_date(svg: str) -> None:
    assert "var(--" in svg
    assert "#fa01" not in svg
    assert "dc:date" not in svg
    assert "<script" not in svg


def test_same_data_gives_the_same_bytes() -> None:
    assert plots.bars(BARS, "x") == plots.bars(BARS, "x")


def test_lines_name_every_curve_and_can_show_per_cent() -> None:
    curves = [
        plots.Line("ticket", [1, 2, 3], [0.2, 0.6, 0.9], "binary"),
        plots.Line("twin", [1, 2, 3], [0.3, 0.7, 0.95], "dense"),
    ]
    shown = texts(plots.lines(curves, "epoch", "accuracy", percent=True))
    assert {"ticket", "twin", "epoch", "accuracy"} <= set(shown)
    assert any(word.endswith(" %") for word in shown)


def test_kernels_draw_one_tile_per_kept_entry() -> None:
    codes = np.zeros((20, 3, 3), np.int8)
    codes[0, 1, 2] = 1
    codes[17, 0, 0] = codes[17, 2, 1] = -1
    svg = plots.kernels(codes, columns=16)
    rects = [
        (node.get("x"), node.get("y"), node.get("style")) for node in ElementTree.fromstring(svg)
    ]
    assert len(rects) == 20 + 3
    assert ("2", "1", "fill: var(--float)") in rects
    assert ("4", "4", "fill: var(--binary)") in rects  # kernel 17 is the second of the second row
    assert ("5", "6", "fill: var(--binary)") in rects
    assert 'viewBox="0 0 63 7"' in svg


def test_panels_stand_alone() -> None:
    svg = plots.panels([("Speed", BARS), ("Size", BARS[:1])], "all of it")
    root = ElementTree.fromstring(svg.split("\n", 1)[1])
    assert root.tag.endswith("svg")
    for role in plots.ROLES:
        assert svg.count(f"--{role}:") == 2
    assert {"Speed", "Size", "all of it"} <= set(texts(svg.split("\n", 1)[1]))


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3)])
def test_png_uri_holds_the_image(shape: tuple[int, ...]) -> None:
    image = np.linspace(0, 5, int(np.prod(shape))).reshape(shape)
    kind, data = plots.png_uri(image).split(",")
    assert kind == "data:image/png;base64"
    back = imread(io.BytesIO(base64.b64decode(data)))
    assert back.shape[:2] == shape[:2]
    channels = back[..., :3] if image.ndim == 3 else back[..., 0]
    assert np.abs(channels - image / 5).max() <= 0.5 / 255 + 1e-6


def test_png_uri_of_a_flat_image_is_finite() -> None:
    assert plots.png_uri(np.full((2, 2), 7.0)).startswith("data:image/png")


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.bars([], ""), "nothing to draw"),
        (lambda: plots.lines([], "", ""), "nothing to draw"),
        (lambda: plots.profile([], [], ""), "nothing to draw"),
        (lambda: plots.panels([], ""), "nothing to draw"),
        (lambda: plots.profile(["a"], [("x", [1.0, 2.0], "float")], ""), "2 values for 1 labels"),
        (lambda: plots.bars([plots.Bar("a", 1, "", "pink")], ""), "unknown colour role 'pink'"),
        (lambda: plots.kernels(np.full((1, 3, 3), 2, np.int8)), "-1, 0 and \\+1"),
        (lambda: plots.kernels(np.zeros((0, 3, 3), np.int8)), "non-empty"),
        (lambda: plots.png_uri(np.zeros((2, 2, 4))), "is not an image"),
    ],
)
def test_refusals_name_the_thing(draw: object, message: str) -> None:
    assert callable(draw)
    with pytest.raises(ValueError, match=message):
        draw()
