"""Bit-sliced layers whose lists lack the taps outside the image: the results of float64."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from test_program import ISAS, Net

from mpt_fast.kernels import cpu

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the C++ engine is not built")
IMAGES = (512,)  # a block of whole vectors


class Listed(Net):
    """With lists of taps alone: code has no borders."""

    def __init__(self, shape: tuple[int, int, int], isa: str, seed: int = 0) -> None:
        super().__init__(shape, isa)
        program = cpu.engine().Program(*shape, isa=isa, layout="images", code=False)
        self.program = program
        self.rng = np.random.default_rng(seed)
        self.bits = self.combine([0], "sign", "bits")

    def result(self, kind: str, layer: dict[str, Any]) -> int:
        if kind == "sums":
            return self.combine([self.conv(self.bits, **layer)], kind="f64")
        y = self.conv(self.bits, mode="sign", **layer)
        return self.conv(self.bits, mode="sign", residual=y, **layer) if kind == "residual" else y


@st.composite
def layers(draw: st.DrawFn) -> tuple[tuple[int, int, int], dict[str, Any]]:
    """A map of 1 to 9 rows and columns and a layer that fits it, perhaps with a larger kernel."""
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (3, 3), (3, 3), (5, 5), (1, 5), (3, 2)]))
    stride = (draw(st.sampled_from([1, 1, 2])), draw(st.sampled_from([1, 1, 2])))
    dilation = (draw(st.sampled_from([1, 1, 2])), draw(st.sampled_from([1, 1, 3])))
    spans = [dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    size = [draw(st.integers(1, 9)) for _ in (0, 1)]
    least = [max(0, -(-(spans[i] - size[i]) // 2)) for i in (0, 1)]
    padding = tuple(draw(st.integers(least[i], max(least[i], spans[i]))) for i in (0, 1))
    groups = draw(st.sampled_from([1, 1, 1, 3]))
    inputs = groups * draw(st.sampled_from([1, 4, 30, 70]))
    layer = {
        "out": groups * draw(st.sampled_from([1, 3, 10])),
        "kernel": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "density": draw(st.sampled_from([0.0, 0.1, 0.3, 0.6, 1.0])),
    }
    return (inputs, size[0], size[1]), layer


@pytest.mark.parametrize("kind", ["sign", "residual", "sums"])
@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(made=layers(), seed=st.integers(0, 2**31))
def test_every_geometry(
    isa: str, kind: str, made: tuple[tuple[int, int, int], dict[str, Any]], seed: int
) -> None:
    shape, layer = made
    net = Listed(shape, isa, seed)
    net.check(net.result(kind, layer), IMAGES, exact=kind != "sums")


@pytest.mark.parametrize("side", range(1, 10))
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", ["sign", "residual", "sums"])
@pytest.mark.parametrize("isa", ISAS)
def test_every_size_of_map(isa: str, kind: str, stride: int, side: int) -> None:
    """Of kernels of three, maps of three and more have all nine classes of pixels."""
    for kernel, density in ((3, 0.4), (5, 0.2)):
        net = Listed((60, side, side), isa)
        layer = {"out": 12, "kernel": kernel, "stride": stride, "density": density}
        layer["padding"] = kernel // 2
        net.check(net.result(kind, layer), IMAGES, exact=kind != "sums")


@pytest.mark.parametrize("kind", ["sign", "residual", "sums"])
@pytest.mark.parametrize("isa", ISAS)
def test_every_tap_lies_outside(isa: str, kind: str) -> None:
    net = Listed((20, 2, 8), isa)
    layer = {"kernel": (1, 4), "stride": 3, "padding": (1, 0), "dilation": (1, 2)}
    net.check(net.result(kind, {"out": 12, **layer}), IMAGES, exact=kind != "sums")


@pytest.mark.parametrize("density", [0.3, 1.0])  # the denser one shares sums
@pytest.mark.parametrize("isa", ISAS)
def test_maxima_and_signs_of_sums(isa: str, density: float) -> None:
    net = Listed((160, 4, 6), isa)
    first = net.conv(net.bits, 20, density=density)
    net.check(net.combine([net.max_pool(first, 2, 2)], kind="f64"), IMAGES)
    net = Listed((160, 4, 6), isa)
    first = net.conv(net.bits, 20, kernel=5, padding=2, stride=2, density=density)
    second = net.conv(net.bits, 20, stride=2, density=density)
    net.check(net.combine([first, second], "sign", "bits"), IMAGES, exact=True)


@pytest.mark.parametrize("outputs", [7, 160])
@pytest.mark.parametrize("isa", ISAS)
def test_channels_that_threads_share_out(isa: str, outputs: int) -> None:
    """Each class of pixels passes through the channels in an order of its own."""
    net = Listed((160, 2, 4), isa)
    weight = net.weight((outputs, 160, 3, 3), 1.0) * (
        net.rng.random((outputs, 160, 3, 3)) < net.rng.random((outputs, 1, 1, 1)) / 2
    )
    net.weight = lambda *_: weight  # type: ignore[method-assign]
    y = net.conv(net.bits, outputs, mode="sign")
    net.program.finish(y)
    x = net.rng.normal(size=(1100, 160, 2, 4)).astype(np.float32)
    expected = net.values(x)[y].numpy()
    for threads in (1, 2, 3, 8):
        np.testing.assert_array_equal(net.program.run(x, threads), expected)


def additions(side: int, kernel: int = 3, stride: int = 1, padding: int = 1) -> float:
    """Of a layer whose channels share no sums, as a share of its taps."""
    weight = np.random.default_rng(1).choice([-1, 1], (1, 40, kernel, kernel))
    given = ([0, weight.size], range(weight.size), weight.ravel())
    taps = [np.array(a, t) for a, t in zip(given, (np.int32, np.int32, np.int8), strict=True)]
    layer = ((40, side, side), *taps, weight.shape, (stride, stride), (padding, padding))
    made, _ = cpu.engine().bitsliced_conv2d_costs(*layer, (1, 1), 1)
    return float(made / weight.size)


def test_taps_outside_the_image_are_not_added() -> None:
    assert additions(4) == pytest.approx((10 / 12) ** 2)
    assert additions(8) == pytest.approx((22 / 24) ** 2)
    assert additions(1) == pytest.approx(1 / 9)
    assert additions(4, stride=2) == pytest.approx((5 / 6) ** 2)
    assert additions(5, kernel=5, padding=2) == pytest.approx((19 / 25) ** 2)
    assert additions(4, padding=0) == additions(4, kernel=1, padding=0) == 1


def test_where_few_are_outside_one_list_serves_all() -> None:
    assert additions(32) == 1
    assert additions(9, kernel=9, padding=4) == 1  # nine classes: too many lists
