"""Pixels in the lanes: the same bits as images in the lanes, and as float64, for every geometry."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from test_program import ISAS, Net

from mpt_fast.kernels import cpu
from mpt_fast.runtime.engine import CompiledProgram
from mpt_fast.runtime.synthetic import Synthetic

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the C++ engine is not built")
KINDS = ("sign", "residual", "sums", "relu", "relu residual", "weights", "real sign")


@st.composite
def layers(draw: st.DrawFn) -> tuple[tuple[int, int, int], dict[str, int | float], int]:
    """An input shape, a convolution that fits it, and a batch."""
    kernel = draw(st.sampled_from([1, 3, 3, 5, 7]))
    dilation = draw(st.sampled_from([1, 1, 2]))
    padding = draw(st.integers(0, kernel))
    span = max(1, dilation * (kernel - 1) + 1 - 2 * padding)
    size = st.one_of(
        st.integers(span, span + 9), st.sampled_from([s for s in (8, 16, 32) if s >= span])
    )
    groups = draw(st.sampled_from([1, 1, 2]))
    shape = (groups * draw(st.integers(1, 4)), draw(size), draw(size))
    layer = {
        "out": groups * draw(st.integers(1, 5)),
        "kernel": kernel,
        "stride": draw(st.sampled_from([1, 1, 2, 3])),
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "density": draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])),
    }
    return shape, layer, draw(st.integers(1, 17))


def build(net: Net, kind: str, layer: dict[str, int | float]) -> int:
    if kind in ("sign", "residual", "sums"):
        x = net.combine([0], "sign", "bits")
        if kind == "sums":
            return net.combine([net.conv(x, **layer)])
        y = net.conv(x, mode="sign", **layer)
        if kind == "sign":
            return y
        return net.conv(x, mode="sign", residual=y, **layer)
    x = net.combine([0], kind="f64")
    if kind == "real sign":
        return net.conv(x, mode="real_sign", **layer)
    y = net.conv(x, mode="relu", signs=kind != "weights", **layer)
    return net.conv(x, mode="relu", residual=y, **layer) if kind == "relu residual" else y


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(case=layers())
def test_every_geometry(
    case: tuple[tuple[int, int, int], dict[str, int | float], int], kind: str, isa: str
) -> None:
    shape, layer, batch = case
    net = Net(shape, isa)
    net.check(build(net, kind, layer), (batch,), exact=kind in ("sign", "residual"))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", [1, 4, 7, 8, 16, 20, 32])
def test_every_batch_up_to_seventeen(size: int, isa: str) -> None:
    """Maps of one word, of less and of many; passes over a few images; blocks of 16 images."""
    net = Net((3, size, size), isa)
    x = net.combine([0], "sign", "bits")
    y = net.conv(x, 5, mode="sign")
    z = net.combine([net.conv(y, 5, mode="sign", residual=y), net.conv(x, 5)], kind="f32")
    net.check(net.conv(net.flatten(z), 3, kernel=1, padding=0), tuple(range(1, 18)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", [8, 16, 32])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 2)])
def test_more_channels_than_are_staged_at_once(
    kernel: int, stride: int, size: int, isa: str
) -> None:
    """Parts of the channels, by threads too; output channels that are no multiple of four."""
    net = Net((140 if size == 32 else 37, size, size), isa)
    layer = {"kernel": kernel, "stride": stride, "padding": kernel // 2, "density": 0.1}
    x = net.combine([0], "sign", "bits")
    y = net.conv(x, 7, mode="sign", **layer)
    z = net.conv(x, 7, mode="sign", residual=y, **layer)
    net.check(net.combine([z, net.conv(x, 7, **layer)]), (1, 3) if size < 32 else (1,))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", [4, 8, 16, 32, 12])
def test_pools_that_halve(size: int, isa: str) -> None:
    net = Net((19, size, size), isa)
    x = net.combine([0], "sign", "bits")
    flipped = net.max_pool(x, 2, 2, flip=True)
    sums = net.max_pool(net.conv(x, 9), 2, 2)
    y = net.combine([net.conv(flipped, 9), sums], kind="f64")
    reals = net.max_pool(y, 2, 2)
    net.check(net.avg_pool(reals, size // 4, 1), (1, 3))


def test_layouts_by_name_and_by_batch() -> None:
    engine = cpu.engine()
    with pytest.raises(ValueError, match="layout must be"):
        engine.Program(1, 2, 2, layout="rows")
    peaks = {}
    for layout in ("auto", "images", "pixels"):
        net = engine.Program(2, 4, 4, layout=layout)
        net.finish(net.combine([0], [np.ones(2)], [np.zeros(2)], "sign", "bits"))
        peaks[layout] = [net.peak_bytes(n) for n in (1, 500)]
    assert peaks["auto"] == [peaks["pixels"][0], peaks["images"][1]]
    assert peaks["pixels"][0] < peaks["images"][0]


@pytest.mark.parametrize("isa", ISAS)
def test_the_kernel_follows_the_layer(isa: str) -> None:
    """Few pixels and many taps: whole words of taps; few taps: bit-sliced; and what is forced."""

    def names(density: float, side: int, layout: str) -> list[str]:
        net = Synthetic((256, side, side))
        net.sign(net.combine(0, "bits"), 32, 3, density)
        return CompiledProgram(net.program(), "f32", isa, layout).pixel_kernels(1)

    assert names(1.0, 4, "auto") == ["", "popcount"]
    assert names(0.01, 4, "auto") == ["", "bit-sliced"]
    assert names(0.2, 32, "auto") == ["", "bit-sliced"]
    for layout, name in (("sliced", "bit-sliced"), ("lookups", "lookups"), ("words", "popcount")):
        assert names(0.3, 8, layout) == ["", name]
