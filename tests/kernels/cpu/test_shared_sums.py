"""Bit-sliced layers whose output channels share sums of taps, in blocks of 512 images."""

from typing import Any

import numpy as np
import pytest
from test_program import ISAS, Net

from mpt_fast.kernels import cpu

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the C++ engine is not built")

BATCHES = (513,)  # a block of 512 images and another
# Outputs, input channels and density where groups of 2, 3 and 4 channels are the cheapest, of 4 by
# pairs and as a whole; the last group has fewer channels.
CASES = {
    "2": (7, 160, 0.6),
    "3": (10, 300, 0.7),
    "pairs of 4": (9, 500, 0.35),
    "4": (11, 160, 1.0),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def additions(weight: Any, groups: int = 1) -> float:
    """As a share of the taps."""
    flat = weight.reshape(len(weight), -1)
    indptr = np.concatenate([[0], np.cumsum((flat != 0).sum(1))]).astype(np.int32)
    index = np.nonzero(flat)[1].astype(np.int32)
    value = flat[flat != 0].astype(np.int8)
    layer = ((groups * weight.shape[1], 3, 3), indptr, index, value, weight.shape)
    made, _ = cpu.engine().bitsliced_conv2d_costs(*layer, (1, 1), (0, 0), (1, 1), groups)
    return float(made / max(1, len(index)))


def bits(shape: tuple[int, int, int], isa: str) -> tuple[Net, int]:
    net = Net(shape, isa)
    return net, net.combine([0], "sign", "bits")


@cases
@pytest.mark.parametrize("isa", ISAS)
def test_signs(isa: str, case: tuple[int, int, float]) -> None:
    outputs, inputs, density = case
    net, x = bits((inputs, 3, 4), isa)
    net.check(net.conv(x, outputs, density=density, mode="sign"), BATCHES, exact=True)


@cases
@pytest.mark.parametrize("isa", ISAS)
def test_signs_chosen_by_a_residual(isa: str, case: tuple[int, int, float]) -> None:
    outputs, inputs, density = case
    net, x = bits((inputs, 3, 3), isa)
    other = net.conv(x, outputs, kernel=1, padding=0, density=0.5, mode="sign")
    net.check(
        net.conv(x, outputs, density=density, mode="sign", residual=other), BATCHES, exact=True
    )


@cases
@pytest.mark.parametrize("isa", ISAS)
def test_sums(isa: str, case: tuple[int, int, float]) -> None:
    outputs, inputs, density = case
    net, x = bits((inputs, 3, 3), isa)
    net.check(net.conv(x, outputs, density=density), BATCHES, exact=True)


@cases
@pytest.mark.parametrize("isa", ISAS)
def test_sums_of_which_the_largest_goes_out(isa: str, case: tuple[int, int, float]) -> None:
    outputs, inputs, density = case
    net, x = bits((inputs, 4, 4), isa)
    sums = net.conv(x, outputs, density=density)
    net.check(net.combine([net.max_pool(sums, 2, 2)]), BATCHES)


@cases
@pytest.mark.parametrize("isa", ISAS)
def test_sign_of_two_sums(isa: str, case: tuple[int, int, float]) -> None:
    outputs, inputs, density = case
    net, x = bits((inputs, 3, 3), isa)
    first = net.conv(x, outputs, density=density)
    second = net.conv(x, outputs, kernel=1, padding=0, density=0.9)
    net.check(net.combine([first, second], "sign", "bits"), BATCHES, exact=True)


@pytest.mark.parametrize(
    "layer",
    [
        {"stride": 2},
        {"dilation": 2, "padding": 2},
        {"groups": 3},
        {"kernel": (1, 5), "padding": (0, 2)},
        {"kernel": 1, "padding": 0},
        {"padding": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("isa", ISAS)
def test_geometries(isa: str, layer: dict[str, Any]) -> None:
    channels = 900 if layer.get("kernel") == 1 else 300
    net, x = bits((channels, 4, 5), isa)
    net.check(net.conv(x, 12, density=0.8, mode="sign", **layer), BATCHES, exact=True)


@pytest.mark.parametrize("isa", ISAS)
def test_channels_that_have_nothing_everything_and_the_same(isa: str) -> None:
    net, x = bits((120, 3, 3), isa)
    weight = net.weight((23, 120, 3, 3), 0.9)
    weight[1] = 0
    weight[2] = weight[0]
    weight[3] = -weight[0]
    weight[4] = 1
    weight[5] = -1
    weight[6, 40:] = 0
    net.weight = lambda *_: weight  # type: ignore[method-assign]
    assert additions(weight) < 0.9
    net.check(net.conv(x, 23, mode="sign"), BATCHES, exact=True)


@pytest.mark.parametrize(
    ("case", "most"), list(zip(CASES.values(), (0.9, 0.7, 0.9, 0.45), strict=True)), ids=CASES
)
def test_these_layers_take_fewer_additions(case: tuple[int, int, float], most: float) -> None:
    _, inputs, density = case
    rng = np.random.default_rng(1)
    shape = (48, inputs, 3, 3)
    weight = rng.choice([-1, 1], shape) * (rng.random(shape) < density)
    assert additions(weight) < most


def test_layers_of_few_taps_take_them_one_by_one() -> None:
    rng = np.random.default_rng(1)
    for shape, density in (((64, 64, 3, 3), 0.2), ((64, 512, 3, 3), 0.1), ((1, 512, 3, 3), 1.0)):
        weight = rng.choice([-1, 1], shape) * (rng.random(shape) < density)
        assert additions(weight) == 1


def test_channels_of_different_groups_share_nothing() -> None:
    """Two channels to a group save less than four of one."""
    weight = np.random.default_rng(1).choice([-1, 1], (48, 100, 3, 3))
    assert additions(weight) < additions(weight, 24) < 1
    assert additions(weight, 48) == 1
