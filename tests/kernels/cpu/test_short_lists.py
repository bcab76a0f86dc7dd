"""Lists of two bytes a tap: the bits of code and of other lists."""

from typing import Any

import numpy as np
import pytest
from test_code import MADE_FOR, CodeNet, _one_thread_of_torch  # noqa: F401 - a fixture here too
from test_program import Net, nearly_same

from mpt_fast.kernels import cpu
from mpt_fast.runtime.engine import CompiledProgram
from mpt_fast.runtime.synthetic import Synthetic

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the C++ engine is not built")

SMALL_MAPS = [
    # height, width, kernel, padding, dilation, stride
    (4, 4, 3, 1, 1, 1),
    (3, 5, 3, 1, 1, 1),
    (5, 3, (5, 3), (2, 1), 1, 1),
    (4, 4, 3, 2, 2, 1),
    (1, 16, (1, 3), (0, 1), 1, 1),
    (6, 2, 3, (0, 1), 1, 1),  # fewer rows than the input
    (2, 2, 3, (3, 1), 1, 1),  # more
    (2, 8, (1, 2), (0, 0), 1, 1),  # another width
    (4, 8, 3, 1, 1, 1),  # a vector of levels, two of floats
    (1, 1, (3, 1), (1, 0), 1, 1),
    (8, 8, 3, 1, 1, 2),
    (7, 11, 3, 1, 1, (2, 3)),
    (6, 5, 3, 1, 2, (1, 2)),
]

TWO_VECTORS = [
    # the same; of levels alone
    (8, 8, 3, 1, 1, 1),
    (7, 7, 3, 1, 1, 1),  # an odd row, vectors that are not full
    (5, 7, 3, 2, 2, 1),
    (2, 32, 3, 1, 1, 1),  # a row to a vector
    (4, 16, (5, 3), (2, 1), 1, 1),
    (3, 11, (1, 3), (0, 1), 1, 1),
    (9, 5, (3, 2), (1, 0), 1, 1),  # another width
    (6, 10, 1, 0, 1, 1),
    (2, 17, 3, (3, 1), 1, 1),  # more rows than the input
    (10, 10, 3, 0, 1, 1),  # the input is more than two vectors
    (16, 16, 3, 1, 1, 2),
    (13, 14, 3, 1, 1, 2),
    (16, 15, 1, 0, 1, 2),
    (15, 16, (3, 2), 1, 2, 2),
    (16, 8, 3, 1, 1, (2, 1)),
    (9, 20, 3, 1, 1, (1, 3)),
    (23, 8, 3, 1, 1, (3, 1)),  # code: only strides of up to two rows
]


@pytest.mark.parametrize("levels", [False, True])
@pytest.mark.parametrize("out", [64, 70, 150])
@pytest.mark.parametrize("case", SMALL_MAPS, ids=str)
def test_short_lists(case: tuple[Any, ...], out: int, levels: bool) -> None:
    """Groups that are filled up, segments shared by threads, several blocks of input channels."""
    check_layers(case, out, levels)


@pytest.mark.parametrize("out", [64, 150])
@pytest.mark.parametrize("case", TWO_VECTORS, ids=str)
def test_short_lists_of_two_vectors(case: tuple[Any, ...], out: int) -> None:
    """The same of maps whose even rows are one vector and whose odd rows another."""
    check_layers(case, out, True)


def check_layers(case: tuple[Any, ...], out: int, levels: bool) -> None:
    """Two layers of one input, the second with the first as its residual; results of both kinds."""
    height, width, kernel, padding, dilation, stride = case
    net = CodeNet((130, height, width), out)
    layer: dict[str, Any] = {
        "out": out, "kernel": kernel, "padding": padding, "dilation": dilation, "stride": stride,
        "density": 0.4,
    }  # fmt: skip
    if levels:
        x = net.identity(0, "i8")
        y = net.level_conv(x, kind="i16", **layer)
        return net.check(net.level_conv(x, kind="f32", residual=y, **layer), (1, 2, 7), True)
    y = net.conv(0, **layer, mode="relu")
    return net.check(net.conv(0, **layer, residual=y), (1, 2))


@pytest.mark.parametrize("isa", MADE_FOR)
def test_how_real_layers_keep_their_taps(isa: str) -> None:
    """Code but for wide kernels, linear layers and large maps; short lists of maps of one vector
    (of levels also two), several thousand taps and few images, where vectors have masks."""

    def kept(
        side: int, out: int = 64, size: int = 3, batch: int = 1, density: float = 0.2,
        levels: bool = False,
    ) -> str:  # fmt: skip
        net = Synthetic((64, side, side))
        source = net.combine(0, "i8") if levels else 0
        net.combine((net.levels if levels else net.real)(source, out, size, density), "f32")
        return CompiledProgram(net.program(), "f32", isa, "pixels").pixel_kernels(batch)[-2]

    def strided(side: int) -> list[str]:
        net = cpu.engine().Program(64, side, side, isa=isa, layout="pixels")
        taps = Net((64, side, side)).taps(np.ones((64, 64, 3, 3), np.float32), True)
        net.finish(net.conv_affine(0, *taps, (2, 2), (1, 1), (1, 1), 1, np.ones(64), np.zeros(64)))
        return net.pixel_names(1)

    lists = "sparse short lists" if isa == "avx512" else "sparse code"
    assert kept(4) == kept(5, levels=True) == kept(7, levels=True) == kept(8, levels=True) == lists
    assert strided(8) == [lists]
    assert kept(4, levels=True, batch=6) == lists
    assert kept(4, levels=True, batch=7) == kept(4, batch=2) == "sparse code"
    assert kept(8, levels=True, batch=2) == lists
    assert kept(8, levels=True, batch=3) == "sparse code"
    assert kept(4, out=10) == kept(5) == "sparse code"  # few taps; two vectors
    assert kept(8) == kept(8, size=1) == kept(9, levels=True) == "sparse code"
    assert kept(8, size=5) == kept(1, size=1) == kept(224, out=2) == "sparse"
    few = "sparse short lists" if isa == "avx512" else "sparse"
    assert kept(4, out=600, density=0.9, levels=True) == few  # code would serve half a vector


def test_short_lists_of_values_that_are_not_finite() -> None:
    """As code and lists have them, but for the sign of a NaN."""
    net = CodeNet((70, 4, 4))
    net.program.finish(net.conv(0, 64, mode="none", density=0.2))
    for special in (np.nan, np.inf, -np.inf, -0.0, 1e-40, 3e36):
        x = net.images(1)
        x[net.rng.random(x.shape) < 0.001] = special
        first, *others = (program.run(x) for program in net.program.programs)
        for other in others:
            nearly_same(other, first)
            np.testing.assert_array_equal(
                np.signbit(other[other == 0]), np.signbit(first[other == 0])
            )


@pytest.mark.parametrize("side", [4, 5, 7, 8])
def test_short_lists_whose_sums_leave_sixteen_bits(side: int) -> None:
    """The largest levels under taps of one sign, up to 1170 of them."""
    net = CodeNet((130, side, side), 5)
    y = net.level_conv(net.identity(0, "u8"), 70, "i16", density=0.6)
    images = net.images(3)
    images[0] = 9
    net.check(net.identity(y, "f32"), (1, 3), True, images)


def test_too_many_taps_for_half_a_vector() -> None:
    """Of which lists are made where there is code but no short lists."""
    net = CodeNet((64, 4, 4))
    y = net.level_conv(net.identity(0, "i8"), 600, "i8", density=0.9)
    net.check(net.identity(y, "f32"), (1, 17), True)
