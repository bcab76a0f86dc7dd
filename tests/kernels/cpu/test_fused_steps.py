"""Steps that the engine joins when a program is finished: the bits of the separate steps."""

from typing import Any

import numpy as np
import pytest
import torch
from test_program import ISAS, Net, column, finish
from torch.nn import functional

from mpt_fast.kernels import cpu

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the C++ engine is not built")


def signed(net: Net) -> int:
    return net.combine([0], "sign", "bits")


def combined(net: Net, srcs: list[int], scales: list[Any], shifts: list[Any], op: str = "sign",
             kind: str = "bits") -> int:  # fmt: skip
    def step(v: list[torch.Tensor]) -> torch.Tensor:
        terms = [v[s] * column(a) + column(b) for s, a, b in zip(srcs, scales, shifts, strict=True)]
        return finish(sum(terms[1:], terms[0]), op)

    return net._add(net.program.combine(srcs, scales, shifts, op, kind), step)


def times_are_joined(net: Net, joined: list[int]) -> None:
    """The steps that compute these values took no time of their own."""
    times = net.program.step_times()
    assert [value for value in range(1, len(times) + 1) if times[value - 1] == 0] == joined


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(9, 6, 7), (5, 8, 8), (40, 3, 3)], ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_sign_of_two_sums(isa: str, shape: tuple[int, int, int], density: float) -> None:
    net = Net(shape, isa)
    x = signed(net)
    a = net.conv(x, 12, stride=2, density=density)
    b = net.conv(x, 12, kernel=1, padding=0, stride=2, density=density)
    net.check(net.combine([a, b], "sign", "bits"), exact=True)
    times_are_joined(net, [a, b])


@pytest.mark.parametrize("ratio", [1.0, -0.37, 1e-6, 3e4, 0.0])
@pytest.mark.parametrize("isa", ISAS)
def test_sign_of_two_sums_with_slopes_of_every_ratio(isa: str, ratio: float) -> None:
    """Also those that no inequality in 16 bits describes, ties at 0, and constant channels."""
    net = Net((20, 5, 5), isa)
    x = signed(net)
    a, b = net.conv(x, 16, density=0.4), net.conv(x, 16, density=0.2)
    scale = np.tile([0.5, -0.5, 0.0, 1e-3], 4)
    shift = np.repeat([0.0, 0.25, -0.25, 7.0], 4)
    other = np.where(scale == 0, 1.0, scale) * ratio
    y = combined(net, [a, b], [scale, other], [shift, np.zeros(16)])
    net.check(y, (1, 130), exact=True)


PLAIN = {"kernel": 3, "padding": 1}
ONE = {"kernel": 1, "padding": 0}


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "sides",
    [
        (ONE, PLAIN),
        (PLAIN, {"kernel": 5, "padding": 2}),
        ({"kernel": 3, "padding": 2, "dilation": 2}, {"kernel": (1, 3), "padding": (0, 1)}),
        (PLAIN, {"kernel": 1, "padding": 0, "groups": 2}),
    ],
    ids=["the first has fewer taps", "two borders", "dilation", "groups"],
)
@pytest.mark.parametrize("isa", ISAS)
def test_sign_of_two_sums_with_borders_of_their_own(
    isa: str, sides: tuple[dict[str, Any], dict[str, Any]], stride: int
) -> None:
    """Also channels without taps on either side, and images of fewer pixels than a kernel."""
    for shape, density in (((6, 7, 9), 0.5), ((10, 4, 3), 0.1)):
        net = Net(shape, isa)
        x = signed(net)
        a, b = (net.conv(x, 16, stride=stride, density=density, **side) for side in sides)
        scale = net.channels(16)
        y = combined(net, [a, b], [scale, net.channels(16)], [scale / 3, scale / 7])
        net.check(y, exact=True)
        times_are_joined(net, [a, b])


@pytest.mark.parametrize("taps", [(25, 18), (80, 5), (4, 90), (1, 2), (255, 1)], ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_sign_of_every_pair_of_sums(isa: str, taps: tuple[int, int]) -> None:
    """Slopes and shifts of every size and sign; some sums are exactly on the threshold."""
    count = 96
    net = Net((sum(taps), 1, 1), isa)
    x = signed(net)
    signs = net.rng.choice([-1.0, 1.0], sum(taps))
    sides = signs * (np.arange(sum(taps)) < taps[0]), signs * (np.arange(sum(taps)) >= taps[0])
    turns = net.rng.choice([-1.0, 1.0], (2, count))
    values = []
    for side, turn in zip(sides, turns, strict=True):
        weight = (turn[:, None] * side)[:, :, None, None]
        value = net.program.conv(x, *net.taps(weight, True), (1, 1), (0, 0), (1, 1), 1)
        tensor = torch.from_numpy(weight)
        values.append(net._add(value, lambda v, t=tensor: functional.conv2d(v[x], t)))
    sizes = 2.0 ** net.rng.integers(-9, 3, (2, count))
    scales = [*(net.rng.normal(size=(2, count)) * sizes)]
    scales[0][:4], scales[1][4:8] = 0, 0
    scales[0][8:14] = [1e-300, 5e-324, 1e300, -1e-9, 1e9, 0.1]
    scales[1][8:14] = [1e-300, 1.0, -1e300, 1.0, 1.0, 0.3]
    met = [net.rng.integers(0, n + 1, count) for n in taps]  # of each side, on the threshold
    ties = [
        turn * (2 * m - n) * scale
        for turn, m, n, scale in zip(turns, met, taps, scales, strict=True)
    ]
    shifts = [-ties[0], -ties[1]]
    shifts[0][1::3] = -(ties[0] + ties[1])[1::3]
    shifts[1][1::3] = 0
    shifts[0][2::3] = (net.rng.normal(size=count) * sizes[0] * 5)[2::3]
    y = combined(net, values, scales, shifts)
    net.program.finish(y)
    first, second = np.meshgrid(*(np.arange(n + 1) for n in taps), indexing="ij")
    within = np.concatenate([np.arange(n) for n in taps])
    reached = np.where(np.arange(sum(taps)) < taps[0], first.reshape(-1, 1), second.reshape(-1, 1))
    images = np.where(within < reached, signs, -signs).astype(np.float32)
    images = np.resize(images, (512, sum(taps)))[:, :, None, None]
    np.testing.assert_array_equal(net.program.run(images), net.values(images)[y].numpy())
    times_are_joined(net, values)


@pytest.mark.parametrize("isa", ISAS)
def test_sign_of_two_sums_of_many_taps(isa: str) -> None:
    """More than 8 planes, and more taps than an inequality is tried for."""
    net = Net((9000, 1, 1), isa)
    x = signed(net)
    a = net.conv(x, 3, kernel=1, padding=0, density=1.0)
    b = net.conv(x, 3, kernel=1, padding=0, density=0.03)
    net.check(net.combine([a, b], "sign", "bits"), (1, 70), exact=True)
    times_are_joined(net, [a, b])


@pytest.mark.parametrize("isa", ISAS)
def test_sums_wider_than_16_bits(isa: str) -> None:
    net = Net((33000, 1, 1), isa)
    x = signed(net)
    a = net.conv(x, 3, kernel=1, padding=0, density=1.0)
    b = net.conv(x, 3, kernel=1, padding=0, density=0.5)
    net.check(net.combine([a, b], kind="f64"), (1, 70))
    net = Net((33000, 1, 1), isa)
    y = net.conv(signed(net), 3, kernel=1, padding=0, density=1.0)
    images = np.ones((65, 33000, 1, 1), np.float32)
    images[1:] = net.rng.normal(size=(64, 33000, 1, 1))
    net.program.finish(y)
    np.testing.assert_array_equal(net.program.run(images), net.values(images)[y].numpy())


@pytest.mark.parametrize(("op", "kind"), [("relu", "f32"), ("none", "f64"), ("sign", "bits")])
@pytest.mark.parametrize("pool", [None, (2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 1)], ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_combinations_of_sums(
    isa: str, pool: tuple[int, int, int] | None, op: str, kind: str
) -> None:
    """One, two or three sources; sums, maxima of sums, and values of other kinds between them."""
    net = Net((6, 9, 7), isa)
    x = signed(net)
    a = net.conv(x, 10, density=0.4)
    joined = [a]
    if pool is None:
        other = net.conv(x, 10, mode="sign")
    else:
        a = net.max_pool(a, *pool, ceil=True)
        joined.append(a)
        other = net.max_pool(net.conv(x, 10, mode="sign"), *pool, ceil=True)
    y = net.combine([other, a, other], op, kind)
    net.check(y, (1, 70, 130), exact=op == "sign")
    times_are_joined(net, joined)


@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), (5, 2), (1, 0)])
@pytest.mark.parametrize("pool", [1, 2, 3, 5])
@pytest.mark.parametrize("isa", ISAS)
def test_maxima_of_sums_over_windows_that_do_not_overlap(
    isa: str, pool: int, kernel: int, padding: int, density: float
) -> None:
    """Windows across borders, where the sums of one list are odd here, even there."""
    net = Net((6, 7, 11), isa)
    a = net.conv(signed(net), 10, kernel=kernel, padding=padding, density=density)
    b = net.max_pool(a, pool, pool)
    net.check(net.combine([b], "relu", "f32"), (1, 70, 513))
    times_are_joined(net, [a, b])


@pytest.mark.parametrize("isa", ISAS)
def test_sums_that_others_read_stay_whole(isa: str) -> None:
    net = Net((6, 7, 7), isa)
    x = signed(net)
    a, b = net.conv(x, 9), net.conv(x, 9)
    y = net.combine([a, b], "sign", "bits")
    z = net.combine([a, y], "relu", "f32")
    net.check(z, (1, 70))
    times_are_joined(net, [b])
    net = Net((6, 7, 7), isa)
    a = net.conv(signed(net), 9)
    net.check(net.combine([a, a], "sign", "bits"), (1, 70), exact=True)
    times_are_joined(net, [])


@pytest.mark.parametrize("isa", ISAS)
def test_average_of_bits_needs_no_conversion(isa: str) -> None:
    for kind in ("f32", "f64"):
        net = Net((3, 7, 6), isa)
        x = signed(net)
        one = np.ones(3)
        y = combined(net, [x], [one], [one * 0], "none", kind)
        net.check(net.avg_pool(y, 3, 2, 1, include=False), (1, 70))
        times_are_joined(net, [y])


def filtered(net: Net, weight: Any, scale: Any, shift: Any, stride: int = 1) -> tuple[int, int]:
    """Values of a conversion to double and of the signs of a convolution of that."""
    x = combined(net, [0], [np.ones(net.shapes[0][0])], [np.zeros(net.shapes[0][0])], "none", "f64")
    signs = bool(np.isin(weight, (-1, 0, 1)).all())
    given = (x, *net.taps(weight, signs), (stride, stride), (1, 1), (1, 1), 1)
    value = net.program.conv_affine(*given, scale=scale, shift=shift, op="sign")

    def step(v: list[torch.Tensor]) -> torch.Tensor:
        sums = functional.conv2d(v[x], torch.from_numpy(weight), None, stride, 1)
        return finish(sums * column(scale) + column(shift), "sign")

    return x, net._add(value, step)


@pytest.mark.parametrize("signs", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(9, 11), (6, 16), (2, 400)], ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_signs_of_a_float_convolution(
    isa: str, size: tuple[int, int], stride: int, signs: bool
) -> None:
    """Rows of whole bytes and others, whole rows in registers and parts of one."""
    net = Net((3, *size), isa)
    weight = net.weight((20, 3, 3, 3), 0.4, signs)
    weight[0] = 0
    scale = net.channels(20)
    x, y = filtered(net, weight, scale, net.channels(20), stride)
    net.check(y, (1, 3), exact=True)
    times_are_joined(net, [x])


@pytest.mark.parametrize("size", [1.0, 2.0**-130, 2.0**120, 1e38])
@pytest.mark.parametrize("isa", ISAS)
def test_float_sums_in_doubt_are_decided_in_double(isa: str, size: float) -> None:
    """Small integers times a power of two: sums are exact in double and often on the threshold.

    Times 2^-130 they are subnormal floats, times 1e38 float sums overflow.
    """
    net = Net((4, 8, 8), isa)
    weight = net.weight((24, 4, 3, 3), 0.6)
    scale = np.tile([1.0, -1.0, 0.0, -0.5, 1e-300, 3.0], 4)
    shift = np.repeat([0.0, 1.0, -1.0, 0.5], 6) * size
    x, y = filtered(net, weight, scale, shift)
    net.program.finish(y)
    images = (net.rng.integers(-3, 4, (70, 4, 8, 8)) * size).astype(np.float32)
    images[1] = 0
    expected = net.values(images)[y].numpy()
    np.testing.assert_array_equal(net.program.run(images), expected)
    times_are_joined(net, [x])


@pytest.mark.parametrize("side", [6, 8])
@pytest.mark.parametrize("isa", ISAS)
def test_float_sums_next_to_the_threshold(isa: str, side: int) -> None:
    """Sums of numbers of very different size, thresholds a few float roundings away."""
    net = Net((2, side, side), isa)
    weight = net.weight((32, 2, 3, 3), 1.0)
    values = [1.0, -1.0, 1.0 + 2.0**-22, 2.0**-23, 2.0**-30, 0.0]
    images = net.rng.choice(values, (90, 2, side, side))
    shift = np.repeat([0.0, 2.0**-24, -(2.0**-26), 1 + 2.0**-23], 8)
    _, y = filtered(net, weight, np.ones(32), shift)
    net.program.finish(y)
    images = images.astype(np.float32)
    np.testing.assert_array_equal(net.program.run(images), net.values(images)[y].numpy())


@pytest.mark.parametrize("side", [4, 8])
def test_an_image_that_is_not_finite_gives_signs_like_double(side: int) -> None:
    net = Net((1, side, side))
    _, y = filtered(net, np.ones((2, 1, 3, 3)), np.array([1.0, -1.0]), np.array([0.5, 0.5]))
    net.program.finish(y)
    images = np.zeros((3, 1, side, side), np.float32)
    images[0, 0, 0, 0], images[1, 0, 0, 0] = np.inf, np.nan
    np.testing.assert_array_equal(net.program.run(images), net.values(images)[y].numpy())


@pytest.mark.parametrize("isa", ISAS)
def test_signs_of_doubles_that_are_no_floats(isa: str) -> None:
    """Thresholds between an input and the float next to it."""
    net = Net((2, 8, 8), isa, kind="f64")
    weight = np.zeros((4, 2, 3, 3))
    weight[:, 0, 1, 1] = [1, -1, 1, -1]
    shift = np.array([-1.0, 1.0, -1 - 2.0**-40, 1 + 2.0**-40])
    _, y = filtered(net, weight, np.ones(4), shift)
    net.program.finish(y)
    images = 1 + net.rng.choice([-(2.0**-30), 0.0, 2.0**-41, 2.0**-40, 2.0**-39], (3, 2, 8, 8))
    np.testing.assert_array_equal(net.program.run(images), net.values(images)[y].numpy())


@pytest.mark.parametrize("isa", ISAS)
def test_a_block_overwrites_its_shortcut(isa: str) -> None:
    """Two blocks in one buffer, borders of 1 and 2; a shortcut that is read later stays."""

    def block(net: Net, x: int) -> int:
        return net.conv(net.conv(x, 48, mode="sign"), 48, mode="sign", residual=x)

    net = Net((1, 6, 5), isa)
    x = net.conv(signed(net), 48, mode="sign")
    y = block(net, block(net, x))
    net.check(net.conv(y, 5, kernel=5, padding=2), (1, 70, 130), exact=True)
    small = net.program.peak_bytes(64)
    net = Net((1, 6, 5), isa)
    x = net.conv(signed(net), 48, mode="sign")
    y = net.conv(block(net, x), 48, mode="sign", residual=x)
    net.check(net.conv(y, 5, kernel=5, padding=2), (1, 70, 130), exact=True)
    assert small < net.program.peak_bytes(64)


@pytest.mark.parametrize("mode", ["plain", "none", "relu"])
@pytest.mark.parametrize(
    "shape", [(9, 8, 8), (3, 6, 7), (40, 5, 4), (5, 2, 11), (7, 13, 2)], ids=str
)
@pytest.mark.parametrize("kind", ["f32", "f64"])
@pytest.mark.parametrize("isa", ISAS)
def test_results_of_which_only_maxima_go_on(
    isa: str, kind: str, shape: tuple[int, int, int], mode: str
) -> None:
    """Odd rows and columns have no maximum; signs and float taps, a stride, several blocks."""
    net = Net(shape, isa, kind)
    joined = [a := net.conv(0, 24, mode=mode)]
    b = net.max_pool(a, 2, 2)
    c = net.conv(b, 5, mode=mode, signs=False, stride=2 if min(net.shapes[b][1:]) > 3 else 1)
    if min(net.shapes[c][1:]) > 1:
        joined.append(c)
        c = net.max_pool(c, 2, 2)
    net.check(c, (1, 16, 37))
    times_are_joined(net, joined)


@pytest.mark.parametrize(
    "pool", [(2, 1, 0, False), (3, 2, 0, False), (2, 2, 1, False), (2, 2, 0, True)], ids=str
)
def test_other_pools_of_reals_stay_steps(pool: tuple[int, int, int, bool]) -> None:
    net = Net((3, 7, 7))
    net.check(net.max_pool(net.conv(0, 4, mode="relu"), *pool), (1, 20))
    times_are_joined(net, [])


def test_results_that_others_read_stay_whole() -> None:
    net = Net((3, 8, 8))
    a = net.conv(0, 4, mode="relu")
    b = net.max_pool(a, 2, 2)
    net.check(net.combine([b, net.avg_pool(a, 2, 2)]), (1, 20))
    times_are_joined(net, [])


@pytest.mark.parametrize("isa", ISAS)
def test_a_result_that_is_not_finite_has_the_maximum_of_pytorch(isa: str) -> None:
    net = Net((1, 4, 4), isa)
    one = np.ones((1, 1, 1, 1))
    value = net.program.conv(0, *net.taps(one, False), (1, 1), (0, 0), (1, 1), 1)
    a = net._add(value, lambda v: v[0])
    net.program.finish(net.max_pool(a, 2, 2))
    x = np.array([[[[1, np.nan, -np.inf, -np.inf], [2, 3, -np.inf, -np.inf],
                    [np.inf, 4, 5, 6], [7, 8, np.nan, np.inf]]]], np.float32)  # fmt: skip
    np.testing.assert_array_equal(net.program.run(x), net.values(x)[-1].numpy())


@pytest.mark.parametrize("kind", ["i8", "u8", "i16", "f32"])
@pytest.mark.parametrize("shape", [(9, 8, 8), (100, 5, 6), (120, 12, 13)], ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_levels_of_which_only_maxima_go_on(
    isa: str, shape: tuple[int, int, int], kind: str
) -> None:
    """Sums too long for 16 bits, inputs too large for L1; other layouts, not joined, agree."""
    net = Net(shape, isa)
    c = shape[0]
    levels = combined(net, [0], [np.full(c, 40.0)], [np.zeros(c)], "none", "i8")
    weight = net.weight((13, c, 3, 3), 0.9)
    scale = net.rng.choice([-1.0, 1.0], 13) * (0.02 if kind != "i16" else 1.0)
    given = (levels, *net.taps(weight, True), (1, 1), (1, 1), (1, 1), 1)
    op = "relu" if kind == "u8" else "none"
    value = net.program.conv_affine(*given, scale=scale, shift=scale, op=op, kind=kind)
    low, high = {"i8": (-127, 127), "u8": (0, 255), "i16": (-32767, 32767)}.get(kind, (None, None))

    def step(v: list[torch.Tensor]) -> torch.Tensor:
        rounded = (v[0].float() * 40).round().clamp(-127, 127).double()  # as the engine rounds
        sums = functional.conv2d(rounded, torch.from_numpy(weight), None, 1, 1)
        y = sums.float() * column(scale).float() + column(scale).float()
        return y.double() if low is None else y.round().clamp(low, high).double()

    a = net._add(value, step)
    b = net.max_pool(a, 2, 2)
    out = net.combine([b, b]) if kind != "f32" else b
    net.check(out, (1, 32, 70))
    times_are_joined(net, [a])
