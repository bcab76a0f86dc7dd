"""8-bit activations in the engine: every level equals the reference's, on every path."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mpt_fast.kernels import cpu
from mpt_fast.packed import run_reference
from mpt_fast.runtime import ProgramError
from mpt_fast.runtime.engine import CompiledProgram
from mpt_fast.runtime.program import (
    Combine,
    ConvAffine,
    ConvSign,
    Flatten,
    Kind,
    MaxPool,
    Program,
    Step,
    Taps,
    Value,
)

needs_engine = pytest.mark.skipif(not cpu.available(), reason="the C++ engine is not built")
ISAS = cpu.engine().isas() if cpu.available() else []


def taps_of(weight: NDArray) -> Taps:
    flat = weight.reshape(len(weight), -1)
    indptr = np.concatenate([[0], np.cumsum((flat != 0).sum(1))]).astype(np.int32)
    index = np.nonzero(flat)[1].astype(np.int32)
    return Taps(weight.shape, indptr, index, flat[flat != 0].astype(np.int8))


class Net:
    """Builds a program of levels; the last value comes out in float, one level as 1.0."""

    def __init__(self, *shape: int, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.values = [Value("f32", *shape)]
        self.steps: list[Step] = []

    def add(self, step: Step) -> int:
        self.values.append(step.infer(self.values))
        self.steps.append(step)
        return len(self.steps)

    def convert(self, kind: Kind, *srcs: int, scale: float = 1.0, act: Any = "none") -> int:
        channels = self.values[srcs[0]].channels
        scales = tuple(np.full(channels, scale) for _ in srcs)
        shifts = tuple(np.zeros(channels) for _ in srcs)
        return self.add(Combine(srcs=srcs, scales=scales, shifts=shifts, act=act, kind=kind))

    def weight(self, *shape: int, density: float) -> NDArray:
        return self.rng.choice([-1, 1], shape) * (self.rng.random(shape) < density)

    def conv(self, src: int, weight: NDArray, kind: Kind = "u8", residual: int = -1,
             act: Any = "relu", scale: float | None = None, **geometry: Any) -> int:  # fmt: skip
        taps, outputs = taps_of(weight), len(weight)
        if scale is None:
            scale = 1 / (1 + taps.kept / outputs) ** 0.5
        vectors = self.rng.uniform(0.5, 1.5, (3, outputs)) * [[scale], [20.0], [0.5]]
        scale_, shift, other = vectors.astype(np.float32).astype(float)
        has = residual >= 0
        return self.add(
            ConvAffine(src=src, taps=taps, scale=scale_, shift=shift - 15, act=act, kind=kind,
                       residual=residual, residual_scale=other if has else None,
                       residual_shift=shift / 3 if has else None, **geometry)
        )  # fmt: skip

    def program(self) -> Program:
        last = (
            len(self.steps)
            if self.values[-1].kind == "f32"
            else self.convert("f32", len(self.steps))
        )
        steps = tuple(self.steps)
        return Program(self.values[0].shape, steps, last, self.values[0].shape,
                       self.values[last].shape)  # fmt: skip


def images(program: Program, count: int, scale: float = 60.0) -> NDArray[np.float32]:
    x = np.random.default_rng(1).standard_normal((count, *program.input)) * scale
    return x.astype(np.float32)


def check(program: Program, *counts: int) -> NDArray:
    """Equal to the reference on every instruction set and layout, whatever the batch or threads."""
    x = images(program, max(counts))
    expected = run_reference(program, torch.from_numpy(x)).numpy()
    for isa in ISAS:
        for layout in ("images", "pixels"):
            compiled = CompiledProgram(program, "f32", isa, layout)
            for count in counts:
                for threads in (1, 2):
                    actual = compiled(x[:count], threads)
                    np.testing.assert_array_equal(
                        actual, expected[:count].astype(np.float32), err_msg=f"{isa} {layout}"
                    )
    return expected


BATCHES = (1, 3, 16, 17, 32, 33, 70)


@needs_engine
@pytest.mark.parametrize("density", [0.0, 0.05, 0.3, 1.0])
@pytest.mark.parametrize(("stride", "padding", "dilation", "groups"),
                         [(1, 1, 1, 1), (2, 1, 1, 1), (1, 0, 2, 2), (3, 2, 1, 4)])  # fmt: skip
def test_convolutions(
    density: float, stride: int, padding: int, dilation: int, groups: int
) -> None:
    net = Net(8, 7, 9)
    geometry = {
        "stride": (stride, stride),
        "padding": (padding, padding),
        "dilation": (dilation, dilation),
        "groups": groups,
    }
    source = net.convert("i8", 0)
    weight = net.weight(12, 8 // groups, 3, 3, density=density)
    weight[1], weight[2] = 0, 1  # a channel that keeps nothing, and one of one sign
    net.conv(source, weight, **geometry)
    expected = check(net.program(), *BATCHES)
    if density:
        assert len(np.unique(expected)) > 20


@needs_engine
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 2), (4, 4), (5, 3), (13, 6), (32, 33)])
def test_map_sizes(size: tuple[int, int]) -> None:
    net = Net(3, *size)
    first = net.conv(net.convert("i8", 0), net.weight(5, 3, 3, 3, density=0.5), padding=(1, 1))
    net.conv(first, net.weight(4, 5, 3, 3, density=0.5), padding=(1, 1))
    check(net.program(), 1, 2, 20)


@needs_engine
def test_a_large_map_is_tiled_along_its_rows() -> None:
    net = Net(2, 3, 450)
    net.conv(net.convert("i8", 0), net.weight(3, 2, 3, 3, density=0.6), padding=(1, 1))
    check(net.program(), 1, 2)


@needs_engine
@pytest.mark.parametrize("signs", ["plus", "minus", "both"])
@pytest.mark.parametrize("kernel", [1, 3, 11])
def test_sums_beyond_16_bits_are_exact(kernel: int, signs: str) -> None:
    """All taps kept and all levels at their largest: sums up to 255 * channels * kernel**2."""
    channels = {1: 600, 3: 150, 11: 5}[kernel]
    net = Net(channels, 12, 12)
    weight = np.ones((3, channels, kernel, kernel), int)
    if signs == "minus":
        weight = -weight
    if signs == "both":
        weight[:, ::2] = -1
    weight[1, channels // 2 :] = 0
    source = net.convert("u8", 0)
    net.conv(source, weight, kind="f32", act="none", scale=1.0, padding=(kernel // 2, kernel // 2))
    program = net.program()
    x = np.full((33, *program.input), 1000, np.float32)
    x[1:, : channels // 3] = 0
    expected = run_reference(program, torch.from_numpy(x)).numpy()
    assert signs == "both" or np.abs(expected).max() > 2 * 32767
    for isa in ISAS:
        for layout in ("images", "pixels"):
            compiled = CompiledProgram(program, "f32", isa, layout)
            np.testing.assert_array_equal(compiled(x, 1), expected.astype(np.float32))


@needs_engine
@pytest.mark.parametrize("channels", [40, 300])
@pytest.mark.parametrize("density", [0.02, 0.2, 0.9])
def test_many_channels_in_blocks(channels: int, density: float) -> None:
    net = Net(channels, 5, 6)
    source = net.convert("u8", 0)
    first = net.conv(source, net.weight(37, channels, 3, 3, density=density), padding=(1, 1))
    net.conv(first, net.weight(21, 37, 3, 3, density=density), padding=(1, 1), stride=(2, 2))
    check(net.program(), 1, 5, 40)


@needs_engine
@pytest.mark.parametrize("kind", ["u8", "i8", "i16", "f32"])
@pytest.mark.parametrize("act", ["none", "relu"])
@pytest.mark.parametrize("residual", [None, "u8", "i8", "i16"])
def test_what_comes_out(kind: Kind, act: str, residual: Kind | None) -> None:
    net = Net(6, 5, 7)
    source = net.convert("i8", 0)
    other = -1
    if residual:
        other = net.conv(source, net.weight(9, 6, 1, 1, density=0.7), kind=residual, act="none",
                         scale=40.0 if residual == "i16" else 1.0)  # fmt: skip
    net.conv(source, net.weight(9, 6, 3, 3, density=0.5), kind=kind, act=act, padding=(1, 1),
             residual=other)  # fmt: skip
    expected = check(net.program(), *BATCHES)
    low, high = {"u8": (0, 255), "i8": (-127, 127), "i16": (-32767, 32767)}.get(kind, (-1e9, 1e9))
    assert low <= expected.min() < expected.max() <= high
    assert act == "none" or expected.min() >= 0


@needs_engine
def test_a_whole_network() -> None:
    """Convolutions, a projection, identity shortcuts, pooling, a sum, a flattened last layer."""
    net = Net(3, 12, 12)
    first = net.conv(net.convert("i8", 0), net.weight(16, 3, 3, 3, density=0.8), padding=(1, 1))
    inner = net.conv(first, net.weight(16, 16, 3, 3, density=0.3), padding=(1, 1))
    block = net.conv(inner, net.weight(16, 16, 3, 3, density=0.3), padding=(1, 1), residual=first)
    down = net.conv(block, net.weight(24, 16, 1, 1, density=0.5), "i16", act="none", stride=(2, 2))
    inner = net.conv(block, net.weight(24, 16, 3, 3, density=0.3), stride=(2, 2), padding=(1, 1))
    block = net.conv(inner, net.weight(24, 24, 3, 3, density=0.3), padding=(1, 1), residual=down)
    added = net.convert("u8", block, down, act="relu", scale=0.5)
    pool = net.add(MaxPool(src=added, kernel=(3, 3), stride=(2, 2), padding=(1, 1)))
    flat = net.add(Flatten(src=pool))
    net.conv(flat, net.weight(10, 24 * 9, 1, 1, density=0.4), kind="f32", act="none")
    expected = check(net.program(), *BATCHES, 130)
    assert len(np.unique(expected)) > 500


@needs_engine
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", ["images", "pixels"])
@pytest.mark.parametrize("kind", ["u8", "i8", "i16"])
def test_ties_round_to_even_and_ends_clamp(isa: str, layout: str, kind: Kind) -> None:
    low, high = {"u8": (0, 255), "i8": (-127, 127), "i16": (-32767, 32767)}[kind]
    x = np.array([-0.5, 0.5, 1.5, 2.5, 0.49999997, 0.50000006, -1.5, -126.5, 126.5, 254.5, 255.5,
                  32766.5, -32766.5, 1e6, -1e6, 3e38, -3e38, 1e-40], np.float32)  # fmt: skip
    net = Net(1, 1, x.size)
    net.convert(kind, 0)
    compiled = CompiledProgram(net.program(), "f32", isa, layout)
    actual = compiled(x.reshape(1, 1, 1, -1), 1).ravel()
    np.testing.assert_array_equal(actual, np.clip(np.round(x), low, high))


def _bad_weight(net: Net) -> Step:
    taps = taps_of(np.ones((2, 4, 1, 1)))
    half = Taps(taps.shape, taps.indptr, taps.index, taps.value * np.float32(0.5))
    return _plain(1, half)


def _plain(src: int, taps: Taps, **fields: Any) -> ConvAffine:
    one = np.ones(taps.shape[0])
    return ConvAffine(src=src, taps=taps, scale=one, shift=one, **{"kind": "u8", **fields})


ONES = taps_of(np.ones((2, 4, 1, 1), int))
HUGE = taps_of(np.ones((2, 4, 12, 12), int))
TWO = np.ones(2)
BAD: list[tuple[Callable[[Net], Step], str]] = [
    (_bad_weight, "taps over levels must be"),
    (lambda net: _plain(1, ONES, kind=None), "gives u8, i8, i16 or f32, not None"),
    (lambda net: _plain(1, ONES, kind="f64"), "gives u8, i8, i16 or f32, not f64"),
    (lambda net: _plain(1, ONES, act="sign"), "gives no bits"),
    (lambda net: _plain(0, ONES), "of f32 has no kind of its own"),
    (lambda net: _plain(2, ONES), "reads f32, f64, u8 or i8, not i16"),
    (lambda net: _plain(1, HUGE, padding=(9, 9)), "kernel of 144"),
    (
        lambda net: _plain(1, ONES, residual=3, residual_scale=TWO, residual_shift=TWO),
        "residual over levels is f32",
    ),
    (
        lambda net: ConvSign(src=1, taps=ONES, threshold=TWO.astype(np.int32), flip=TWO > 2),
        "conv_sign reads bits, not u8",
    ),
]


@pytest.mark.parametrize(("step", "message"), BAD, ids=[message for _, message in BAD])
def test_steps_that_do_not_fit(step: Callable[[Net], Step], message: str) -> None:
    net = Net(4, 3, 3)
    net.convert("u8", 0)
    net.convert("i16", 0)
    net.add(_plain(0, taps_of(np.ones((2, 4, 1, 1), int)), kind=None))
    with pytest.raises(ProgramError, match=message):
        net.add(step(net))


def test_levels_do_not_come_out_and_do_not_meet_bits() -> None:
    net = Net(4, 3, 3)
    level = net.convert("u8", 0)
    with pytest.raises(ProgramError, match="the output must not be levels"):
        Program((4, 3, 3), tuple(net.steps), level, (4, 3, 3), (4, 3, 3))
    bits = net.convert("bits", 0, act="sign")
    last = net.convert("f32", level, bits)
    with pytest.raises(ProgramError, match="bits or levels, not both"):
        Program((4, 3, 3), tuple(net.steps), last, (4, 3, 3), (4, 3, 3))
