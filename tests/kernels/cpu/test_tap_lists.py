"""Lists of a byte a tap, the borders that neighbours share, and where stages lie."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from test_code import CodeNet, _one_thread_of_torch  # noqa: F401 - a fixture here too
from test_program import ISAS, Net, Size

from mpt_fast.kernels import cpu

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the C++ engine is not built")


class FarNet(CodeNet):
    """Channels of no tap, one at either end, and taps as far apart as a byte says and farther."""

    STEPS = ([], [1], [630], [1, 127, 127, 1], [128, 1], [127, 128, 126], [254], [255, 1, 254], [])

    def weight(self, shape: tuple[int, ...], density: float, signs: bool = True) -> NDArray[Any]:
        flat = np.zeros((len(self.STEPS), int(np.prod(shape[1:]))))
        for row, steps in zip(flat, self.STEPS, strict=True):
            places = np.cumsum(steps, dtype=int) - 1
            row[places] = self.rng.choice([-1.0, 1.0], len(steps))
            row *= 1.0 if signs else self.rng.normal(size=row.shape)
        return flat.reshape(shape)


@pytest.mark.parametrize("form", ["signs", "weights", "levels"])
@pytest.mark.parametrize(
    "layer", [{}, {"stride": 2}, {"stride": (3, 2), "dilation": 2, "padding": 2}], ids=str
)
def test_taps_that_lie_far_apart(layer: dict[str, Any], form: str) -> None:
    """In one block, for so few taps."""
    net = FarNet((70, 7, 5))
    out = len(FarNet.STEPS)
    if form == "levels":
        y = net.level_conv(net.identity(0, "i8"), out, "f32", **layer)
        return net.check(y, (1, 17, 33), exact=True)
    return net.check(net.conv(0, out, signs=form == "signs", mode="relu", **layer), (1, 17))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("signs", [True, False])
def test_taps_of_double_that_lie_far_apart(signs: bool, isa: str) -> None:
    net = Net((70, 7, 5), isa, "f64")
    net.check(net.conv(0, 9, density=0.004, signs=signs, mode="none"), (1, 17))


@pytest.mark.parametrize("form", ["signs", "weights", "levels"])
@pytest.mark.parametrize("groups", [2, 3])
def test_groups_of_several_blocks_with_empty_channels(groups: int, form: str) -> None:
    layer: dict[str, Any] = {"out": 3 * groups, "groups": groups, "density": 0.3, "stride": (1, 2)}
    net = CodeNet((70 * groups, 5, 7), groups)
    if form == "levels":
        y = net.level_conv(net.identity(0, "u8"), kind="f32", **layer)
        return net.check(y, (1, 33), exact=True)
    return net.check(net.conv(0, signs=form == "signs", mode="none", **layer), (1, 17))


@pytest.mark.parametrize("levels", [False, True])
@pytest.mark.parametrize(
    ("side", "kernel", "padding"),
    [((1, 1), 5, 2), ((1, 9), (1, 5), (0, 2)), ((9, 1), (5, 1), (2, 0)), ((2, 3), 7, 5)],
    ids=str,
)
def test_borders_that_neighbours_share(
    side: tuple[int, int], kernel: Size, padding: Size, levels: bool
) -> None:
    """Of rows, channels and groups of images, on both sides of few pixels."""
    net = CodeNet((3, *side))
    if levels:
        y = net.level_conv(net.identity(0, "i8"), 4, "i8", kernel, padding=padding, mode="relu")
        y = net.level_conv(y, 3, "f32", kernel, padding=padding)
        return net.check(y, (1, 16, 33, 70), exact=True)
    y = net.conv(0, 4, kernel, padding=padding, mode="relu")
    return net.check(net.conv(y, 3, kernel, padding=padding), (1, 16, 33))


def test_memory_of_maps_and_stages() -> None:
    """A border serves both its neighbours; a stage lies where larger maps were."""

    def peak(deep: bool, layers: int) -> int:
        net = Net((4, 32, 32), "plain")
        x = net.conv(net.conv(0, 16, mode="relu"), 16, mode="relu")
        if deep:
            x = net.conv(x, 250, stride=8, mode="relu")
            for _ in range(layers):  # of several blocks, so that partial sums are kept
                x = net.conv(x, 250, mode="relu")
        net.program.finish(x)
        return int(net.program.peak_bytes(64))

    assert peak(True, 0) == peak(True, 3)
    assert peak(False, 0) < 0.95 * (4 + 16 + 16) * 34 * 34 * 64
