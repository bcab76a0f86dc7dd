"""Code in which output channels share sums of inputs: the same sums, by fewer instructions."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_code import MADE_FOR, CodeNet, _one_thread_of_torch  # noqa: F401 - a fixture here too
from test_program import Array

from mpt_fast.kernels import cpu
from mpt_fast.runtime.engine import CompiledProgram
from mpt_fast.runtime.synthetic import Synthetic

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the C++ engine is not built")

Weights = Callable[[np.random.Generator, tuple[int, ...]], Array]


def alike(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Every channel keeps the same taps, with equal or with opposite signs."""
    return rng.choice([-1.0, 1.0], (shape[0], 1, 1, 1)) * rng.integers(-1, 2, (1, *shape[1:]))


def two_by_two(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Every tap is kept by two channels: each use of a pair is an input's last."""
    weight = np.zeros(shape)
    for i in np.ndindex(shape[1:]):
        weight[(rng.choice(shape[0], 2, replace=False), *i)] = rng.choice([-1, 1], 2)
    return weight


def threes(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Triples of inputs that three or four channels keep whole: terms of three inputs."""
    flat = np.zeros((shape[0], int(np.prod(shape[1:]))))
    for first in range(0, flat.shape[1] - 2, 3):
        channels = rng.choice(shape[0], 4, replace=False)
        flat[channels, first : first + 3] = rng.choice([-1, 1], 3) * rng.choice([-1, 1], (4, 1))
        flat[channels[3], first] = 0
    return flat.reshape(shape)


def random(density: float) -> Weights:
    def weights(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        return rng.choice([-1.0, 1.0], shape) * (rng.random(shape) < density)

    weights.__name__ = f"random {density}"
    return weights


class GivenNet(CodeNet):
    """Its layers have weights made by `weights`."""

    def __init__(self, shape: tuple[int, int, int], weights: Weights) -> None:
        super().__init__(shape)
        self.weights = weights

    def weight(self, shape: tuple[int, ...], density: float, signs: bool = True) -> Array:
        return self.weights(self.rng, shape).astype(float)


@pytest.mark.parametrize("levels", [False, True])
@pytest.mark.parametrize("side", [4, 11])  # positions outside the image passed over, and not
@pytest.mark.parametrize(
    "weights", [alike, two_by_two, threes, *map(random, (0.08, 0.3, 0.6, 1.0))],
    ids=lambda w: w.__name__,
)  # fmt: skip
def test_sums_in_common(weights: Weights, side: int, levels: bool) -> None:
    net = GivenNet((66, side, side), weights)
    if levels:
        x = net.identity(0, "i8")
        residual = net.level_conv(x, 30, "i8")
        net.check(net.level_conv(x, 30, "f32", residual=residual), (17,), exact=True)
    else:
        net.check(net.conv(0, 30, residual=net.conv(0, 30), mode="relu"), (17,))


@pytest.mark.parametrize("stride", [1, 2, (1, 3)], ids=str)
@pytest.mark.parametrize("padding", [(2, 2), (0, 3), (3, 1)], ids=str)
@pytest.mark.parametrize("shape", [(9, 1, 1), (9, 2, 5), (9, 3, 4), (9, 6, 6)], ids=str)
def test_positions_outside_the_image(
    shape: tuple[int, int, int], padding: tuple[int, int], stride: int | tuple[int, int]
) -> None:
    """Whole results, rows and columns of them may have no input but zeros."""
    for kernel, dilation in (((3, 3), (1, 1)), ((5, 5), (1, 1)), ((3, 3), (2, 1))):
        sides = zip(shape[1:], padding, kernel, dilation, strict=True)
        if any(side + 2 * p < d * (k - 1) + 1 for side, p, k, d in sides):
            continue
        layer = {"kernel": kernel, "padding": padding, "stride": stride, "dilation": dilation}
        net = CodeNet(shape)
        net.check(net.level_conv(net.identity(0, "u8"), 30, "f32", **layer), (17,), exact=True)
        net = CodeNet(shape)
        net.check(net.conv(0, 30, **layer), (17,))


def written_code() -> int:
    """Bytes of executable pages that belong to no file."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [f[0].split("-") for f in lines if f[1] == "r-xp" and f[4] == "0" and len(f) == 5]
    return sum(int(end, 16) - int(start, 16) for start, end in spans)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
@pytest.mark.skipif("avx512" not in MADE_FOR, reason="channels share sums with AVX-512")
def test_shared_sums_make_code_shorter() -> None:
    """Of a dense layer half the additions are left, which alone take 6 bytes a tap."""

    def bytes_of(density: float) -> float:
        net = Synthetic((64, 12, 12))
        net.real(0, 64, 3, density)
        compiled = CompiledProgram(net.program(), "f32", isa="avx512")
        before = written_code()
        compiled(np.zeros((16, 64, 12, 12), np.float32), 1)
        return (written_code() - before) / (density * 64 * 64 * 9)

    assert bytes_of(0.05) > 6
    assert bytes_of(1.0) < 0.7 * 6
