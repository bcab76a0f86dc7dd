"""Layers of bits as code: the decisions of lists of taps, and of float64, on every element."""

from functools import partial
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from test_program import ISAS, Array, Net, Size, both, same_bits
from torch.nn import functional

from mpt_fast.kernels import cpu

pytestmark = pytest.mark.skipif("avx512" not in ISAS, reason="code for bits needs AVX-512")
BLOCK = 512  # images, of which code computes whole blocks
FAR = 2**31 - 1


class Ways:
    """One program with code and one with lists, built alike; `run` fails unless they agree."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        make = cpu.engine().Program
        self.programs = [
            make(*shape, isa="avx512", layout="images", code=code) for code in (True, False)
        ]

    def run(self, *arguments: Any) -> Array:
        made, listed = (program.run(*arguments) for program in self.programs)
        same_bits(made, listed)
        return made

    def finish(self, output: int) -> None:
        for program in self.programs:
            program.finish(output)
        made, listed = self.programs
        assert made.makes_bit_code
        assert not listed.makes_bit_code

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            first, _ = (getattr(p, name)(*arguments, **options) for p in self.programs)
            return first

        return call


class BitNet(Net):
    def __init__(self, shape: tuple[int, int, int], seed: int = 0) -> None:
        super().__init__(shape)
        self.program = Ways(shape)  # type: ignore[assignment]  # that of Net holds all layouts
        self.rng = np.random.default_rng(seed)
        self.bits = self.combine([0], "sign", "bits")

    def sign(self, src: int, out: int, kernel: Size = 3, stride: Size = 1, padding: Size = 1,
             dilation: Size = 1, groups: int = 1, density: float = 0.3,
             residual: int = -1) -> int:  # fmt: skip
        """Channels of every density up to twice that; thresholds from always to never met."""
        shape = (out, self.shapes[src][0] // groups, *both(kernel))
        keep = self.rng.random((out, 1, 1, 1)) * 2 if 0 < density < 1 else 1
        weight = self.weight(shape, 1.0) * (self.rng.random(shape) < density * keep)
        taps = np.abs(weight).sum((1, 2, 3)).astype(int)
        near = [self.rng.integers(-n // 2 - 2, n // 2 + 3) for n in taps]
        ends = [self.rng.choice([-FAR, -n - 1, -n, -n + 1, n - 1, n, n + 1, FAR]) for n in taps]
        threshold = np.where(self.rng.random(out) < 0.7, near, ends).astype(np.int32)
        other = np.where(self.rng.random(out) < 0.3, threshold, self.rng.permutation(threshold))
        flip = self.rng.integers(0, 2, out, dtype=np.uint8)
        geometry = (both(stride), both(padding), both(dilation), groups)
        limits = [torch.from_numpy(t)[:, None, None] for t in (threshold, other, flip)]

        def decide(v: list[torch.Tensor]) -> torch.Tensor:
            s = functional.conv2d(v[src], torch.from_numpy(weight), None, *geometry)
            limit = limits[0]
            if residual >= 0:
                limit = torch.where(v[residual] > 0, limits[1], limit)
            return torch.where(limits[2] == 1, s <= limit, s >= limit).double() * 2 - 1

        extra = {"residual": residual, "residual_threshold": other} if residual >= 0 else {}
        given = (src, *self.taps(weight, True), *geometry)
        value = self.program.conv_sign(*given, threshold=threshold, flip=flip, **extra)
        return self._add(value, decide)

    def compare(self, output: int, images: int = BLOCK, threads: int = 1) -> None:
        self.program.finish(output)
        x = self.rng.normal(size=(images, *self.shapes[0])).astype(np.float32)
        found = self.program.run(x, threads)
        np.testing.assert_array_equal(found, self.values(x)[output].numpy())


@st.composite
def layers(draw: st.DrawFn) -> tuple[tuple[int, int, int], dict[str, Any]]:
    """An input and a layer that fits it."""
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (3, 3), (5, 5), (3, 1), (1, 4)]))
    stride = (draw(st.sampled_from([1, 1, 2, 3])), draw(st.sampled_from([1, 1, 2, 3])))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 3)))
    padding = tuple(draw(st.integers(0, k)) for k in kernel)
    spans = [dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i] for i in (0, 1)]
    size = [max(1, span) + draw(st.integers(0, 5)) for span in spans]
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    each = draw(st.sampled_from([1, 2, 5, 20, 70] if groups == 1 else [1, 2, 9]))
    out = groups * draw(st.sampled_from([1, 3, 8, 40]))
    layer = {
        "out": out,
        "kernel": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "density": draw(st.sampled_from([0.0, 0.02, 0.1, 0.3, 0.6, 1.0])),
    }
    return (groups * each, size[0], size[1]), layer


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    made=layers(),
    residual=st.booleans(),
    threads=st.sampled_from([1, 1, 1, 3]),
    seed=st.integers(0, 2**31),
)
def test_every_geometry(
    made: tuple[tuple[int, int, int], dict[str, Any]], residual: bool, threads: int, seed: int
) -> None:
    shape, layer = made
    net = BitNet(shape, seed)
    y = net.sign(net.bits, **layer)
    if residual:  # which the result overwrites
        y = net.sign(net.bits, **layer, residual=y)
    net.compare(y, 300, threads)


@pytest.mark.parametrize("taps", [*range(20), 31, 32, 33, 63, 64, 65, 127, 128, 129])
@pytest.mark.parametrize("residual", [False, True])
def test_every_number_of_taps(taps: int, residual: bool) -> None:
    """Each threshold that decides anything, and those beyond, of as many channels."""
    out = taps + 3
    net = BitNet((max(taps, 1), 4, 5))
    weight = net.weight((out, max(taps, 1), 1, 1), float(taps > 0))
    thresholds = np.stack([np.arange(-taps - 2, taps + 3, 2)[:out]] * 2).astype(np.int32)
    thresholds[1] = thresholds[1, ::-1]
    flip = np.arange(out, dtype=np.uint8) % 2
    given = (net.bits, *net.taps(weight, True), (1, 1), (0, 0), (1, 1), 1)
    extra = {}
    if residual:
        first = net.sign(net.bits, out, 1, padding=0)
        extra = {"residual": first, "residual_threshold": thresholds[1]}

    def decide(v: list[torch.Tensor]) -> torch.Tensor:
        s = functional.conv2d(v[net.bits], torch.from_numpy(weight))
        low, high = (torch.from_numpy(t)[:, None, None] for t in thresholds)
        limit = torch.where(v[first] > 0, high, low) if residual else low
        fewer = torch.from_numpy(flip)[:, None, None] == 1
        return torch.where(fewer, s <= limit, s >= limit).double() * 2 - 1

    value = net.program.conv_sign(*given, threshold=thresholds[0], flip=flip, **extra)
    net.compare(net._add(value, decide))


def test_more_taps_than_bases_reach() -> None:
    """A kernel of 7x7 over 300 channels: distances that take four bytes."""
    net = BitNet((300, 4, 5))
    net.compare(net.sign(net.bits, 20, 7, padding=3, density=0.05))


def test_networks_of_several_blocks() -> None:
    """Layers with code, with too many taps for it, and sums; blocks of 512 and of fewer images."""
    net = BitNet((40, 9, 8))
    x = net.sign(net.bits, 64, density=0.2)
    y = net.sign(x, 64, density=0.1, residual=x)
    x = net.max_pool(y, 2, 2)
    x = net.sign(x, 96, density=0.9)
    x = net.sign(x, 128, density=0.4)  # more than 32768
    x = net.sign(x, 128, density=0.05, stride=2)
    net.compare(net.conv(net.flatten(x), 10, kernel=1, padding=0), 1100, threads=2)


@pytest.mark.parametrize(
    ("outputs", "inputs", "kernel", "size", "density", "made"),
    [
        (32, 100, 3, 3, 0.3, True),
        (32, 100, 3, 3, 0.35, False),  # more than 1024 taps a pixel
        (64, 64, 3, 6, 0.6, True),
        (64, 64, 3, 6, 0.95, False),  # more than 32768
        (1, 4000, 1, 3, 1.0, True),
        (1, 4200, 1, 3, 1.0, False),  # more than 4095 in a channel
        (48, 64, 3, 6, 1.0, False),  # taps that channels share
    ],
)
def test_code_is_made_where_it_is_said_to_be(
    outputs: int, inputs: int, kernel: int, size: int, density: float, made: bool
) -> None:
    net = BitNet((inputs, size, size))
    weight = net.weight((outputs, inputs, kernel, kernel), density)
    indptr, index, value, shape = net.taps(weight, True)
    engine = cpu.engine()
    padding = kernel // 2
    geometry = ((1, 1), (padding, padding), (1, 1), 1)
    given = (net.shapes[0], indptr, index, value, shape)
    _, code = engine.bitsliced_conv2d_costs(*given, *geometry)
    net.weight = lambda *_: weight  # type: ignore[method-assign]
    net.compare(net.conv(net.bits, outputs, kernel, padding=padding, density=density, mode="sign"))
    with_code, without = net.program.programs  # type: ignore[attr-defined]
    assert code == made
    assert with_code.bit_code_steps() == [False, made]
    assert without.bit_code_steps() == [False, False]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    made=layers(),
    density=st.sampled_from([0.0, 0.03, 0.2, 0.5, 1.0]),
    threads=st.sampled_from([1, 1, 1, 3]),
    seed=st.integers(0, 2**31),
)
def test_signs_of_two_sums(
    made: tuple[tuple[int, int, int], dict[str, Any]], density: float, threads: int, seed: int
) -> None:
    shape, layer = made
    net = BitNet(shape, seed)
    sums = [net.conv(net.bits, **{**layer, "density": d}) for d in (layer["density"], density)]
    net.compare(net.combine(sums, "sign", "bits"), 300, threads)


@pytest.mark.parametrize("taps", [*range(9), 15, 16, 17, 63, 64, 65, 255, 257])
@pytest.mark.parametrize("other", [*range(5), 7, 8, 9, 31])
def test_every_number_of_taps_of_two_sums(taps: int, other: int) -> None:
    net = BitNet((300, 2, 3))
    sums = []
    for kept in (taps, other):
        weight = net.weight((24, 300, 1, 1), 1.0) * (np.arange(300)[:, None, None] < kept)
        given = (net.bits, *net.taps(weight, True), (1, 1), (0, 0), (1, 1), 1)
        tensor = torch.from_numpy(weight)
        step = partial(lambda w, v: functional.conv2d(v[net.bits], w), tensor)
        sums.append(net._add(net.program.conv(*given), step))
    net.compare(net.combine(sums, "sign", "bits"))
